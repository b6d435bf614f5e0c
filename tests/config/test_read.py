"""What files, command lines and mappings mean, and which layer wins."""

import dataclasses
import itertools
import os
from pathlib import Path

import pytest
from mappings import config_from_mapping

from fastwi.cli import ShowAndExit
from fastwi.config.layers import shipped_configs
from fastwi.config.read import (
    Flags,
    Request,
    config_from_yaml,
    read_analysis_request,
    read_config,
    read_request,
    read_sweep_request,
    sweep_from_yaml,
)
from fastwi.config.schema import Config
from fastwi.config.sweep import (
    ALL_SECTIONS,
    AnalysisOptions,
    SweepOptions,
    SweepSpec,
    chosen_cells,
    count_points,
)
from fastwi.config.write import sweep_to_yaml
from fastwi.version import __version__

CONFIGS = Path(__file__).parents[2] / "configs"
STUDIES = {"connectivity": "barriers", "plane": "the plane"}
FULL = """
base: base.yaml
data: {train_images: 10000}
experiment:
  after: 2
axes:
  experiment.k: [1, 2, 4, 8]
  experiment.s: 1..4
  experiment.recompute_images: '0..10 step 5'
  augment.flip: 0.05..0.2 step 0.05
  schedule.drop_epochs: [[80, 120], [100], []]
  optimizer.nesterov:
  - true
  - no
  engine.precision: [fp32, bf16]
  data.path: [data/a, data/b..c]
sweep:
  name: grid
  parents: 0..3
  children: 8
  alphas: 0..1 step 0.25
  measure: [own]
"""
ANALYSED = """
axes: {experiment.k: [1, 8], experiment.s: [2, 4]}
sweep: {directory: out}
analysis:
  alphas: 11
  low: -0.5
  cells: ["8,4", "1, 2"]
  treatments: [recomputed]
"""


def read(*argv: str) -> Config:
    return read_request(argv, "fastwi.train").config


def sweep(*argv: str) -> Request:
    return read_sweep_request(argv)


def analyze(*argv: str) -> Request:
    return read_analysis_request(argv, STUDIES)


def axes(request: Request) -> dict[str, tuple]:
    return dict(request.spec.axes)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text("experiment: {k: 7, s: 5, after: 9}\noptimizer: {batch_size: 64}\n")
    (tmp_path / "full.yaml").write_text(FULL)
    (tmp_path / "grid.yaml").write_text(ANALYSED)
    return tmp_path


def test_nothing_given_is_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("experiment.k", "EXPERIMENT.K", "experiment.k.x", "experiment"):
        monkeypatch.setenv(name, "99")
    assert read("--experiment.k", "3").experiment.k == 3
    request = read_request([], "fastwi.train")
    assert (request.config, request.config_file, request.flags) == (Config(), None, Flags())
    swept = sweep()
    assert (swept.spec, swept.sweep, swept.flags.part) == (SweepSpec(Config()), "sweep", None)
    assert count_points(swept.spec) == 1


