"""Whatever the input, a configuration or a refusal in clean lines comes out; what is written reads back exactly."""

from collections.abc import Callable
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fastwi.config.read import config_from_mapping, config_from_yaml, sweep_from_yaml
from fastwi.config.schema import KEYS, SECTIONS, Config
from fastwi.config.sweep import Axis, SweepOptions, SweepSpec
from fastwi.config.write import sweep_to_yaml, to_yaml
from fastwi.errors import ConfigError

LEAF = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(), st.binary(max_size=4),
    st.sampled_from(["auto", "1e-4", "010", "1:30", "nan", ".inf", "~", "=", "<<", "*a", "&a b", "!x y"]),
)  # fmt: skip
NAME = st.one_of(st.sampled_from(sorted({key.name for key in KEYS.values()})), st.text(max_size=6))
VALUE = st.recursive(
    LEAF,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAME, inner, max_size=2)),
    max_leaves=5,
)
SECTION = st.one_of(st.sampled_from([*SECTIONS, *KEYS]), st.text(max_size=6))
MAPPING = st.dictionaries(SECTION, st.one_of(VALUE, st.dictionaries(NAME, VALUE, max_size=4)), max_size=4)
# What YAML, names, ranges and lists are made of.
PIECES = (
    *"[]{}:,-'\"#|>\t\\\0\ud800\u2028", "..", " step ", "1", "0.5", "1e99", "x", "&a ", "*a", "!!int ", "\n", "\n  ",
    "null", "true", ".inf", "base", "axes", "sweep", "experiment.k", "k", "<<", "9" * 21, "---\n", "all", "%YAML",
    *SECTIONS,
)  # fmt: skip


def clean(read: Callable[..., Any], *arguments: object) -> Any:
    """What `read` makes of the arguments; None where it refuses them, in lines that each name something."""
    try:
        return read(*arguments)
    except ConfigError as refusal:
        for line in str(refusal).split("\n"):
            assert line.isprintable()
            assert ":" in line
    return None


@settings(max_examples=150, deadline=None)
@given(MAPPING)
def test_any_mapping(mapping: dict[str, Any]) -> None:
    assert isinstance(clean(config_from_mapping, mapping), (Config, type(None)))


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.lists(st.sampled_from(PIECES), max_size=25).map("".join), MAPPING.map(yaml.safe_dump)))
def test_any_yaml(text: str) -> None:
    config = clean(config_from_yaml, text)
    assert config is None or config_from_yaml(to_yaml(config)) == config
    clean(sweep_from_yaml, text)


FINITE = st.floats(allow_nan=False, allow_infinity=False).map(lambda value: value + 0.0)  # no -0.0
WORDS = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=8)


@st.composite
def specs(draw: st.DrawFn) -> SweepSpec:
    """A sweep that passes every check, with any value where a check leaves it free."""

    def some(values: st.SearchStrategy[Any], least: int = 1) -> tuple[Any, ...]:
        return tuple(draw(st.lists(values, min_size=least, max_size=4, unique=True)))

    drops = st.sets(st.integers(1, 10**9), max_size=3).map(lambda each: tuple(sorted(each)))
    axes = {
        "experiment.k": some(st.integers(1, 60_000)), "optimizer.learning_rate": some(FINITE.map(abs)),
        "data.path": some(WORDS), "schedule.drop_epochs": some(drops),
        "experiment.continue_children": some(st.booleans()),
    }  # fmt: skip
    paths = draw(st.permutations(list(axes)))[: draw(st.integers(0, 4))]
    size = draw(st.integers(2, 4))
    options = SweepOptions(
        name=draw(st.sampled_from(["", "grid", "yes", "2024"])),
        directory=draw(WORDS),
        store=draw(WORDS),
        parents=some(st.integers(0, 2**31 - 1)),
        children=size * draw(st.integers(1, 2)),
        tuple_size=size,
        tuples=draw(st.sampled_from(["disjoint", "all"])),
        alphas=some(FINITE, 0) if size == 2 else (),
        measure=draw(st.sampled_from([("own",), ("recomputed", "own")])),
        executor=draw(st.sampled_from(["local", "ray"])),
        memory_GiB=draw(st.floats(1e-300, 1e300)),
    )
    return SweepSpec(Config(), tuple(Axis(path, axes[path]) for path in paths), options)


@settings(max_examples=60, deadline=None)
@given(specs())
def test_every_sweep_that_is_written_reads_back_exactly(spec: SweepSpec) -> None:
    text = sweep_to_yaml(spec)
    assert text.isascii()
    assert sweep_from_yaml(text) == spec
    assert sweep_to_yaml(sweep_from_yaml(text)) == text


def test_whole_numbers_in_a_row_are_written_as_a_range() -> None:
    axes = (Axis("experiment.k", tuple(range(3, 30))), Axis("augment.flip", (0.05, 0.1, 0.15)))
    spec = SweepSpec(Config(), axes, SweepOptions(parents=(*range(8), 2**31 - 1)))
    text = sweep_to_yaml(spec)
    assert "  experiment.k: 3..29\n  augment.flip: [0.05, 0.1, 0.15]\n" in text
    assert "  parents: [0, 1, 2, 3, 4, 5, 6, 7, 2147483647]\n" in text
    assert "  # children of each parent at each k [default 2; from 2 to 100000]\n  children: 2\n" in text
