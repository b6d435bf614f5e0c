"""Fast kernels, each beside its torch reference."""
