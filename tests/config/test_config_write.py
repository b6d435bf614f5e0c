"""What is written reads back exactly; whatever is given is taken, or refused in clean lines; what the hash names."""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mappings import config_from_mapping

import fastwi.config.write
from fastwi.cli import ShowAndExit
from fastwi.config.layers import Layers
from fastwi.config.read import config_from_yaml, read_request, read_sweep_request, sweep_from_yaml
from fastwi.config.schema import KEYS, SECTIONS, Config
from fastwi.config.sweep import ALL_SECTIONS, NAMES, SweepOptions, SweepSpec
from fastwi.config.time import Time, read_time
from fastwi.config.values import Key
from fastwi.config.write import config_hash, sweep_to_yaml, to_yaml
from fastwi.errors import ConfigError
from fastwi.sealed import sha256_of

GOLDEN_DEFAULT = "ede0de807492"
GOLDEN_CHANGED = "255026f045b8"
GOLDEN_DEFAULTS = "c13f1435f9a8"
"""Of the defaults themselves. A key was added: record it again. A default was changed: raise HASH_VERSION too."""
NO_RESULT = {path for path in KEYS if path.startswith(("run.", "engine."))} - {"engine.precision"} | {
    "data.streaming", "data.decoder",
}  # fmt: skip

TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=20)
PATTERNED = {
    "run.name": ("", "2024", "a b.c-1", "yes", "\u2013"),
    "sweep.name": ("", "grid"),
    "engine.device": ("auto", "cpu", "cuda", "cuda:0", "cuda:12"),
    "analysis.cells": ("8,4", " 1, 2 ", "500it,160ep-k"),
    "experiment.s": (0, 3, Time("5it"), Time("160ep-k")),
}


def values(key: Key, depth: int | None = None) -> st.SearchStrategy[Any]:
    """Any value that the key takes by itself."""
    if depth is None and key.many:
        rows = st.integers(0, 100).map(lambda first: tuple(range(first + 1, first + 20)))
        return st.one_of(
            values(key, key.depth), *[rows] * (key.scalar is int and key.depth == 1 and key.high is None)
        )
    if depth:
        return st.lists(values(key, depth - 1), min_size=1, max_size=4, unique=True).map(tuple)
    if key.choices or key.pattern:
        return st.sampled_from(key.choices or PATTERNED[key.path.removeprefix("axes.")])
    if key.scalar is bool:
        return st.booleans()
    if key.scalar is Time:
        numbers = st.integers(int(key.low or 0), 10**9)
        spelled = st.builds("{}ep{}it".format, numbers, numbers).map(lambda text: read_time(text, key.unit))
        return st.one_of(numbers, spelled)
    if key.scalar is int:
        return st.integers(int(key.low or 0), int(2**63 - 1 if key.high is None else key.high))
    if key.scalar is float:
        return st.floats(key.low, key.high, allow_nan=False, allow_infinity=False).map(lambda number: number + 0.0)
    return TEXT


@settings(max_examples=15)
@given(st.data())
def test_every_value_that_is_written_reads_back(data: st.DataObject) -> None:
    written: dict[str, Any] = {path: data.draw(values(key), path) for path, key in NAMES.items()}
    sections: dict[str, dict[str, Any]] = {}
    for path, value in written.items():
        section, _, name = path.partition(".")
        sections.setdefault(section, {})[name] = value
    options, analysis = (ALL_SECTIONS[section](**sections.pop(section)) for section in ("sweep", "analysis"))
    axes = sections.pop("axes")
    config = Config(**{section: SECTIONS[section](**keys) for section, keys in sections.items()})
    text = sweep_to_yaml(SweepSpec(config, axes, options), analysis)
    assert text.isascii()
    layers = Layers(NAMES)
    layers.add_text(text, "a.yaml")
    assert not layers.problems
    assert {path: repr(placed.value) for path, placed in layers.given.items()} == {
        path: repr(value) for path, value in written.items()
    }
    assert yaml.safe_load(to_yaml(config)) == json.loads(json.dumps(dataclasses.asdict(config)))  # any YAML reader


