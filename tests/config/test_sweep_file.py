"""What a sweep file and its command line say, and which layer wins."""

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

import fastwi.config.sweepfile
from fastwi.cli import ShowAndExit
from fastwi.config.read import config_from_mapping
from fastwi.config.schema import Config
from fastwi.config.sweep import Axis, SweepOptions, SweepSpec
from fastwi.config.sweepcheck import check_sweep, count_points
from fastwi.config.sweepfile import SweepRequest, read_sweep_request, sweep_from_yaml, sweep_name
from fastwi.config.sweephelp import SAMPLE
from fastwi.config.sweeplayers import OPTIONS
from fastwi.config.sweeppoints import AVERAGE_SEEDS, SEEDS_A_PARENT, child_tuples, points, shard_of
from fastwi.config.sweepwrite import sweep_to_yaml
from fastwi.errors import ConfigError
from fastwi.version import __version__

CONFIGS = Path(__file__).parents[2] / "configs"
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


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text("experiment: {k: 7, s: 5, after: 9}\noptimizer: {batch_size: 64}\n")
    (tmp_path / "full.yaml").write_text(FULL)
    return tmp_path


def read(*argv: str) -> SweepRequest:
    return read_sweep_request(argv)


def axes(request: SweepRequest) -> dict[str, tuple]:
    return {axis.path: axis.values for axis in request.spec.axes}


def test_every_form_of_a_file(directory: Path) -> None:
    request = read("--config", str(directory / "full.yaml"))
    wanted = {
        "data": {"train_images": 10000},
        "experiment": {"k": 7, "s": 5, "after": 2},
        "optimizer": {"batch_size": 64},
    }
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
    assert request.config_file == directory / "full.yaml"
    assert (request.dry_run, request.json, request.shard) == (False, False, None)


def test_nothing_given_is_one_cell_of_the_defaults() -> None:
    request = read()
    assert request.spec == SweepSpec(Config())
    assert count_points(request.spec) == 1
    assert sweep_name(request) == "sweep"


def test_switches_and_shard() -> None:
    request = read("--json", "--dry-run", "--shard", "2/4")
    assert (request.dry_run, request.json, request.shard) == (True, True, (2, 4))
    assert read("--shard=1/1").shard == (1, 1)


def test_flags_win_over_the_file(directory: Path) -> None:
    request = read(
        *("--axes.experiment.k", "[3, 5]", "--config", str(directory / "full.yaml"), "--sweep.parents=5,7"),
        *("--axes.augment.padding", "2..4", "--sweep.alphas", "", "--optimizer.batch_size", "32"),
        *("--axes.schedule.drop_epochs", "[[9], []]", "--axes.data.path", "x,y..z", "--sweep.measure", "own"),
    )
    before = axes(read("--config", str(directory / "full.yaml")))
    found = axes(request)
    assert list(found) == [*before, "augment.padding"]  # an overridden axis keeps its place
    assert (found["experiment.k"], found["augment.padding"]) == ((3, 5), (2, 3, 4))
    assert (found["schedule.drop_epochs"], found["data.path"]) == (((9,), ()), ("x", "y..z"))
    assert (request.spec.options.parents, request.spec.options.alphas) == ((5, 7), ())
    assert request.spec.base.optimizer.batch_size == 32
    assert request.spec.options.children == 8


@pytest.mark.parametrize("text", ["0,2,4", "[0, 2, 4]", "0..4 step 2", "0, 2 ,4"])
def test_lists_on_the_command_line(text: str) -> None:
    assert read("--sweep.parents", text).spec.options.parents == (0, 2, 4)
    assert axes(read("--axes.experiment.k", text)) == {"experiment.k": (0, 2, 4)}
    floats = axes(read(f"--axes.optimizer.learning_rate={text}"))["optimizer.learning_rate"]
    assert floats == (0.0, 2.0, 4.0)
    assert {type(each) for each in floats} == {float}


def test_statistics_noise_is_the_bases_and_may_be_overridden() -> None:
    assert read("--seeds.statistics_noise", "5").spec.base.seeds.statistics_noise == 5


def test_the_base_need_not_be_possible_where_every_cell_is() -> None:
    argv = ["--data.train_images", "100", "--axes.optimizer.batch_size", "10,100"]
    assert [axis.values for axis in read(*argv).spec.axes] == [(10, 100)]
    with pytest.raises(ConfigError, match=r"^axes at optimizer.batch_size = 101: optimizer.batch_size: 101 is more"):
        read(*argv[:-1], "10,101")


