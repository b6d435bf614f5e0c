"""Experiments: what is trained, in which order, and what is kept of it."""
