"""Every refusal of a sweep file, by the line that the user sees."""

from pathlib import Path

import pytest

from fastwi.config.read import config_from_yaml
from fastwi.config.sweepfile import read_sweep_request, sweep_from_yaml
from fastwi.errors import ConfigError

WHOLE = " is not a whole number; give a whole number, at least 0"

# (YAML text, line that is named, message)
IN_FILE = [
    ("axis: {experiment.k: [1]}", 1, "'axis': unknown section; did you mean axes?"),
    ("sweeps: {}", 1, "'sweeps': unknown section; did you mean sweep?"),
    ("sweep.parents: [1]", 1, "sweep.parents: sections are nested here; write 'parents:' indented below 'sweep:'"),
    ("axes: {}\naxes: {}", 2, "duplicate section 'axes', given on line 1 already; remove one"),
    ("experiment:\n  kk: 3", 2, "experiment: unknown key 'kk'; did you mean k?"),
    ("experiment:\n  k: x", 2, "experiment.k: 'x'" + WHOLE),
    ("sweep:\n  childern: 4", 2, "sweep: unknown key 'childern'; did you mean children?"),
    (
        "sweep:\n  children: 4.0",
        2,
        "sweep.children: 4.0 is not a whole number; give a whole number, from 2 to 100000",
    ),
    ("sweep: {children: 100001}", 1, "sweep.children: 100001 is out of range; give a whole number, from 2 to 100000"),
    (
        "sweep: {parents: [2147483648]}",
        1,
        "sweep.parents: 2147483648 is out of range; give a list of whole numbers, from 0 to 2147483647",
    ),
    ("sweep: {parents: 3}", 1, "sweep.parents: 3 is not a list; write one, such as [0]"),
    (
        "sweep: {parents: 3..1}",
        1,
        "sweep.parents: '3..1' ends before it starts; write the smaller end first, or a list",
    ),
    (
        "sweep: {measure: [recalculated]}",
        1,
        "sweep.measure: 'recalculated' is not a choice; did you mean recomputed? valid: own, recomputed",
    ),
    ("sweep: 3", 1, "sweep: a section needs keys below it; add some or remove it"),
    ("axes:", 1, "axes: needs keys below it, each with its values; add some or remove it"),
    ("axes: [1]", 1, "axes: needs keys below it, each with its values; add some or remove it"),
    ("axes:\n  experiment.kk: [1]", 2, "axes: 'experiment.kk': unknown axis; did you mean experiment.k?"),
    ("axes: {batch_size: [1]}", 1, "axes: 'batch_size': unknown axis; did you mean optimizer.batch_size?"),
    ("axes: {qqq: [1]}", 1, "axes: 'qqq': unknown axis; give a key of the configuration, such as experiment.k"),
    (
        "axes: {experiment: {k: [1]}}",
        1,
        "axes: experiment: a section cannot be an axis; write whole keys, such as experiment.k",
    ),
    (
        "axes:\n  experiment.k: [1]\n  experiment.k: [2]",
        3,
        "duplicate axis 'experiment.k', given on line 2 already; remove one",
    ),
    ("axes: {experiment.k: []}", 1, "axes.experiment.k: is empty; give its values, such as [10], or remove the axis"),
    ("axes: {experiment.k: }", 1, "axes.experiment.k: null is not a list; give its values, such as [10]"),
    ("axes: {experiment.k: 3}", 1, "axes.experiment.k: 3 is not a list; give its values, such as [10]"),
    (
        "axes: {experiment.momentum: keep}",
        1,
        "axes.experiment.momentum: 'keep' is not a list; give its values, such as [reset, average]",
    ),
    ("axes: {experiment.k: {a: 1}}", 1, "axes.experiment.k: a mapping is not a list; give its values, such as [10]"),
    ("axes:\n  experiment.k:\n  - 1\n  - 2.5", 4, "axes.experiment.k: 2.5" + WHOLE),
    ("axes: {experiment.k: [1, true]}", 1, "axes.experiment.k: true" + WHOLE),
    ("axes: {experiment.k: [1, [2]]}", 1, "axes.experiment.k: a list" + WHOLE),
    (
        "axes:\n  experiment.k: -2..0",
        2,
        "axes.experiment.k: -2 is out of range; give a whole number, at least 0\nmy.yaml line 2: "
        "axes.experiment.k: -1 is out of range; give a whole number, at least 0",
    ),
    ("axes: {experiment.k: 1..2 step 0.5}", 1, "axes.experiment.k: 1.0" + WHOLE + "\nmy.yaml line 1: ..."),
    ("axes:\n  experiment.k:\n  - 1\n  - 2\n  - 1", 5, "axes.experiment.k: 1 is given twice; remove one"),
    ("axes: {augment.flip: [1, 1.0]}", 1, "axes.augment.flip: 1.0 is given twice; remove one"),
    (
        "axes: {schedule.drop_epochs: [[8, 9], [8, 9]]}",
        1,
        "axes.schedule.drop_epochs: [8, 9] is given twice; remove one",
    ),
    (
        "axes: {schedule.drop_epochs: [80, 120]}",
        1,
        "axes.schedule.drop_epochs: is a flat list; give a list of lists, such as [[80, 120]]",
    ),
    (
        "axes: {schedule.drop_epochs: 1..4}",
        1,
        "axes.schedule.drop_epochs: '1..4' is not a list; give a list of lists, such as [[80, 120]]",
    ),
    (
        "axes:\n  schedule.drop_epochs:\n  - [80]\n  - 120",
        4,
        "axes.schedule.drop_epochs: 120 is not a list; write one, such as [80, 120]",
    ),
    (
        "axes: {experiment.momentum: [reset, kep]}",
        1,
        "axes.experiment.momentum: 'kep' is not a choice; did you mean keep? valid: reset, average, keep",
    ),
    ("axes: {run.name: [a]}", 1, "axes: run.name: cannot be an axis; a sweep has its own directory; use sweep.name"),
    (
        "axes: {run.directory: [a]}",
        1,
        "axes: run.directory: cannot be an axis; a sweep has its own directory; use sweep.directory",
    ),
    ("axes: {seeds.init: [1]}", 1, "axes: seeds.init: cannot be an axis; a sweep sets the seeds; use sweep.parents"),
    (
        "axes: {seeds.child_noise: [[1, 2]]}",
        1,
        "axes: seeds.child_noise: cannot be an axis; a sweep sets the seeds; use sweep.children for more children",
    ),
    (
        "axes: {seeds.statistics_noise: [1]}",
        1,
        "axes: seeds.statistics_noise: cannot be an axis; use sweep.parents and sweep.children for other seeds",
    ),
    (
        "axes: {experiment.children: [2, 4]}",
        1,
        "axes: experiment.children: cannot be an axis; a sweep averages tuples;"
        " use sweep.children and sweep.tuple_size",
    ),
    (
        "axes: {experiment.weights: [[0.5, 0.5]]}",
        1,
        "axes: experiment.weights: cannot be an axis; a sweep sets the weights; use sweep.alphas",
    ),
    (
        "axes: {engine.device: [cpu, cuda]}",
        1,
        "axes: engine.device: cannot be an axis, as it changes no result; give it one value, below 'engine:'",
    ),
    (
        "axes: {sweep.children: [2]}",
        1,
        "axes: sweep.children: an option of the sweep cannot be an axis; give it one value, below 'sweep:'",
    ),
    ("base: 3", 1, "base: 3 is not a file's name; give a config file's"),
    ("base: ''", 1, "base: '' is not a file's name; give a config file's"),
    ("base: [a.yaml]", 1, "base: a list is not a file's name; give a config file's"),
    ('base: "a\\0b"', 1, "base: 'a\\x00b' is not a file's name; give a config file's"),
    ("base: none/such.yaml", 1, "base: none/such.yaml: no such config file; there is no directory none either; "),
    # What goes together
    ("sweep: {parents: []}", 1, "sweep.parents: is empty; give at least one seed, such as [0]"),
    ("sweep: {parents: [1, 2, 1]}", 1, "sweep.parents: 1 is given twice; remove one"),
    ("sweep: {tuple_size: 4}", 1, "sweep.tuple_size: 4 is more than sweep.children, 2; lower it"),
    (
        "sweep: {\n  children: 7, tuple_size: 3}",
        2,
        "sweep.children: 7 do not divide into disjoint tuples of 3; give 6 or 9",
    ),
    (
        "sweep:\n  alphas: [0.5]\n  tuple_size: 3\n  children: 3",
        2,
        "sweep.alphas: lie on the line between 2 children, and sweep.tuple_size is 3; leave them out",
    ),
    ("sweep: {alphas: [0.5, .5]}", 1, "sweep.alphas: 0.5 is given twice; remove one"),
    ("sweep: {alphas: [.inf]}", 1, "sweep.alphas: inf is not finite; give a finite number"),
    ("sweep: {measure: [recomputed]}", 1, "sweep.measure: lacks own; give [own], or [own, recomputed]"),
    ("sweep: {measure: []}", 1, "sweep.measure: lacks own; give [own], or [own, recomputed]"),
    ("sweep: {measure: [own, own]}", 1, "sweep.measure: 'own' is given twice; remove one"),
    ("sweep: {name: a/b}", 1, "sweep.name: 'a/b' is not the name of one directory; leave out / and \\"),
    ("sweep: {name: %s}" % ("a" * 101), 1, "sweep.name: 101 characters; give at most 100"),
    ("sweep: {directory: ''}", 1, "sweep.directory: is empty; give a directory, such as sweeps"),
    ("sweep: {store: ''}", 1, "sweep.store: is empty; give a directory, such as store"),
    ("sweep: {memory_GiB: 0}", 1, "sweep.memory_GiB: 0 holds no network; give more"),
    (
        "sweep:\n  tuples: all\n  children: 1001",
        2,
        "sweep.tuples: 500,500 for a parent of 1,001 children, and a parent has noise seeds for fewer than 500,000; "
        "lower sweep.children",
    ),
    (
        "sweep: {parents: 0..99999, children: 100}\naxes: {experiment.k: [1, 2, 3]}",
        None,
        "sweep: 15,000,000 points (3 cells, 100,000 parents, 50 tuples); make it at most 1,000,000",
    ),
    (
        "sweep: {parents: 0..99999, children: 100, alphas: [0, 1, 2]}",
        None,
        "sweep: 15,000,000 points (1 cells, 100,000 parents, 50 tuples, 3 alphas); make it at most 1,000,000",
    ),
    (
        "axes:\n  experiment.k: [0, 1]\n  experiment.s: [0, 1]\n  experiment.after: [0, 1]",
        None,
        "axes at experiment.k = 0, experiment.s = 0, experiment.after = 0: experiment: k, s and after are all 0, ",
    ),
    (
        "axes:\n  schedule.drop_epochs: [[9, 8], [1]]",
        2,
        "axes at schedule.drop_epochs = [9, 8]: schedule.drop_epochs: 8 follows 9; give them strictly increasing",
    ),
    ("data:\n  path: ''", 2, "data.path: is empty; give a directory that python -m data_prep wrote"),
]