def test_bases_chain_and_the_nearer_file_wins(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "root.yaml").write_text(
        "experiment: {k: 1, s: 1, after: 1}\naxes: {experiment.k: [1, 2], augment.flip: [0, 1]}\nsweep: {children: 6}"
    )
    (tmp_path / "inner" / "middle.yaml").write_text(
        "base: root.yaml\nexperiment: {s: 2, after: 2}\nsweep: {parents: [1]}"
    )
    (tmp_path / "leaf.yaml").write_text("base: inner/middle.yaml\nexperiment: {after: 3}\naxes: {experiment.k: [5]}")
    request = read("--config", str(tmp_path / "leaf.yaml"))
    experiment = request.spec.base.experiment
    assert (experiment.k, experiment.s, experiment.after) == (1, 2, 3)
    assert axes(request) == {"experiment.k": (5,), "augment.flip": (0.0, 1.0)}
    assert (request.spec.options.children, request.spec.options.parents) == (6, (1,))
    assert sweep_name(request) == "leaf"


def test_a_chain_of_eight_bases_and_none_longer(tmp_path: Path) -> None:
    (tmp_path / "0.yaml").write_text("experiment: {k: 99}")
    for place in range(1, 10):
        (tmp_path / f"{place}.yaml").write_text(f"base: {place - 1}.yaml")
    assert read("--config", str(tmp_path / "8.yaml")).spec.base.experiment.k == 99
    with pytest.raises(ConfigError) as caught:
        read("--config", str(tmp_path / "9.yaml"))
    assert str(caught.value) == (
        f"{tmp_path}/1.yaml line 1: base: one base too many; chain at most 8, and write out the rest"
    )


