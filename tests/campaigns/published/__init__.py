"""Networks that were written elsewhere, each as a user would hand it to fastwi."""
