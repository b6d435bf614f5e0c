"""What is written reads back to the same Config, and the hash names what decides a result."""

import dataclasses
import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import fastwi.config.write
from fastwi.config.read import config_from_mapping, config_from_yaml, read_request
from fastwi.config.schema import KEYS, Config
from fastwi.config.values import Key
from fastwi.config.write import config_hash, to_yaml

GOLDEN_DEFAULT = "ede0de807492"
GOLDEN_CHANGED = "255026f045b8"

TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=20)


def scalars(key: Key) -> st.SearchStrategy[Any]:
    """Any value that the key takes by itself."""
    low, high = key.low, key.high
    if key.choices:
        return st.sampled_from(key.choices)
    if key.scalar is bool:
        return st.booleans()
    if key.scalar is int:
        return st.integers(int(low or 0), int(2**63 - 1 if high is None else high))
    if key.scalar is float:
        return st.floats(low, high, allow_nan=False, allow_infinity=False)
    return TEXT


@st.composite
def mappings(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    """A configuration that passes every check, with any value wherever a check leaves it free."""
    drawn: dict[str, dict[str, Any]] = {}
    for key in KEYS.values():
        if not key.many:
            drawn.setdefault(key.section, {})[key.name] = draw(scalars(key))
    children = drawn["experiment"]["children"] = draw(st.integers(2, 5))
    first = draw(st.floats(-3, 3))
    weights = [first, 1 - first] + [0.0] * (children - 2)
    drawn["experiment"]["weights"] = draw(st.sampled_from([[], weights]))
    if not drawn["experiment"]["continue_children"]:
        drawn["experiment"]["children_rate_factor"] = 1.0
    for name in ("k", "s", "after"):  # of all networks together there are at most a million epochs
        drawn["experiment"][name] %= 60_000
    drawn["experiment"]["k"] += 1 if drawn["experiment"]["k"] == 0 else 0
    noise = st.lists(scalars(KEYS["seeds.child_noise"]), min_size=children, max_size=children, unique=True)
    drawn["seeds"]["child_noise"] = draw(st.one_of(st.just([]), noise))
    drawn["schedule"]["drop_epochs"] = sorted(draw(st.sets(st.integers(1, 10**9), max_size=4)))
    drawn["data"]["train_images"] = draw(st.sampled_from([0, 2**63 - 1]))
    drawn["model"]["name"] = "resnet20"
    drawn["engine"]["device"] = draw(st.sampled_from(["auto", "cpu", "cuda", "cuda:0", "cuda:12"]))
    name = drawn["run"]["name"].replace("/", "").replace("\\", "")
    drawn["run"]["name"] = "" if name in (".", "..") else name
    return drawn


@settings(max_examples=60, deadline=None)
@given(mappings())
def test_everything_written_reads_back_exactly(mapping: dict[str, dict[str, Any]]) -> None:
    config = config_from_mapping(mapping)
    text = to_yaml(config)
    assert text.isascii()
    assert config_from_yaml(text) == config
    mapping = json.loads(json.dumps(dataclasses.asdict(config)))
    assert config_from_mapping(mapping) == config
    assert yaml.safe_load(text) == mapping  # any other YAML reader sees the same
    assert to_yaml(config_from_yaml(text)) == text
    flags = [
        f"--{key.path}=" + (",".join(map(repr, value)) if isinstance(value, tuple) else str(value))
        for key in KEYS.values()
        for value in [getattr(getattr(config, key.section), key.name)]
    ]
    assert read_request(flags, "fastwi.train").config == config


def test_yaml_carries_the_help_or_only_what_was_changed() -> None:
    text = to_yaml(Config())
    assert to_yaml(Config(), changed=True) == "\n"
    config = config_from_mapping({"experiment": {"k": 3}, "seeds": {"child_noise": [4, 9]}})
    assert yaml.safe_load(to_yaml(config, changed=True)) == {"experiment": {"k": 3}, "seeds": {"child_noise": [4, 9]}}
    assert "  # epochs that the parent trains before cloning [default 10; in epochs; at least 0]\n  k: 10\n" in text
    assert "\nexperiment:  # Parent, children, average (paper, Figure 1).\n" in text


def changed(key: Key) -> Config:
    """The default configuration with one other value, unchecked across fields."""
    value: Any = {bool: True, int: 77, float: 0.77, str: "other"}[key.scalar]
    section = getattr(Config(), key.section)
    other = dataclasses.replace(section, **{key.name: (value,) if key.many else value})
    return dataclasses.replace(Config(), **{key.section: other})


def test_hash_is_stable() -> None:
    """Fails when the hash of an old run would no longer be found: raise HASH_VERSION only on purpose."""
    assert config_hash(Config()) == GOLDEN_DEFAULT
    other = {"optimizer": {"learning_rate": 1e-3, "nesterov": True}, "schedule": {"drop_epochs": [5, 7]}}
    config = config_from_mapping({**other, "model": {"name": "resnet20"}, "experiment": {"momentum": "keep"}})
    assert config_hash(config) == GOLDEN_CHANGED


def test_hash_of_a_default_spelled_out_is_the_defaults() -> None:
    assert config_hash(config_from_mapping(dataclasses.asdict(Config()))) == config_hash(Config())
    assert config_hash(config_from_mapping({"seeds": {"child_noise": [1, 2]}})) == config_hash(Config())
    assert config_hash(config_from_mapping({"seeds": {"child_noise": [2, 1]}})) != config_hash(Config())


def test_a_key_added_later_changes_no_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """The schema without a key is the schema before the key was added."""
    before = config_hash(changed(KEYS["experiment.k"]))
    for path in KEYS:
        if path not in ("experiment.k", "seeds.child_noise"):
            monkeypatch.setattr(
                fastwi.config.write, "KEYS", {name: key for name, key in KEYS.items() if name != path}
            )
            assert config_hash(changed(KEYS["experiment.k"])) == before


def test_hash_changes_with_what_decides_the_result_and_nothing_else() -> None:
    no_result = {path for path in KEYS if path.startswith(("run.", "engine."))} - {"engine.precision"}
    no_result |= {"data.streaming", "data.decoder"}
    hashes = {path: config_hash(changed(key)) for path, key in KEYS.items()}
    assert {path for path, each in hashes.items() if each == config_hash(Config())} == no_result
    deciding = [each for path, each in hashes.items() if path not in no_result]
    assert len(set(deciding)) == len(deciding)


def test_a_digest_stands_for_the_datasets_path() -> None:
    elsewhere = config_from_mapping({"data": {"path": "/elsewhere"}})
    assert config_hash(elsewhere) != config_hash(Config())
    assert config_hash(elsewhere, "d1") == config_hash(Config(), "d1")
    weights = config_from_mapping({"model": {"weights": "a.pt"}})
    assert config_hash(weights) != config_hash(Config())
    assert config_hash(weights, "d1") == config_hash(Config(), "d1")
    assert len({config_hash(Config()), config_hash(Config(), "d1"), config_hash(Config(), "d2")}) == 3
