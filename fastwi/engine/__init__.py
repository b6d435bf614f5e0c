"""Engines: training steps and evaluation of the members of a population."""
