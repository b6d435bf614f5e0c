"""A population of networks stored as the rows of a few matrices: layout, clone, average, save and load."""

from fastwi.population.layout import Layout, Span
from fastwi.population.population import Population

__all__ = ["Layout", "Population", "Span"]