# (command line, message)
ON_COMMAND_LINE = [
    ("--sweep.childern 3", "--sweep.childern: unknown flag; did you mean --sweep.children?"),
    ("--axes.experiment.kk 3", "--axes.experiment.kk: unknown flag; did you mean --axes.experiment.k?"),
    ("--axes.experiment.k 1 --axes.experiment.k 2", "--axes.experiment.k: given twice; remove one"),
    ("--axes.experiment.k", "--axes.experiment.k: a value is missing; write --axes.experiment.k VALUE"),
    ("--axes.experiment.k=", "--axes.experiment.k: is empty; give its values, such as [10], or remove the axis"),
    ("--axes.experiment.k=[]", "--axes.experiment.k: is empty; give its values, such as [10], or remove the axis"),
    ("--axes.experiment.k 1,x", "--axes.experiment.k: 'x'" + WHOLE),
    ("--axes.experiment.k 1,2,1", "--axes.experiment.k: 1 is given twice; remove one"),
    ("--axes.experiment.k [1,2", "--axes.experiment.k line 1: not valid YAML: "),
    ("--axes.experiment.k [1]:2", "--axes.experiment.k line 1: not valid YAML: "),
    ("--axes.experiment.k 4..1", "--axes.experiment.k: '4..1' ends before it starts; "),
    (
        "--axes.schedule.drop_epochs 80,120",
        "--axes.schedule.drop_epochs: '80,120' is not a list of lists; give a list of lists, such as [[80, 120]]",
    ),
    ("--axes.seeds.init 1,2", "--axes.seeds.init: cannot be an axis; a sweep sets the seeds; use sweep.parents"),
    ("--sweep.parents [0,", "--sweep.parents line 1: not valid YAML: "),
    ("--sweep.parents 0..", "--sweep.parents: '0..' is not a range; write one as 1..4 or 0..10 step 2"),
    ("--sweep.parents 0,0", "--sweep.parents: 0 is given twice; remove one"),
    ("--sweep.name ..", "--sweep.name: '..' is not the name of one directory; leave out / and \\"),
    ("--data.path=", "--data.path: is empty; give a directory that python -m data_prep wrote"),
    ("--run.name a", "--run.name: a sweep has its own directory; use sweep.name"),
    (
        "--run.tensorboard true",
        "--run.tensorboard: it is for runs of fastwi.train; a sweep's measurements are in results.parquet",
    ),
    ("--seeds.init 3", "--seeds.init: a sweep sets the seeds; use sweep.parents"),
    ("--experiment.children 4", "--experiment.children: a sweep averages tuples; use sweep.children and "),
    (
        "--experiment.k 4 --axes.experiment.k 1..2",
        "--experiment.k: is an axis of this sweep; use --axes.experiment.k",
    ),
    (
        "--sweep.tuples all --sweep.children 100000 --sweep.tuple_size 4096",
        "--sweep.tuples: about 10^7424 for a parent of 100,000 children, and a parent has noise seeds for fewer than "
        "500,000; lower sweep.children\nsweep: about 10^7424 points (1 cells, 1 parents, about 10^7424 tuples); ",
    ),
    *(
        (f"--shard {text}", f"--shard: '{text}' is not a part; write I/N with I from 1 to N, such as 2/4")
        for text in ("0/4", "5/4", "1", "1/0", "a/b", "1/4/4", "+1/4", "01/4", "1/9999999999", "\u0661/4", "1/4/")
    ),
    ("--shard", "--shard: a value is missing; write --shard VALUE"),
    ("--shard 1/2 --shard 1/2", "--shard: given twice; remove one"),
    ("--config zzz/a.yaml", "zzz/a.yaml: no such config file; there is no directory zzz either; check the path"),
]