def test_switches_and_file_reach_the_request(directory: Path) -> None:
    argv = ["--json", "--dry-run", f"--config={directory / 'base.yaml'}"]
    request = read_request(argv, "fastwi.train")
    assert (request.config_file, request.flags.dry_run, request.flags.json) == (directory / "base.yaml", True, True)
    assert request.config.experiment.k == 7
    with pytest.raises(ShowAndExit) as shown:
        read_request([*argv, "--print-config"], "fastwi.train")
    assert config_from_yaml(str(shown.value)) == request.config
    swept = sweep(*argv, "--shard", "2/4")
    assert (swept.flags.dry_run, swept.flags.json, swept.flags.part, swept.sweep) == (True, True, (2, 4), "base")
    assert sweep("--shard=1/1").flags.part == (1, 1)
    drawing = read_request([*argv, "--figures", "paper"], "fastwi.train", draws=True)
    drawn = drawing, sweep("--figures=paper"), request
    assert [each.flags.figures for each in drawn] == ["paper", "paper", "screen"]


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("experiment: {k: 4, s: 5}\noptimizer.nesterov: true\nschedule: {drop_epochs: [3, 9]}\n")
    before = read("--experiment.k", "6", "--config", str(file))
    # Values that Python calls false override too.
    after = read("--config", str(file), "--optimizer.nesterov", "false", "--schedule.drop_epochs=")
    assert (before.experiment.k, before.experiment.s, before.experiment.after) == (6, 5, 10)
    assert (before.optimizer.nesterov, before.schedule.drop_epochs) == (True, (3, 9))
    assert (after.experiment.k, after.optimizer.nesterov, after.schedule.drop_epochs) == (4, False, ())


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [
        *(("optimizer.nesterov", word, True) for word in ("true", "True", "yes", "on", "1")),
        *(("optimizer.nesterov", word, False) for word in ("false", "FALSE", "no", "off", "0")),
        ("optimizer.learning_rate", "1e-4", 1e-4),
        ("optimizer.learning_rate", "1E+2", 100.0),
        ("optimizer.learning_rate", "3", 3.0),
        ("optimizer.learning_rate", ".5", 0.5),
        ("optimizer.learning_rate", "-0.0", 0.0),
        ("schedule.drop_epochs", "80", (80,)),
        ("schedule.drop_epochs", "80, 120", (80, 120)),
        ("schedule.drop_epochs", "[80, 120]", (80, 120)),
        ("schedule.drop_epochs", "8..10", (8, 9, 10)),
        ("experiment.weights", "1e0,0", (1.0, 0.0)),
        ("run.name", "--odd", "--odd"),
        ("run.name", "2024", "2024"),
        ("run.name", "", ""),
    ],
)
def test_a_value_on_the_command_line(flag: str, text: str, value: object) -> None:
    section, _, name = flag.partition(".")
    assert repr(getattr(getattr(read(f"--{flag}={text}"), section), name)) == repr(value)


def test_values_in_yaml_and_in_mappings() -> None:
    assert repr(config_from_yaml("optimizer: {learning_rate: 1e-4}").optimizer.learning_rate) == "0.0001"
    assert config_from_yaml("schedule: {drop_epochs: []}").schedule.drop_epochs == ()
    assert config_from_yaml("experiment: {weights: [1, 0]}").experiment.weights == (1.0, 0.0)
    for text, quoted in itertools.product(("2024", "1e3", "yes"), ("'{}'", '"{}"', "|-\n    {}", ">-\n    {}")):
        assert config_from_yaml(f"run:\n  name: {quoted.format(text)}\n").run.name == text
    for word, means in {"yes": True, "on": True, "True": True, "ON": True, "no": False, "Off": False}.items():
        assert config_from_yaml(f"optimizer: {{nesterov: {word}}}").optimizer.nesterov is means
    mapping = {"schedule": {"drop_epochs": range(3, 5)}, "data.path": Path("a/b")}
    config = config_from_mapping(mapping)
    assert (config.schedule.drop_epochs, config.data.path) == ((3, 4), "a/b")


def test_every_form_of_a_sweep_file(directory: Path) -> None:
    request = sweep("--config", str(directory / "full.yaml"))
    wanted = {"data.train_images": 10000, "experiment": {"k": 7, "s": 5, "after": 2}, "optimizer": {"batch_size": 64}}
    assert request.spec.base == config_from_mapping(wanted)
    assert axes(request) == {
        "experiment.k": (1, 2, 4, 8),
        "experiment.s": (1, 2, 3, 4),
        "experiment.recompute_images": (0, 5, 10),
        "augment.flip": (0.05, 0.1, 0.15, 0.2),
        "schedule.drop_epochs": ((80, 120), (100,), ()),
        "optimizer.nesterov": (True, False),
        "engine.precision": ("fp32", "bf16"),
        "data.path": ("data/a", "data/b..c"),
    }
    assert request.spec.options == SweepOptions(
        name="grid", parents=(0, 1, 2, 3), children=8, alphas=(0.0, 0.25, 0.5, 0.75, 1.0), measure=("own",)
    )
    assert count_points(request.spec) == 4 * 4 * 3 * 4 * 3 * 2 * 2 * 2 * 4 * 4 * 5
    assert (request.config_file, request.sweep) == (directory / "full.yaml", "grid")
    assert read_config(request.spec, sweep=True).spec == request.spec