def test_names(directory: Path) -> None:
    assert sweep_name(read("--config", str(directory / "base.yaml"))) == "base"
    assert sweep_name(read("--config", str(directory / "full.yaml"))) == "grid"
    assert sweep_name(read("--config", str(directory / "full.yaml"), "--sweep.name", "other")) == "other"


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.name)
def test_every_config_file_is_a_sweep_file_or_a_base(file: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(f"base: '{file}'\n")
    assert read("--config", str(tmp_path / "sweep.yaml")).spec == read("--config", str(file)).spec


def test_written_out_it_reads_back(directory: Path) -> None:
    spec = read("--config", str(directory / "full.yaml"), "--sweep.parents", "5..14").spec
    text = sweep_to_yaml(spec)
    assert text.isascii()
    assert "  parents: 5..14\n" in text
    assert "  augment.flip: [0.05, 0.1, 0.15, 0.2]\n" in text
    assert "  # children of each parent at each k [default 2; from 2 to 100000]\n  children: 8\n" in text
    assert sweep_from_yaml(text) == spec
    assert sweep_to_yaml(sweep_from_yaml(text)) == text


def test_a_spec_built_by_hand_reads_back_with_its_own_base() -> None:
    """The base's own value of an axis' key is kept, though no cell has it."""
    spec = SweepSpec(Config(), (Axis("experiment.k", tuple(range(3, 30))),), SweepOptions(alphas=(0.1 + 0.2, 1e-300)))
    assert sweep_from_yaml(sweep_to_yaml(spec)) == spec


def test_whole_numbers_that_are_no_range_are_written_one_by_one() -> None:
    parents = (*range(8), 2**31 - 1)
    spec = SweepSpec(Config(), (), SweepOptions(parents=parents))
    assert "  parents: [0, 1, 2, 3, 4, 5, 6, 7, 2147483647]\n" in sweep_to_yaml(spec)
    assert sweep_from_yaml(sweep_to_yaml(spec)) == spec


def test_a_base_in_text_is_looked_for_in_the_directory_given(directory: Path) -> None:
    assert sweep_from_yaml("base: base.yaml", directory=directory).base.experiment.k == 7


@pytest.mark.parametrize("argv", [["--help"], ["--nonsense", "-h"]])
def test_help(argv: list[str]) -> None:
    with pytest.raises(ShowAndExit) as shown:
        read_sweep_request(argv, "fastwi.sweep")
    assert shown.value.text.isascii()
    text = " ".join(shown.value.text.split())
    assert text.startswith("usage: python -m fastwi.sweep ")
    assert "python -m fastwi.train --help lists the keys" in text
    assert "--axes.section.key VALUES override or add an axis" in text
    for key in OPTIONS.values():
        assert f"--{key.path} " in text
        assert key.help in text
    assert "[default 4.0; in GiB; at least 0]" in text
    assert "--sweep.measure {own,recomputed},{own,recomputed},... " in text


def test_version() -> None:
    with pytest.raises(ShowAndExit) as shown:
        read("--version", "stray")
    assert shown.value.text == f"fastwi {__version__}"


def test_the_sample_in_the_help_is_read(directory: Path) -> None:
    (directory / "sample.yaml").write_text(SAMPLE)
    (directory / "fig1.yaml").write_text("experiment: {k: 7}")
    request = read("--config", str(directory / "sample.yaml"))
    assert axes(request)["augment.flip"] == (0.0, 0.25, 0.5)
    assert count_points(request.spec) == 4 * 4 * 5 * 3 * 2 * 5 * 4
    with pytest.raises(ShowAndExit) as shown:
        read("--help")
    assert all(f"  {line}\n" in shown.value.text for line in SAMPLE.splitlines())
    assert "engine.* but for engine.precision." in shown.value.text


def test_reading_and_help_need_no_torch(directory: Path) -> None:
    code = (
        "import sys\n"
        "from fastwi.cli import run_command\n"
        "from fastwi.config.sweepfile import read_sweep_request\n"
        f"read_sweep_request(['--config', {str(directory / 'full.yaml')!r}])\n"
        "status = run_command(lambda: read_sweep_request(['--help']) and 1)\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else status)\n"
    )
    root = Path(fastwi.config.sweepfile.__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "--sweep.children INT" in ended.stdout


@pytest.mark.parametrize(
    "options",
    [
        SweepOptions(parents=(0, 3), children=5, tuple_size=2, tuples="all", alphas=(0.0, 0.5)),
        SweepOptions(parents=(1,), children=9, tuple_size=3),
        SweepOptions(children=4, tuple_size=3, tuples="all"),
    ],
)
def test_points_are_counted_as_they_are_expanded(options: SweepOptions) -> None:
    spec = SweepSpec(Config(), (Axis("experiment.k", (1, 2, 4)), Axis("schedule.drop_epochs", ((5,), ()))), options)
    check_sweep(spec)
    expanded = list(points(spec))
    assert count_points(spec) == len(expanded)
    assert len(child_tuples(spec)) * len(options.parents) * 6 * max(1, len(options.alphas)) == len(expanded)
    assert {point.config.experiment.k for point in expanded} == {1, 2, 4}


def test_shards_have_each_point_once_and_none_is_empty() -> None:
    axes = (Axis("experiment.k", (1, 2)),)
    every = list(points(SweepSpec(Config(), axes, SweepOptions(parents=(0, 4), children=6, alphas=(0.2, 0.5)))))
    for count in range(1, 7):
        shards = [shard_of(every, number, count) for number in range(1, count + 1)]
        assert sorted(map(every.index, itertools.chain(*shards))) == list(range(len(every)))
        cells = [{(point.values, point.alpha) for point in shard} for shard in shards]
        assert all(len(found) == 4 for found in cells)
    with pytest.raises(ConfigError, match=r"^--shard: part 1 of 7 is empty.*give at most 6 parts$"):
        shard_of(every, 1, 7)
    assert len(shard_of(every, 7, 7)) == len(every) // 6


def test_noise_seeds_of_the_largest_sweep_do_not_meet() -> None:
    """The bounds of the options are those that the points' seeds need."""
    parents, children = OPTIONS["sweep.parents"], OPTIONS["sweep.children"]
    assert children.high is not None
    assert parents.high is not None
    assert fastwi.config.sweepcheck.MOST_TUPLES <= SEEDS_A_PARENT - AVERAGE_SEEDS
    assert children.high < AVERAGE_SEEDS
    assert (parents.high + 1) * SEEDS_A_PARENT <= 2**63


def test_check_sweep_refuses_what_was_built_by_hand() -> None:
    spec = SweepSpec(Config(), (Axis("data.path", ("",)),), SweepOptions(parents=(1, 1)))
    with pytest.raises(ConfigError) as caught:
        check_sweep(spec)
    assert str(caught.value).splitlines() == [
        "sweep.parents: 1 is given twice; remove one",
        "data.path: is empty; give a directory that python -m data_prep wrote",
    ]
    check_sweep(dataclasses.replace(spec, axes=(), options=SweepOptions()))