@pytest.mark.parametrize(("text", "line", "message"), IN_FILE)
def test_a_file_is_refused_in_one_line_that_says_where_and_what_to_do(
    text: str, line: int | None, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        sweep_from_yaml(text, "my.yaml")
    wanted = f"my.yaml line {line}: {message}" if line else message
    if wanted.endswith(("; ", ", ", "...")):
        assert str(caught.value).startswith(wanted.removesuffix("..."))
    else:
        assert str(caught.value) == wanted


@pytest.mark.parametrize(("line", "message"), ON_COMMAND_LINE)
def test_a_command_line_is_refused(line: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_sweep_request(line.split(" "))
    if message.endswith((" ", ": ")):
        assert str(caught.value).startswith(message)
    else:
        assert str(caught.value) == message


def test_all_problems_of_all_layers_come_at_once(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("experiment: {k: x}\nnonsense: {}\n")
    file = tmp_path / "a.yaml"
    file.write_text(
        "base: base.yaml\nexperiment: {s: 1.5}\naxes: {run.name: [a], augment.flip: [2]}\nsweep: {keep: no}\n"
    )
    with pytest.raises(ConfigError) as caught:
        read_sweep_request(["--config", str(file), "--wrong", "--shard", "3/2", "--axes.experiment.k", "y"])
    assert [line.partition(";")[0] for line in str(caught.value).splitlines()] == [
        "--wrong: unknown flag",
        "--shard: '3/2' is not a part",
        f"{file} line 3: axes: run.name: cannot be an axis",
        f"{file} line 3: axes.augment.flip: 2.0 is out of range",
        f"{tmp_path}/base.yaml line 2: 'nonsense': unknown section",
        "--axes.experiment.k: 'y' is not a whole number",
        f"{tmp_path}/base.yaml line 1: experiment.k: 'x' is not a whole number",
        f"{file} line 2: experiment.s: 1.5 is not a whole number",
        f"{file} line 4: sweep.keep: false is not text",
    ]


def test_cross_checks_of_options_and_cells_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        sweep_from_yaml("sweep: {parents: [1, 1], children: 3}\ndata: {path: ''}\naxes: {model.name: [resnet20, x]}")
    assert [line.partition(";")[0] for line in str(caught.value).splitlines()] == [
        "sweep line 1: sweep.parents: 1 is given twice",
        "sweep line 1: sweep.children: 3 do not divide into disjoint tuples of 2",
        "sweep line 2: data.path: is empty",
        "sweep line 3: axes at model.name = 'x': model.name: 'x' is no known model",
    ]


def test_a_wrong_axis_in_the_file_is_refused_though_a_flag_overrides_it(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("axes: {experiment.k: [x]}")
    with pytest.raises(ConfigError, match=r"line 1: axes\.experiment\.k: 'x' is not a whole number"):
        read_sweep_request(["--config", str(file), "--axes.experiment.k", "3"])


def test_a_long_wrong_range_gives_a_few_lines() -> None:
    with pytest.raises(ConfigError) as caught:
        sweep_from_yaml("axes: {experiment.k: -900000..-1}")
    assert len(str(caught.value).splitlines()) == 5


def test_many_impossible_cells_give_a_few_lines() -> None:
    with pytest.raises(ConfigError) as caught:
        sweep_from_yaml("data: {train_images: 10}\naxes: {optimizer.batch_size: 1..60}")
    lines = str(caught.value).splitlines()
    assert len(lines) == 11
    assert lines[0].startswith("sweep line 2: axes at optimizer.batch_size = 11: optimizer.batch_size: 11 is more")
    assert lines[-1] == "axes: 40 more such problems; mend these first"


def test_of_a_grid_too_large_to_walk_every_axis_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"axes at .*model.name = 'x'.*: model.name: 'x' is no known model"):
        sweep_from_yaml("axes: {experiment.k: 1..200, experiment.s: 1..200, model.name: [resnet20, x]}")


def test_aliases_that_would_fill_the_memory_are_refused_at_once() -> None:
    epochs = ", ".join(map(str, range(1, 8_000)))
    text = f"axes: {{schedule.drop_epochs: [&a [{epochs}]{', *a' * 8_000}]}}"
    with pytest.raises(ConfigError, match=r"\[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, \.\.\.\] is given twice; remove one"):
        sweep_from_yaml(text)


@pytest.mark.parametrize(
    ("first", "second"), [("a.yaml", "a.yaml"), ("./../{here}/a.yaml", ""), ("b.yaml", "a.yaml")]
)
def test_a_circle_of_bases(tmp_path: Path, first: str, second: str) -> None:
    (tmp_path / "a.yaml").write_text(f"base: {first.format(here=tmp_path.name)}")
    (tmp_path / "b.yaml").write_text(f"base: {second}")
    with pytest.raises(ConfigError) as caught:
        read_sweep_request(["--config", str(tmp_path / "a.yaml")])
    assert str(caught.value).endswith("a.yaml leads round in a circle; remove one of its bases")
    assert "\n" not in str(caught.value)


def test_a_base_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("model: {name: resnet20}")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe")
    file = tmp_path / "a.yaml"
    for base, message in {
        "digit.yaml": f"{tmp_path}/digit.yaml: no such config file; did you mean {tmp_path}/digits.yaml?",
        ".": f"{tmp_path}: cannot be read (Is a directory); give a YAML file",
        "bytes.yaml": f"{tmp_path}/bytes.yaml: not UTF-8 text; give a YAML file",
    }.items():
        file.write_text(f"sweep: {{}}\nbase: {base}")
        with pytest.raises(ConfigError) as caught:
            read_sweep_request(["--config", str(file)])
        assert str(caught.value) == f"{file} line 2: base: {message}"


def test_a_file_whose_name_cannot_name_the_sweep(tmp_path: Path) -> None:
    file = tmp_path / "a\\b.yaml"
    file.write_text("experiment: {k: 1}")
    with pytest.raises(ConfigError) as caught:
        read_sweep_request(["--config", str(file)])
    assert str(caught.value) == "sweep.name: is empty, and the file's 'a\\\\b' is no directory's name; give one"
    assert read_sweep_request(["--config", str(file), "--sweep.name", "ab"]).spec.options.name == "ab"


@pytest.mark.parametrize("name", ["base", "axes", "sweep"])
def test_a_sweep_file_given_to_train_says_where_it_belongs(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_yaml(f"{name}: {{}}", "my.yaml")
    assert (
        str(caught.value) == f"my.yaml line 1: {name}: belongs to a sweep; use python -m fastwi.sweep, or remove it"
    )