def test_flags_win_over_the_sweep_file(directory: Path) -> None:
    request = sweep(
        *("--axes.experiment.k", "[3, 5]", "--config", str(directory / "full.yaml"), "--sweep.parents=5,7"),
        *("--axes.augment.padding", "2..4", "--sweep.alphas", "", "--optimizer.batch_size", "32"),
        *("--axes.schedule.drop_epochs", "[[9], []]", "--axes.data.path", "x,y..z", "--sweep.name", "other"),
        *("--seeds.statistics_noise", "5"),
    )
    before, found = axes(sweep("--config", str(directory / "full.yaml"))), axes(request)
    assert list(found) == [*before, "augment.padding"]  # an overridden axis keeps its place
    assert (found["experiment.k"], found["augment.padding"]) == ((3, 5), (2, 3, 4))
    assert (found["schedule.drop_epochs"], found["data.path"]) == (((9,), ()), ("x", "y..z"))
    assert (request.spec.options.parents, request.spec.options.alphas) == ((5, 7), ())
    assert (request.spec.base.optimizer.batch_size, request.spec.base.seeds.statistics_noise) == (32, 5)
    assert (request.spec.options.children, request.sweep) == (8, "other")


@pytest.mark.parametrize("text", ["0,2,4", "[0, 2, 4]", "0..4 step 2", "0, 2 ,4"])
def test_lists_on_the_command_line(text: str) -> None:
    assert sweep("--sweep.parents", text).spec.options.parents == (0, 2, 4)
    assert axes(sweep("--axes.experiment.k", text)) == {"experiment.k": (0, 2, 4)}
    floats = axes(sweep(f"--axes.optimizer.learning_rate={text}"))["optimizer.learning_rate"]
    assert repr(floats) == "(0.0, 2.0, 4.0)"


def test_the_base_need_not_be_possible_where_every_cell_is() -> None:
    assert len(sweep("--data.train_images", "100", "--axes.optimizer.batch_size", "10,100").spec.axes) == 1


def test_bases_chain_and_the_nearer_file_wins(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "root.yaml").write_text(
        "experiment: {k: 1, s: 1, after: 1}\naxes: {experiment.k: [1, 2], augment.flip: [0, 1]}\nsweep: {children: 6}"
    )
    (tmp_path / "inner" / "middle.yaml").write_text(
        "base: root.yaml\nexperiment: {s: 2, after: 2}\nsweep: {parents: [1]}"
    )
    (tmp_path / "leaf.yaml").write_text("base: inner/middle.yaml\nexperiment: {after: 3}\naxes: {experiment.k: [5]}")
    request = sweep("--config", str(tmp_path / "leaf.yaml"))
    experiment = request.spec.base.experiment
    assert (experiment.k, experiment.s, experiment.after) == (1, 2, 3)
    assert axes(request) == {"experiment.k": (5,), "augment.flip": (0.0, 1.0)}
    assert (request.spec.options.children, request.spec.options.parents, request.sweep) == (6, (1,), "leaf")
    text = (tmp_path / "leaf.yaml").read_text()
    assert sweep_from_yaml(text, directory=tmp_path) == request.spec
    from_program = read_config({"base": str(tmp_path / "leaf.yaml")}, sweep=True)
    assert (from_program.spec, from_program.sweep) == (request.spec, "sweep")


