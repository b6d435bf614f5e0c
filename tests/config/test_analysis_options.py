"""The analysis section of a sweep file, and the command line of `python -m fastwi.analyze`."""

import dataclasses
from pathlib import Path

import pytest

from fastwi.cli import ShowAndExit
from fastwi.config.analysis import AnalysisOptions, analysis_problems, chosen_cells
from fastwi.config.analysisfile import AnalysisRequest, analysis_to_yaml, read_analysis_request
from fastwi.config.read import config_from_yaml
from fastwi.config.sweepfile import read_sweep_request, sweep_from_yaml
from fastwi.config.sweeplayers import ANALYSIS_OPTIONS, OPTIONS
from fastwi.errors import ConfigError

STUDIES = {"connectivity": "barriers", "plane": "the plane"}
FILE = """
axes: {experiment.k: [1, 8], experiment.s: [2, 4]}
sweep: {directory: out}
analysis:
  alphas: 11
  low: -0.5
  cells: ["8,4", "1, 2"]
  treatments: [recomputed]
"""


def read(*argv: str) -> AnalysisRequest:
    return read_analysis_request(argv, STUDIES)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "grid.yaml").write_text(FILE)
    return tmp_path / "grid.yaml"


def test_file_base_and_flags(file: Path) -> None:
    request = read("plane", "--config", str(file))
    wanted = AnalysisOptions(alphas=11, low=-0.5, cells=("8,4", "1, 2"), treatments=("recomputed",))
    assert request.options == wanted
    assert chosen_cells(request.options) == ((8, 4), (1, 2))
    assert (request.name, request.sweep, request.directory) == ("plane", "grid", Path("out/grid/analyses/plane"))
    top = file.parent / "top.yaml"
    top.write_text("base: grid.yaml\nanalysis: {alphas: 5, pairs: 2}\n")
    request = read("plane", "--config", str(top), "--analysis.low=-0.25", "--analysis.directory", "x")
    assert request.options == dataclasses.replace(wanted, alphas=5, pairs=2, low=-0.25, directory="x")
    assert request.directory == Path("x/analyses/plane")
    assert [axis.values for axis in request.spec.axes] == [(1, 8), (2, 4)]
    assert read("plane", "--axes.experiment.k", "3", "--sweep.name", "a", "--sweep.parents", "0..2").sweep == "a"


@pytest.mark.parametrize(
    ("text", "cells"),
    [("8,4", ("8,4",)), ("8,4; 1,2", ("8,4", "1,2")), ('["8,4", "1,2"]', ("8,4", "1,2")), ("", ())],
)
def test_cells_on_the_command_line(file: Path, text: str, cells: tuple[str, ...]) -> None:
    assert read("plane", "--config", str(file), f"--analysis.cells={text}").options.cells == cells


def test_what_is_printed_reads_back(file: Path) -> None:
    request = read("plane", "--config", str(file), "--analysis.pairs", "3")
    again = file.parent / "again.yaml"
    again.write_text(analysis_to_yaml(request))
    found = read("plane", "--config", str(again))
    assert (found.spec, found.options) == (request.spec, request.options)


