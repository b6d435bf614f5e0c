"""Damaged and hostile inputs for everything that reads what a user passes: one module a kind of input."""
