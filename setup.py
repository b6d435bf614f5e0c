"""Kept so that `pip install .` works with every installer; all metadata is in pyproject.toml."""

from setuptools import setup

setup()