@settings(max_examples=60)
@given(st.data())
def test_every_value_on_the_command_line(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from([key for key in KEYS.values() if key.section in ("augment", "engine", "data")]))
    value = data.draw(values(key))
    config = read_request([f"--{key.path}={value}", "--optimizer.batch_size=1"], "fastwi.train").config
    assert getattr(getattr(config, key.section), key.name) == value


LEAF = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(), st.binary(max_size=4),
    st.sampled_from(["auto", "1e-4", "010", "1:30", "nan", ".inf", "~", "=", "<<", "*a", "&a b", "!x y", "0..1"]),
)  # fmt: skip
NAME = st.one_of(st.sampled_from(sorted({key.name for key in KEYS.values()})), st.text(max_size=6))
SECTION = st.one_of(st.sampled_from([*SECTIONS, *KEYS, "axes", "sweep", "base"]), st.text(max_size=6))
VALUE = st.one_of(LEAF, st.lists(LEAF, max_size=3), st.dictionaries(NAME, LEAF, max_size=2))


@settings(max_examples=150)
@given(st.dictionaries(SECTION, st.one_of(VALUE, st.dictionaries(NAME, VALUE, max_size=4)), max_size=4))
def test_whatever_is_given_is_taken_or_refused_in_clean_lines(mapping: dict[str, Any]) -> None:
    text = yaml.safe_dump(mapping)
    for read, given_ in ((config_from_mapping, mapping), (config_from_yaml, text), (sweep_from_yaml, text)):
        try:
            read(given_)
        except ConfigError as refusal:
            for line in str(refusal).split("\n"):
                assert ":" in line


WHOLE_FILE = """base: base.yaml
data: {train_images: 10000}
axes:
  experiment.k: [1, 2, 4, 8]
  augment.flip: 0.05..0.2 step 0.05
  schedule.drop_epochs: [[80, 120], [100]]
sweep:
  parents: 0..3
  measure: [own, recomputed]
"""
PIECES = (
    *"[]{}:,-'\"#|>\t\\\0\ud800\u2028\n",
    "..",
    " step ",
    "1e99",
    "&a ",
    "!!int ",
    "null",
    "base",
    "sweep",
    "---\n",
)
TOKEN = st.one_of(
    st.builds(
        "--{}={}".format,
        st.sampled_from([*NAMES, "shard", "config", "help"]),
        st.one_of(st.sampled_from(["1..3", "[1,2]", "[[1],[2]]", "[", "1/2", ""]), LEAF.map(str)),
    ),
    st.sampled_from(
        ["--config", "--dry-run", "--print-config", "--", "-", "", "--axes.", "--shard", "-h", "--version"]
    ),
    st.text(max_size=12).map(lambda text: "--" + text),
)


@settings(max_examples=100)
@given(st.integers(0, len(WHOLE_FILE)), st.integers(0, 20), st.sampled_from(PIECES), st.lists(TOKEN, max_size=4))
def test_any_file_and_command_line(start: int, cut: int, put: str, argv: list[str]) -> None:
    """A sweep that is written reads back, a refusal is clean lines, whatever the file and the arguments."""
    text = WHOLE_FILE[:start] + put + WHOLE_FILE[start + cut :]
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "base.yaml").write_text("experiment: {k: 3}\n")
        file = Path(directory, "a.yaml")
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        for arguments in ([f"--config={file}"], [f"--config={file}", *argv], argv):
            try:
                read = read_sweep_request(arguments).spec
            except ShowAndExit:
                assert {"--help", "-h", "--version", "--print-config"} & {
                    word.partition("=")[0] for word in arguments
                }
            except ConfigError as refusal:
                for line in str(refusal).split("\n"):
                    assert ":" in line
            else:
                assert sweep_from_yaml(sweep_to_yaml(read)) == read


