"""Faults injected into every command that writes: what it is run on, what goes wrong, and what must still hold."""
