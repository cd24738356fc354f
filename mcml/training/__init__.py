"""How networks and entropy coders learn: losses, starts, the trainer, checkpoints."""
