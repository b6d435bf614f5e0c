"""Configurations from mappings, as a program gives them."""

from collections.abc import Mapping
from typing import Any

from fastwi.config.read import read_config
from fastwi.config.schema import Config


def config_from_mapping(mapping: Mapping[str, Any]) -> Config:
    """The Config that `{section: {key: value}}` says, with defaults for what it leaves out."""
    return read_config(mapping).config
