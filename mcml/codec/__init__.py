"""The room `codec`."""
