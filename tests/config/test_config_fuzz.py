"""Whatever the input, either a Config comes out or a refusal in clean lines; never another exception."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fastwi.cli import ShowAndExit
from fastwi.config.read import Request, config_from_mapping, config_from_yaml, read_request
from fastwi.config.schema import KEYS, SECTIONS, Config
from fastwi.errors import ConfigError

LEAF = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.binary(max_size=4),
    st.sampled_from(["auto", "1e-4", "010", "1:30", "nan", ".inf", "~", "=", "<<", "*a", "&a b", "!x y"]),
)
NAME = st.one_of(st.sampled_from(sorted({key.name for key in KEYS.values()})), st.text(max_size=6))
SECTION = st.one_of(st.sampled_from([*SECTIONS, *KEYS]), st.text(max_size=6))
VALUE = st.recursive(
    LEAF,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAME, inner, max_size=2)),
    max_leaves=5,
)
MAPPING = st.dictionaries(SECTION, st.one_of(VALUE, st.dictionaries(NAME, VALUE, max_size=4)), max_size=4)
# What YAML is made of, a piece a word.
YAML_WORDS = (
    *("k", "name", "drop_epochs", "1", "1e-4", "true", ":", "-", "[", "]", "{", "}", ",", "'", '"'),
    *("\\x", "&a", "*a", "!!int", "---", "...", "#", "|", "?", "<<", "%YAML"),
)
PIECES = st.lists(st.sampled_from([*SECTIONS, *YAML_WORDS, ": ", "- ", "\n", "\n  ", " ", "\t"]), max_size=25).map(
    "".join
)
TOKEN = st.one_of(
    st.builds("--{}={}".format, st.sampled_from(list(KEYS)), st.one_of(LEAF.map(str), st.just("1,2"))),
    st.sampled_from([f"--{path}" for path in KEYS]),
    st.sampled_from(
        ["--config", "--config=", "--json", "--dry-run", "--print-config", "--", "-", "", "--help=1", "=1"]
    ),
    st.sampled_from(["--help", "-h", "--version"]),
    st.text(st.characters(), max_size=12),
    st.text(st.characters(), max_size=12).map(lambda text: "--" + text),
    st.integers(-3, 200).map(str),
)


def assert_clean(refusal: ConfigError) -> None:
    for line in str(refusal).split("\n"):
        assert line.isprintable()
        assert ":" in line


@settings(max_examples=150, deadline=None)
@given(MAPPING)
def test_any_mapping(mapping: dict[str, Any]) -> None:
    try:
        assert isinstance(config_from_mapping(mapping), Config)
    except ConfigError as refusal:
        assert_clean(refusal)


@settings(max_examples=150, deadline=None)
@given(st.one_of(PIECES, st.text(max_size=40), MAPPING.map(yaml.safe_dump)))
def test_any_yaml(text: str) -> None:
    try:
        assert isinstance(config_from_yaml(text), Config)
    except ConfigError as refusal:
        assert_clean(refusal)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "a.yaml"


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(max_size=30), PIECES.map(str.encode)), st.lists(TOKEN, max_size=5))
def test_any_file_and_command_line(file: Path, content: bytes, argv: list[str]) -> None:
    file.write_bytes(content)
    for arguments in (argv, ["--config", str(file), *argv]):
        try:
            assert isinstance(read_request(arguments, "fastwi.train"), Request)
        except ConfigError as refusal:
            assert_clean(refusal)
        except ShowAndExit:
            assert {"--help", "-h", "--version"} & set(arguments)