@pytest.mark.parametrize("name", ["a\nb.yaml", os.fsdecode(b"a\xe9.yaml")])
def test_a_config_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text("experiment: {k: 7}\nmodel: {}\n")  # a section may be empty
    request = read_request(["--config", str(file)], "fastwi.train")
    assert (request.config.experiment.k, request.config_file) == (7, file)
    assert read_config(file) == request


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.name)
def test_every_shipped_config_is_read_by_its_name_and_as_a_base(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text(f"base: fastwi:{file.stem}\n")
    monkeypatch.chdir(tmp_path)
    request = sweep("--config", str(file))
    shipped = shipped_configs()[f"fastwi:{file.stem}"]
    assert shipped.samefile(file)
    assert sweep("--config", f"fastwi:{file.stem}") == dataclasses.replace(request, config_file=shipped)
    assert sweep("--config", "mine.yaml").spec == request.spec
    if "\nbase:" not in file.read_text() and not request.spec.axes:
        assert read("--config", f"fastwi:{file.stem}") == request.spec.base


def test_shipped_configs() -> None:
    assert list(shipped_configs()) == sorted(f"fastwi:{path.stem}" for path in CONFIGS.iterdir())
    assert read("--config", "fastwi:fig1_cifar10_resnet20") == Config()  # the paper's protocol
    request = analyze("connectivity", "--config", "fastwi:barrier")
    assert (request.options.alphas, request.spec.options.tuple_size, request.sweep) == (30, 2, "barrier")
    assert len(request.spec.options.parents) >= 5
    for command in ("fastwi.sweep", "fastwi.analyze connectivity"):
        assert f"#   python -m {command} --config configs/barrier.yaml\n" in (CONFIGS / "barrier.yaml").read_text()


def test_the_options_of_a_study(directory: Path) -> None:
    file = str(directory / "grid.yaml")
    request = analyze("plane", "--config", file)
    wanted = AnalysisOptions(alphas=11, low=-0.5, cells=("8,4", "1, 2"), treatments=("recomputed",))
    assert (request.options, chosen_cells(request.options)) == (wanted, ((8, 4), (1, 2)))
    mixed = AnalysisOptions(cells=("8ep, 1ep2it", "500it,3"))
    assert chosen_cells(mixed) == ((8, "1ep2it"), ("500it", 3))
    assert (request.study, request.sweep, request.directory) == ("plane", "grid", Path("out/grid/analyses/plane"))
    (directory / "top.yaml").write_text("base: grid.yaml\nanalysis: {alphas: 5, pairs: 2}\n")
    argv = ["plane", "--config", str(directory / "top.yaml"), "--analysis.low=-0.25", "--analysis.directory", "x"]
    request = analyze(*argv)
    assert request.options == dataclasses.replace(wanted, alphas=5, pairs=2, low=-0.25, directory="x")
    assert request.directory == Path("x/analyses/plane")
    (directory / "again.yaml").write_text(sweep_to_yaml(request.spec, request.options))
    again = analyze("plane", "--config", str(directory / "again.yaml"))
    assert (again.spec, again.options) == (request.spec, request.options)
    assert not analyze("--list").study
    assert analyze("plane", "--axes.experiment.k", "3", "--sweep.name", "a").sweep == "a"
    # A sweep has no other use for the section; one of part of the grid may lack a cell.
    assert sweep("--config", file).spec == sweep_from_yaml(ANALYSED.partition("analysis:")[0])
    assert len(sweep("--config", file, "--axes.experiment.k", "1").spec.axes) == 2


@pytest.mark.parametrize(
    ("text", "cells"),
    [("8,4", ("8,4",)), ("8,4; 1,2", ("8,4", "1,2")), ('["8,4", "1,2"]', ("8,4", "1,2")), ("", ())],
)
def test_cells_on_the_command_line(directory: Path, text: str, cells: tuple[str, ...]) -> None:
    file = str(directory / "grid.yaml")
    assert analyze("plane", "--config", file, f"--analysis.cells={text}").options.cells == cells


@pytest.mark.parametrize("reader", [read, sweep, analyze])
def test_help_and_version_win_over_mistakes(reader) -> None:
    def shown(*argv: str) -> str:
        with pytest.raises(ShowAndExit) as caught:
            reader("--nonsense", *argv)
        assert str(caught.value).isascii()
        return str(caught.value)

    assert shown("--version") == f"fastwi {__version__}"
    assert shown("-h") == shown("--help")
    assert shown("--help").startswith("usage: python -m fastwi.")
    assert len(shown("--help").splitlines()) <= 75
    assert "\n\n".join(shown("--help", section) for section in ALL_SECTIONS) == shown("--help", "all")
    for line in (
        "epochs that the parent trains before cloning [default 10; in epochs, or as 10ep50it; at least 0]\n  k: 10\n",
        '[default reset; one of reset, average, keep]\n  momentum: "reset"\n',
        "  # times at which the rate is multiplied [default 80,120; in epochs, or as 10ep50it; at least 1]\n",
    ):
        assert line in shown("--help", "all")
