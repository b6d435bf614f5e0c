"""Whatever becomes of a sweep file, a request or clean lines come out; what is written reads back exactly."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastwi.cli import ShowAndExit
from fastwi.config.read import Request, read_sweep_request, sweep_from_yaml
from fastwi.config.schema import KEYS, Config
from fastwi.config.sweep import OPTIONS, Axis, SweepOptions, SweepSpec
from fastwi.config.write import sweep_to_yaml
from fastwi.errors import ConfigError

WHOLE_FILE = """base: base.yaml
data: {train_images: 10000}
experiment: {after: 2}
axes:
  experiment.k: [1, 2, 4, 8]
  experiment.s: 1..4
  augment.flip: 0.05..0.2 step 0.05
  schedule.drop_epochs: [[80, 120], [100]]
  optimizer.nesterov: [true, false]
sweep:
  parents: 0..3
  children: 8
  alphas: [0, 0.5]
  measure: [own, recomputed]
"""
PIECES = (
    *(
        "[",
        "]",
        "{",
        "}",
        ":",
        ",",
        "..",
        " step ",
        "-",
        "1",
        "0.5",
        "1e99",
        "x",
        "'",
        '"',
        "&a ",
        "*a",
        "!!int ",
        "\t",
    ),
    *(
        "\n",
        "\n  ",
        "#",
        "null",
        "true",
        ".inf",
        "\\",
        "base",
        "axes",
        "sweep",
        "experiment.k",
        "seeds.init",
        "a.yaml",
    ),
    *("\0", "\ud800", "\u2028", "<<", "|", ">", "999999999999999999999", "---\n", "all"),
)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """The sweep file with pieces cut out, put in and moved."""
    text = WHOLE_FILE
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 2, 5, 20, 80])))
        put = draw(st.one_of(st.sampled_from(PIECES), st.text(max_size=3), st.just("")))
        cut = text[start:end]
        text = text[:start] + put + text[end:]
        if draw(st.booleans()):
            place = draw(st.integers(0, len(text)))
            text = text[:place] + cut + text[place:]
    return text


TOKEN = st.one_of(
    st.builds(
        "--{}={}".format,
        st.sampled_from([*KEYS, *OPTIONS, *(f"axes.{path}" for path in KEYS), "shard", "config"]),
        st.one_of(
            st.sampled_from(["1..3", "[1,2]", "[[1],[2]]", "[", "1/2", "", "a,b", "0..1 step .1"]),
            st.text(max_size=5),
        ),
    ),
    st.sampled_from(["--json", "--dry-run", "--axes", "--axes.", "--sweep", "--help", "-h", "--version", "--shard"]),
    st.text(max_size=6),
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fuzz")
    (directory / "base.yaml").write_text("experiment: {k: 3}\n")
    return directory / "a.yaml"


@settings(max_examples=200, deadline=None)
@given(mutated(), st.lists(TOKEN, max_size=3))
def test_any_sweep_file_and_command_line(file: Path, text: str, argv: list[str]) -> None:
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    for arguments in (["--config", str(file)], ["--config", str(file), *argv], argv):
        try:
            request = read_sweep_request(arguments)
        except ConfigError as refusal:
            for line in str(refusal).split("\n"):
                assert line.isprintable()
                assert ":" in line
        except ShowAndExit:
            assert {"--help", "-h", "--version"} & set(arguments)
        else:
            assert isinstance(request, Request)
            assert request.sweep
            assert sweep_from_yaml(sweep_to_yaml(request.spec)) == request.spec


def test_the_file_is_good_before_it_is_mutated(file: Path) -> None:
    file.write_text(WHOLE_FILE)
    assert len(read_sweep_request(["--config", str(file)]).spec.axes) == 5


FINITE = st.floats(allow_nan=False, allow_infinity=False).map(lambda value: value + 0.0)  # no -0.0
WORDS = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=8)


@st.composite
def specs(draw: st.DrawFn) -> SweepSpec:
    """A sweep that passes every check, with any value where a check leaves it free."""
    axes = {
        "experiment.k": st.lists(st.integers(0, 900_000), min_size=1, max_size=4, unique=True),
        "experiment.s": st.integers(0, 50).map(lambda first: list(range(first, first + 12))),
        "optimizer.learning_rate": st.lists(FINITE.map(abs), min_size=1, max_size=4, unique=True),
        "data.path": st.lists(WORDS, min_size=1, max_size=3, unique=True),
        "optimizer.nesterov": st.just([True, False]),
        "schedule.drop_epochs": st.lists(
            st.sets(st.integers(1, 10**9), max_size=3).map(lambda each: tuple(sorted(each))),
            min_size=1,
            max_size=3,
            unique=True,
        ),
    }
    paths = draw(st.permutations(list(axes)))[: draw(st.integers(0, 4))]
    size = draw(st.integers(2, 4))
    options = SweepOptions(
        name=draw(st.sampled_from(["", "grid", "yes", "2024"])),
        directory=draw(WORDS),
        store=draw(WORDS),
        parents=tuple(draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=12, unique=True))),
        children=size * draw(st.integers(1, 5)),
        tuple_size=size,
        tuples=draw(st.sampled_from(["disjoint", "all"])),
        alphas=tuple(draw(st.lists(FINITE, max_size=3, unique=True))) if size == 2 else (),
        measure=draw(st.sampled_from([("own",), ("recomputed", "own")])),
        executor=draw(st.sampled_from(["local", "ray"])),
        memory_GiB=draw(st.floats(1e-300, 1e300)),
    )
    return SweepSpec(Config(), tuple(Axis(path, tuple(draw(axes[path]))) for path in paths), options)


@settings(max_examples=60, deadline=None)
@given(specs())
def test_everything_written_reads_back_exactly(spec: SweepSpec) -> None:
    text = sweep_to_yaml(spec)
    assert text.isascii()
    assert sweep_from_yaml(text) == spec