def test_a_sweep_ignores_the_section_but_checks_it(file: Path) -> None:
    request = read_sweep_request(["--config", str(file)])
    assert request.spec == sweep_from_yaml(FILE.partition("analysis:")[0])
    assert sweep_from_yaml(FILE) == request.spec
    # A sweep of part of the grid leaves cells without points: that is the analysis's business.
    assert len(read_sweep_request(["--config", str(file), "--axes.experiment.k", "1"]).spec.axes) == 2
    for text, message in {
        "analysis:\n  alpha: 3": "line 2: analysis: unknown key 'alpha'; did you mean alphas?",
        "analysis: {alphas: 1}": "line 1: analysis.alphas: 1 is out of range; give a whole number, from 2 to 10000",
        "analysis: 3": "line 1: analysis: a section needs keys below it; add some or remove it",
        "analysis: {}\nanalysis: {}": "line 2: duplicate section 'analysis', given on line 1 already; remove one",
        "sweep: {splits: 3}": "line 1: sweep: unknown key 'splits'; did you mean analysis.splits?",
    }.items():
        with pytest.raises(ConfigError) as caught:
            sweep_from_yaml(text)
        assert str(caught.value) == f"sweep {message}"
    with pytest.raises(ConfigError) as caught:
        read_sweep_request(["--analysis.alphas", "3"])
    assert str(caught.value) == "--analysis.alphas: belongs to python -m fastwi.analyze; leave it out here"
    with pytest.raises(ConfigError, match="analysis: belongs to a sweep"):
        config_from_yaml("analysis: {}")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("conectivity", "'conectivity': unknown study; did you mean connectivity?"),
        ("x", "'x': unknown study; valid: connectivity, plane"),
        ("", "the study's name is missing; write it first, one of connectivity, plane"),
        ("plane connectivity", "'connectivity': stray argument; use --section.key VALUE"),
        ("plane --analysis.alpha 3", "--analysis.alpha: unknown flag; did you mean --analysis.alphas?"),
        (
            "plane --analysis.alphas 3.5",
            "--analysis.alphas: 3.5 is not a whole number; give a whole number, from 2 to",
        ),
        ("plane --analysis.low 1", "--analysis.low: 1 is not below analysis.high, 1; lower it"),
        (
            "plane --analysis.treatments own",
            "--analysis.treatments: 'own' is not a choice; valid: averaged, recomputed",
        ),
        ("plane --analysis.treatments=", "--analysis.treatments: is empty; give averaged, recomputed, or both"),
        ("plane --analysis.treatments averaged,averaged", "--analysis.treatments: 'averaged' is given twice; remove"),
        ("plane --analysis.cells 8", "--analysis.cells: '8' is no cell; write k,s in quotes, such as \"8,4\""),
        ("plane --analysis.cells 2,3", "--analysis.cells: '2,3' is no cell of this sweep; it has 10,10"),
        ("plane --shard 1/2", "--shard: unknown flag; "),
        ("plane --sweep.children 3", "--sweep.children: 3 do not divide into disjoint tuples of 2"),
    ],
)
def test_refusals(argv: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(*argv.split())
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_problem_of_the_file_names_its_line(file: Path) -> None:
    file.write_text(FILE.replace("1, 2", "1,3"))
    with pytest.raises(ConfigError) as caught:
        read("plane", "--config", str(file))
    assert str(caught.value) == (
        f"{file} line 7: analysis.cells: '1,3' is no cell of this sweep; it has 1,2; 1,4; 8,2; 8,4"
    )


def test_all_problems_come_at_once(file: Path) -> None:
    file.write_text(FILE + "  splits: x\n")
    with pytest.raises(ConfigError) as caught:
        read("plan", "--config", str(file), "--wrong", "3")
    assert [line.partition(";")[0] for line in str(caught.value).splitlines()] == [
        "'plan': unknown study",
        "--wrong: unknown flag",
        f"{file} line 9: analysis.splits: 'x' is not a whole number",
    ]


def test_list_needs_no_study() -> None:
    assert read("--list").list_only
    assert not read("plane").list_only


def test_help_has_every_option_with_default_and_unit() -> None:
    with pytest.raises(ShowAndExit) as shown:
        read("--help")
    for key in ANALYSIS_OPTIONS.values():
        assert f"--{key.path} " in shown.value.text
        assert " ".join(key.help.split()) in " ".join(shown.value.text.split())
    assert "[default 30; from 2 to 10000]" in shown.value.text
    assert "in images" in shown.value.text
    for name, text in STUDIES.items():
        assert any(line.split(maxsplit=1) == [name, text] for line in shown.value.text.splitlines())


def test_the_two_sections_share_no_meaning() -> None:
    assert not ANALYSIS_OPTIONS.keys() & OPTIONS.keys()
    assert not analysis_problems(AnalysisOptions(), sweep_from_yaml("axes: {}"))


def test_the_config_for_barriers() -> None:
    path = Path(__file__).parents[2] / "configs" / "barrier.yaml"
    request = read("connectivity", "--config", str(path))
    assert request.options.alphas == 30
    assert request.spec.options.tuple_size == 2
    assert len(request.spec.options.parents) >= 5
    for command in ("fastwi.sweep", "fastwi.analyze connectivity"):
        assert f"#   python -m {command} --config configs/barrier.yaml\n" in path.read_text()
