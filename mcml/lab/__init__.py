"""What the notebooks share: parameters, output with provenance, experiments, evaluation, figures, runner."""