def test_yaml_carries_the_help_or_only_what_was_changed() -> None:
    assert to_yaml(Config(), changed=True) == "\n"
    assert config_from_yaml(to_yaml(Config())) == Config()
    config = config_from_mapping({"experiment": {"k": 3}, "seeds": {"child_noise": [4, 9]}})
    assert yaml.safe_load(to_yaml(config, changed=True)) == {"experiment": {"k": 3}, "seeds": {"child_noise": [4, 9]}}
    axes = {"experiment.k": tuple(range(3, 30)), "augment.flip": (0.05, 0.1, 0.15)}
    text = sweep_to_yaml(SweepSpec(Config(), axes))
    assert "\nexperiment:  # Parent, children, average (paper, Figure 1).\n" in text
    assert (
        "epochs that the parent trains before cloning [default 10; in epochs, or as 10ep50it; at least 0]\n  k: 10\n"
        in text
    )
    assert "  experiment.k: 3..29\n  augment.flip: [0.05, 0.1, 0.15]\n" in text  # many in a row are a range
    for parents in ((*range(8), 2**31 - 1), (0, 5, 2, 3, 4, 1, 6, 7, 8)):
        text = sweep_to_yaml(SweepSpec(Config(), {}, SweepOptions(parents=parents)))
        assert f"  parents: {list(parents)}\n" in text


def changed(key: Key) -> Config:
    """The default configuration with one other value, unchecked across fields."""
    value: Any = {bool: True, int: 77, Time: 77, float: 0.77, str: "other"}[key.scalar]
    section = getattr(Config(), key.section)
    other = dataclasses.replace(section, **{key.name: (value,) if key.many else value})
    return dataclasses.replace(Config(), **{key.section: other})


def test_hash_is_stable() -> None:
    """Fails when the hash of an old run would no longer be found: raise HASH_VERSION only on purpose."""
    assert config_hash(Config()) == GOLDEN_DEFAULT
    other = {"optimizer": {"learning_rate": 1e-3, "nesterov": True}, "schedule": {"drop_epochs": [5, 7]}}
    config = config_from_mapping({**other, "model": {"name": "resnet20"}, "experiment": {"momentum": "keep"}})
    assert config_hash(config) == GOLDEN_CHANGED
    defaults = {path: key.default for path, key in KEYS.items() if path not in NO_RESULT}
    assert sha256_of(json.dumps(defaults, sort_keys=True).encode())[:12] == GOLDEN_DEFAULTS


def test_hash_of_a_default_spelled_out_is_the_defaults() -> None:
    assert config_hash(config_from_mapping(dataclasses.asdict(Config()))) == config_hash(Config())
    assert config_hash(config_from_mapping({"seeds": {"child_noise": [1, 2]}})) == config_hash(Config())
    assert config_hash(config_from_mapping({"seeds": {"child_noise": [2, 1]}})) != config_hash(Config())


def test_a_key_added_later_changes_no_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """The schema without a key is the schema before the key was added."""
    before = config_hash(changed(KEYS["experiment.k"]))
    for path in KEYS.keys() - {"experiment.k", "seeds.child_noise"}:
        without = {name: key for name, key in KEYS.items() if name != path}
        monkeypatch.setattr(fastwi.config.write, "KEYS", without)
        assert config_hash(changed(KEYS["experiment.k"])) == before


def test_hash_changes_with_what_decides_the_result_and_nothing_else() -> None:
    hashes = {path: config_hash(changed(key)) for path, key in KEYS.items()}
    assert {path for path, each in hashes.items() if each == config_hash(Config())} == NO_RESULT
    deciding = [each for path, each in hashes.items() if path not in NO_RESULT]
    assert len(set(deciding)) == len(deciding)


def test_a_digest_stands_for_the_datasets_path() -> None:
    for given_ in ({"data": {"path": "/elsewhere"}}, {"model": {"weights": "a.pt"}}):
        other = config_from_mapping(given_)
        assert config_hash(other) != config_hash(Config())
        assert config_hash(other, "d1") == config_hash(Config(), "d1")
    assert len({config_hash(Config()), config_hash(Config(), "d1"), config_hash(Config(), "d2")}) == 3
