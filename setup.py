"""What pyproject.toml has no words for: configs/ is installed within fastwi. All other metadata is there."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["fastwi*", "data_prep*"]), "fastwi.configs"],
    package_dir={"fastwi.configs": "configs"},
)
