"""Every refusal: of a config file, a sweep file, a mapping and a command line, by what its message must name."""

import dataclasses
import math
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mappings import config_from_mapping

from fastwi.config.read import (
    config_from_yaml,
    read_analysis_request,
    read_config,
    read_request,
    read_sweep_request,
    sweep_from_yaml,
)
from fastwi.config.schema import Config, DataConfig, OptimizerConfig
from fastwi.errors import ConfigError

STUDIES = {"connectivity": "barriers", "plane": "the plane"}
READERS: dict[str, Callable[[Any], object]] = {
    "config": lambda text: config_from_yaml(text, "my.yaml"),
    "sweep": lambda text: sweep_from_yaml(text, "my.yaml"),
    "mapping": config_from_mapping,
    "train": lambda line: read_request(shlex.split(line), "fastwi.train"),
    "sweeping": lambda line: read_sweep_request(shlex.split(line)),
    "analyze": lambda line: read_analysis_request(shlex.split(line), STUDIES),
}

# What is read, the text, what the message names; a number is the line of the file.
REFUSED: list[tuple[Any, ...]] = [
    # Names
    ("config", "experimen: {k: 3, s: 4}", 1, "experimen.k", "did you mean experiment.k?"),
    ("config", "Optimizer: {momentum: 0}", 1, "Optimizer", "optimizer.momentum?"),
    ("config", "optimizer:\n  lerning-rate: 1", 2, "optimizer.lerning-rate", "optimizer.learning_rate?"),
    ("config", "experiment: {batch_size: 4}", 1, "experiment.batch_size", "optimizer.batch_size?"),
    ("config", "optimizer: {lr: 1}", 1, "optimizer.lr", "did you mean optimizer.learning_rate?"),
    ("config", "optimizer: {name: adamw}", 1, "optimizer.name", "valid: batch_size, learning_rate, momentum"),
    ("config", "seeds:", 1, "seeds: is a section"),
    ("config", "zzz: 1", 1, "zzz", "valid: augment, data"),
    ("config", "<<: {k: 3}", 1, "<<"),
    ("config", "base: x", 1, "base", "python -m fastwi.sweep"),
    ("config", "axes: {experiment.k: [1, 2]}\nsweep: {children: 3}", 1, "axes: ", "python -m fastwi.sweep"),
    ("config", "sweep: {children: 3}", 1, "sweep: ", "python -m fastwi.sweep"),
    ("config", "analysis: 3", 1, "analysis", "python -m fastwi.analyze"),
    ("sweep", "sweep: {splits: 3}", 1, "sweep.splits", "analysis.splits?"),
    ("sweep", "axes:", 1, "axes: is a section"),
    ("sweep", "axes:\n  experiment.kk: [1]", 2, "axes.experiment.kk", "axes.experiment.k?"),
    ("sweep", "axes: {batch_size: [1]}", 1, "axes.batch_size", "axes.optimizer.batch_size?"),
    ("sweep", "axes: {optimizer.lr: [1]}", 1, "axes.optimizer.lr", "axes.optimizer.learning_rate?"),
    ("sweep", "axes: {run.name: [a]}", 1, "axes.run.name: cannot be an axis", "sweep.name"),
    ("sweep", "axes: {seeds.statistics_noise: [1]}", 1, "axes.seeds.statistics_noise", "sweep.parents"),
    ("sweep", "axes: {engine.device: [cpu, cuda]}", 1, "axes.engine.device", "changes no result"),
    ("sweep", "axes: {data.streaming: [auto, streamed]}", 1, "axes.data.streaming", "changes no result"),
    ("config", "foo: {}", 1, "foo: unknown name"),
    ("config", "'': {}", 1, ": unknown name"),
    ("config", "optimizer: {learnin_rate: {}}", 1, "optimizer.learnin_rate", "did you mean optimizer.learning_rate?"),
    ("config", "optimizer: {learning_rate: {}}", 1, "optimizer.learning_rate: a mapping is not"),
    ("config", "sweep: {}", 1, "sweep", "python -m fastwi.sweep"),
    ("sweep", "axes: {experiment.k: {}}", 1, "axes.experiment.k: a mapping is not"),
    ("mapping", {3: 1}, "3: unknown name"),
    ("mapping", {"config": "fastwi:digits"}, "config: unknown name"),
    ("mapping", [], "[] is not a mapping"),
    ("mapping", {"experiment.k": 3, "experiment": {"k": 3}}, "experiment.k: given twice"),
    ("train", "--experiment.kk 3", "--experiment.kk", "did you mean --experiment.k?"),
    ("train", "--epochs 3", "--epochs", "did you mean --experiment.k?"),
    ("train", "--dry_run", "--dry_run", "did you mean --dry-run?"),
    ("train", "--sweep.children 3", "--sweep.children", "python -m fastwi.sweep"),
    ("train", "--qqqqqq", "--qqqqqq", "valid: augment"),
    ("sweeping", "--axes.optimizer.lr 3", "--axes.optimizer.lr", "did you mean --axes.optimizer.learning_rate?"),
    ("sweeping", "--analysis.alphas 3", "--analysis.alphas", "python -m fastwi.analyze"),
    ("analyze", "plane --shard 1/2", "--shard"),
    ("analyze", "conectivity --sweep.name a", "'conectivity'", "did you mean connectivity?"),
    ("analyze", "--sweep.name a", "study", "connectivity, plane"),
    ("analyze", "plane --analysis.pairs 3", "--config", "sweep.yaml"),
    # Values
    ("config", "experiment: {k: true}", 1, "experiment.k: true is not", "whole number"),
    ("config", "experiment: {k: 3.0}", 1, "experiment.k: 3.0 is not", "whole number"),
    ("config", "experiment: {k: 1:30}", 1, "experiment.k: '1:30' is not"),
    ("config", "experiment: {k: 010}", 1, "experiment.k: '010' is not"),
    ("config", "experiment: {k: -1}", 1, "experiment.k: -1 is not", "at least 0"),
    ("config", "experiment: {k: 99999999999999999999}", 1, "experiment.k: a whole number beyond 64 bits is not"),
    ("config", f"seeds: {{init: {2**63}}}", 1, "seeds.init: a whole number beyond 64 bits is not"),
    ("config", "experiment: {k: }", 1, "experiment.k: null is not"),
    ("config", "experiment: {children: 1}", 1, "experiment.children: 1 is not", "a whole number, from 2 to 4096"),
    ("config", "optimizer: {batch_size: 0}", 1, "optimizer.batch_size: 0 is not", "at least 1"),
    ("config", "optimizer: {momentum: 1.0}", 1, "optimizer.momentum: 1.0 is not", "a number, from 0 to 0.999999"),
    ("config", "engine: {evaluation_batch: -1}", 1, "engine.evaluation_batch: -1 is not", "at least 0"),
    ("config", "optimizer: {learning_rate: fast}", 1, "learning_rate: 'fast' is not", "number"),
    ("config", "optimizer: {learning_rate: .nan}", 1, "optimizer.learning_rate: '.nan' is not"),
    ("config", "optimizer: {learning_rate: 1e999}", 1, "optimizer.learning_rate: '1e999' is not"),
    ("config", "augment: {flip: 1.5}", 1, "augment.flip: 1.5 is not", "from 0 to 1"),
    ("config", "optimizer: {nesterov: 1}", 1, "optimizer.nesterov: 1 is not", "true or false"),
    ("config", "experiment: {momentum: Rest}", 1, "momentum: 'Rest' is not", "average, keep", "did you mean reset?"),
    ("config", "run: {name: 2024}", 1, "run.name: 2024 is not", "in quotes", "100 characters"),
    ("config", f"run: {{name: {'語' * 70}}}", 1, "run.name: '語語", "210 bytes", "at most 200"),
    ("sweeping", f"--sweep.name {'語' * 70}", "--sweep.name: '語語", "210 bytes", "at most 200"),
    ("config", 'run: {name: "a\\nb"}', 1, "run.name: 'a\\nb' is not"),
    ("config", "schedule: {drop_epochs: 80}", 1, "drop_epochs: 80 is not", "a list, each value a whole number"),
    ("config", "schedule:\n  drop_epochs:\n  - 80\n  - 9.5", 2, "schedule.drop_epochs: 9.5 is not"),
    ("config", "schedule: {drop_epochs: [0]}", 1, "schedule.drop_epochs: 0 is not", "at least 1"),
    ("config", "schedule: {drop_epochs: 4..1}", 1, "schedule.drop_epochs: '4..1'"),
    ("sweep", "sweep: {children: 100001}", 1, "sweep.children: 100001 is not", "from 2 to 100000"),
    ("sweep", "sweep: {parents: [2147483648]}", 1, "sweep.parents: 2147483648 is not", "2147483647"),
    ("sweep", "sweep: {parents: []}", 1, "sweep.parents: [] is not", "a list that is not empty, each"),
    ("sweep", "sweep: {parents: [1, 2, 1]}", 1, "sweep.parents: 1 is given twice"),
    ("sweep", "sweep: {measure: [recalculated]}", 1, "sweep.measure: 'recalculated'", "did you mean recomputed?"),
    ("sweep", "analysis: {alphas: 1}", 1, "analysis.alphas: 1 is not", "from 2 to 10000"),
    ("sweep", "axes: {experiment.k: []}", 1, "axes.experiment.k: [] is not", "not empty"),
    ("sweep", "axes:\n  experiment.k:\n  - 1\n  - 2.5", 2, "axes.experiment.k: 2.5 is not"),
    ("sweep", "axes: {experiment.k: [1, [2]]}", 1, "axes.experiment.k: [2] is not"),
    ("sweep", "axes: {experiment.k: -900000..-1}", 1, "axes.experiment.k: -900000 is not"),
    ("sweep", "axes: {augment.flip: [1, 1.0]}", 1, "axes.augment.flip: 1.0 is given twice"),
    ("sweep", "axes: {schedule.drop_epochs: [[8, 9], [8, 9]]}", 1, "schedule.drop_epochs: [8, 9] is given twice"),
    ("sweep", "axes: {trajectory.averages: [[swa], [ema, ema]]}", 1, "trajectory.averages: 'ema' is given twice"),
    ("sweep", "axes: {schedule.drop_epochs: [80, 120]}", 1, "axes.schedule.drop_epochs: 80 is not", "list of lists"),
    ("sweep", "base: 3", 1, "base: 3 is not"),
    ("sweep", "base: ''", 1, "base: ", "cannot be read"),
    ("sweep", "base: fastwi:digit", 1, "base: fastwi:digit: ", "fastwi:digits"),
    ("sweep", "base: none/such.yaml", 1, "base: none/such.yaml: no such config file"),
    ("mapping", {"experiment": {"k": 10**5000}}, "experiment.k: a whole number beyond 64 bits is not"),
    ("mapping", {"optimizer": {"momentum": object()}}, "optimizer.momentum: a value of type object is not"),
    ("mapping", {"experiment": {"weights": [math.nan, 1.0]}}, "experiment.weights: nan is not"),
    ("train", "--experiment.k=", "--experiment.k: '' is not"),
    ("train", "--experiment.k 1_0", "--experiment.k: '1_0' is not"),
    ("train", "--optimizer.learning_rate 1e400", "--optimizer.learning_rate: '1e400' is not"),
    ("train", "--optimizer.nesterov maybe", "--optimizer.nesterov: 'maybe' is not"),
    ("train", "--schedule.drop_epochs 80,", "--schedule.drop_epochs: '' is not"),
    ("train", "--engine.device=\udce9", "--engine.device: '\\udce9' is not"),
    ("train", "--model.name nets/net.py", "--model.name: 'nets/net.py'", "nets/net.py:"),
    ("train", "--model.name resnet21", "model.name: 'resnet21'", "did you mean resnet20?"),
    ("sweeping", "--axes.experiment.k=", "--axes.experiment.k: [] is not"),
    ("sweeping", "--axes.experiment.k [1,2", "--axes.experiment.k line 1: not valid YAML"),
    # The form of a file and of a command line
    ("config", "experiment:\n  k: 3\n  k: 4", 3, "k: is given above"),
    ("config", "model: {name: resnet20}\nmodel: {}", 2, "model: is given above"),
    ("config", "experiment.k: 3\nexperiment: {k: 4}", 2, "experiment.k: given twice"),
    ("config", "? [a]\n: 3", 1, "[...]", "plain text"),
    ("config", "? {a: b}\n: 3", 1, "[...]", "plain text"),
    ("config", "- a", "my.yaml: ['a'] is not a mapping"),
    ("config", "experiment: {k: !!int '3'}", 1, "tags (!)"),
    ("config", "run: {name: !!python/object:os.system x}", 1, "tags (!)"),
    ("config", "experiment: {k: &a 3, s: *a}", 1, "anchors (&)"),
    ("config", "# only a comment", "my.yaml: is empty"),
    ("config", "model: {name: a", 1, "not valid YAML"),
    ("config", "run: {name: \x01}", "my.yaml", "not valid YAML"),
    ("config", 'run: {name: "\\UFFFFFFFF"}', "my.yaml", "not valid YAML"),
    ("train", "-C x.yaml", "'-C'", "'x.yaml'"),
    ("train", "--", "'--'"),
    ("train", "--experiment.k --json", "--experiment.k: a value is missing"),
    ("train", "--config", "--config: a value is missing; write --config FILE"),
    ("train", "--config=", "cannot be read"),
    ("train", "--experiment.k 3 --experiment.k=3", "--experiment.k: given twice"),
    ("train", "--json --json", "--json: given twice"),
    ("train", "--figures paper", "--figures"),  # a command that does not draw
    ("sweeping", "--figures print", "--figures: 'print'", "screen, paper"),
    ("sweeping", "--figures --json", "--figures: a value is missing"),
    ("sweeping", "--figures", "--figures: a value is missing"),
    ("analyze", "plane --sweep.name a --figures=paper --figures=paper", "--figures: given twice"),
    ("train", "--json=maybe", "--json: 'maybe' is not"),
    ("train", "--config fastwi:digit", "--config: fastwi:digit: ", "fastwi:digits"),
    ("sweeping", "--config zzz/a.yaml", "zzz/a.yaml: no such config file"),
    ("analyze", "plane connectivity --sweep.name a", "'connectivity'"),
    *(
        ("sweeping", f"--shard={text}", f"--shard: '{text}'")
        for text in ("0/4", "5/4", "1", "1/0", "1/4/4", "+1/4", "01/4", "1/9999999999", "\u0661/4", "1/4/", "")
    ),
    # Values that cannot go together
    ("config", "model: {name: 'a:b', initialisation: open_lth}", 1, "model.initialisation: open_lth for 'a:b'"),
    ("config", "model: {weights: a.pt, initialisation: open_lth}", 1, "model.initialisation: open_lth, but model.we"),
    ("config", "experiment: {rounds: 2, s: 0}", 1, "experiment.rounds: 2", "experiment.s is 0"),
    ("config", "experiment: {rounds: 2, s: 12ep-k}", 1, "experiment.s: 12ep-k has no rounds"),
    ("config", "experiment: {weights: [1.0]}", 1, "experiment.weights", "1 values for 2 children"),
    ("config", "experiment: {weights: [0.5, 0.500002]}", 1, "experiment.weights: sum to 1.000002"),
    ("config", "experiment: {weights: [0.5, 0.499998]}", 1, "experiment.weights: sum to 0.999998"),
    ("config", "seeds: {child_noise: [1, 2, 3]}", 1, "seeds.child_noise", "3 values for 2 children"),
    ("config", "seeds: {child_noise: [7, 7]}", 1, "seeds.child_noise: 7 is given twice"),
    ("config", "schedule: {drop_epochs: [9, 5, 7]}", 1, "schedule.drop_epochs: 5 follows 9"),
    ("config", "experiment: {k: 0, s: 0, after: 0}", 1, "experiment.k", "all 0"),
    ("config", "experiment: {children_rate_factor: 0.1}", 1, "experiment.children_rate_factor", "continue_children"),
    ("config", "data: {train_images: 127}", "optimizer.batch_size: 128", "data.train_images, 127"),
    (
        "config",
        "data: {train_images: 200}\nexperiment:\n  recompute_images: 201",
        3,
        "experiment.recompute_images: 201",
        "data.train_images, 200",
    ),
    ("config", "model: {name: ResNet-20}", 1, "model.name: 'ResNet-20'", "did you mean resnet20?"),
    ("config", "engine: {device: 'cuda:01'}", 1, "engine.device: 'cuda:01'", "give auto, cpu, cuda or cuda:N"),
    ("config", "run: {name: a/b}", 1, "run.name: 'a/b'"),
    ("config", f"run: {{name: {'x' * 101}}}", 1, "run.name: 'xxx"),
    ("config", "data: {path: ''}", 1, "data.path: '' is not", "not empty"),
    ("config", "experiment: {k: 2000000000}", 1, "experiment.k: 2,000,000,000", "2,000,000,030 epochs"),
    ("config", "experiment: {s: 400000, children: 3}", 1, "experiment.s: 400,000", "1,200,020 epochs"),
    ("config", "experiment: {s: 300, rounds: 1000, continue_parent: total}", 1, "s: 300", "1,200,030 epochs"),
    ("config", "experiment: {after: 600000, continue_children: true}", 1, "experiment.after: 600,000", "1,800,030"),
    ("sweep", "sweep: {tuple_size: 4}", 1, "sweep.tuple_size: 4", "sweep.children, 2"),
    ("sweep", "sweep: {\n  children: 7, tuple_size: 3}", 2, "sweep.children: 7", "give 6 or 9"),
    ("sweep", "sweep:\n  alphas: [0.5]\n  tuple_size: 3\n  children: 3", 2, "sweep.alphas", "sweep.tuple_size is 3"),
    ("sweep", "sweep: {measure: [recomputed]}", 1, "sweep.measure: lacks own"),
    ("config", "experiment: {measure: [recomputed]}", 1, "experiment.measure: lacks own"),
    ("config", "schedule: {name: cosin}", 1, "schedule.name: 'cosin'", "did you mean cosine?"),
    ("sweep", "axes: {experiment.measure: [[own]]}", 1, "experiment.measure", "section experiment"),
    ("sweep", "sweep: {name: a/b}", 1, "sweep.name: 'a/b'"),
    ("sweep", "sweep: {store: ''}", 1, "sweep.store: '' is not"),
    ("sweep", "sweep: {memory_GiB: 0}", 1, "sweep.memory_GiB: 0"),
    ("sweep", "sweep:\n  tuples: all\n  children: 1001", 2, "sweep.tuples", "500,000"),
    ("sweep", "sweep: {parents: 0..99999, children: 100}\naxes: {experiment.k: [1, 2, 3]}", "15,000,000 points"),
    ("sweep", "sweep: {parents: 0..99999, children: 100, alphas: [0, 1, 2]}", "15,000,000 points"),
    (
        "sweep",
        "axes:\n  experiment.k: [0, 1]\n  experiment.s: [0, 1]\n  experiment.after: [0, 1]",
        2,
        "axes.experiment.k",
        "at experiment.k = 0, experiment.s = 0, experiment.after = 0",
    ),
    ("sweep", "axes:\n  schedule.drop_epochs: [[9, 8], [1]]", 2, "8 follows 9", "at schedule.drop_epochs = [9, 8]"),
    ("sweep", "axes: {experiment.k: 1..200, experiment.s: 1..99, model.name: [vgg11, x]}", 1, "model.name: 'x'"),
    ("sweeping", "--sweep.tuples all --sweep.children 100000 --sweep.tuple_size 4096", "--sweep.tuples: "),
    ("sweeping", "--run.tensorboard true", "--run.tensorboard", "results.parquet"),
    ("sweeping", "--experiment.children 4", "--experiment.children", "sweep.tuple_size"),
    ("sweeping", "--experiment.k 4 --axes.experiment.k 1..2", "--experiment.k", "use --axes.experiment.k"),
    ("sweeping", "--data.train_images 100 --axes.optimizer.batch_size 10,101", "--axes.optimizer.batch_size: 101"),
    ("analyze", "plane --sweep.children 3", "--sweep.children: 3"),
    ("analyze", "plane --sweep.name a --analysis.low 1", "--analysis.low: 1 is not below analysis.high, 1"),
    ("analyze", "plane --sweep.name a --analysis.treatments=", "--analysis.treatments: [] is not"),
    ("analyze", "plane --sweep.name a --analysis.treatments averaged,averaged", "'averaged' is given twice"),
    ("analyze", "plane --sweep.name a --analysis.cells 8", "--analysis.cells: '8'", "k,s"),
    ("analyze", "plane --sweep.name a --analysis.cells 2,3", "--analysis.cells: [2, 3]", "k is of [10]"),
    ("analyze", "plane --sweep.name a --analysis.cells 10,3", "--analysis.cells: [10, 3]", "s of [10]"),
]  # fmt: skip


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: ascii(f"{row[0]} {row[-1]}")[1:-1])
def test_what_is_refused_is_named(row: tuple[Any, ...]) -> None:
    kind, given, *named = row
    with pytest.raises(ConfigError) as caught:
        READERS[kind](given)
    for each in named:
        assert (f"my.yaml line {each}: " if isinstance(each, int) else each) in str(caught.value)
    for line in str(caught.value).splitlines():
        assert ":" in line
        assert len(line) < 400


@pytest.mark.parametrize(
    "mapping",
    [
        {"experiment": {"weights": [0.3, 0.7 + 5e-7]}},
        {"experiment": {"weights": [1.5, -0.5]}},  # the line beyond B
        {"experiment": {"weights": [0.5, 0.5]}},
        {"experiment": {"k": 0, "s": 0, "after": 1}},
        {"experiment": {"k": 10**6 - 1, "s": 0, "after": 1}},
        {"experiment": {"k": 599_990, "s": "600000ep-k", "after": 0}},  # ten epochs of each child
        {"seeds": {"init": 2**63 - 1}},
        {"seeds": {"parent_noise": 5, "child_noise": [5, 6], "average_noise": 5}},  # their epochs differ
        {"experiment": {"children": 3}, "seeds": {"child_noise": [9, 1, 4]}},
        {"data": {"train_images": 128}, "experiment": {"recompute_images": 128}},
        {"experiment": {"recompute_images": 5}},
        {"engine": {"device": "cuda:3"}},
        {"run": {"name": "a b.c-1"}},
        {"schedule": {"drop_epochs": []}},
        {"optimizer": {"batch_size": 1, "momentum": 0.999999}},
    ],
)
def test_what_is_possible_passes(mapping: dict[str, Any]) -> None:
    config_from_mapping(mapping)


def test_all_problems_of_all_layers_come_at_once(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("experiment: {k: x}\nnonsense: {a: 1}\n")
    file = tmp_path / "a.yaml"
    file.write_text(
        "base: base.yaml\nexperiment: {s: 1.5}\naxes: {run.name: [a], augment.flip: [2]}\nsweep: {keep: no}\n"
    )
    with pytest.raises(ConfigError) as caught:
        read_sweep_request(["--config", str(file), "--wrong", "--shard", "3/2", "--axes.experiment.k", "y"])
    lines = str(caught.value).splitlines()
    for place in (
        "--wrong", "--shard: '3/2'", f"{file} line 3: axes.run.name", f"{file} line 3: axes.augment.flip: 2",
        f"{tmp_path}/base.yaml line 2: nonsense", "--axes.experiment.k: 'y'", f"{file} line 4: sweep.keep: false",
        f"{tmp_path}/base.yaml line 1: experiment.k: 'x'", f"{file} line 2: experiment.s: 1.5",
    ):  # fmt: skip
        assert sum(line.startswith(place) for line in lines) == 1
    assert len(lines) == 9


def test_what_cannot_go_together_comes_at_once() -> None:
    for text, named in (
        (
            "schedule: {drop_epochs: [9, 8]}\naxes: {model.name: [vgg11, x]}",
            ["1: schedule.drop_epochs", "2: axes.model.name"],
        ),
        ("sweep: {tuple_size: 3,\n measure: [recomputed]}", ["2: sweep.measure", "1: sweep.tuple_size"]),
    ):
        with pytest.raises(ConfigError) as caught:
            sweep_from_yaml(text)
        lines = str(caught.value).splitlines()
        assert [": ".join(line.split(": ")[:2]) for line in lines] == [f"sweep line {each}" for each in named]


def test_a_value_that_an_axis_of_the_base_would_override_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("experiment: {k: 3, s: 4}\naxes: {experiment.k: [1, 2]}")
    for text, refused in (("{k: 5}", True), ("{s: 5}", False), ("{k: 5}\naxes: {experiment.k: [1, 5]}", False)):
        (tmp_path / "a.yaml").write_text(f"base: base.yaml\nexperiment: {text}")
        if refused:
            with pytest.raises(ConfigError, match=r"a\.yaml line 2: experiment\.k: .* axes\.experiment\.k"):
                read_sweep_request(["--config", str(tmp_path / "a.yaml")])
        else:
            read_sweep_request(["--config", str(tmp_path / "a.yaml")])


@pytest.mark.parametrize("name", ["experiment.k", "axes.experiment.k"])
def test_a_wrong_value_of_a_file_is_refused_though_a_flag_overrides_it(tmp_path: Path, name: str) -> None:
    section, _, key = name.partition(".")
    (tmp_path / "a.yaml").write_text(f"{section}: {{{key}: 2.5}}")
    with pytest.raises(ConfigError, match=rf"a\.yaml line 1: {name}: 2\.5 is not"):
        read_sweep_request(["--config", str(tmp_path / "a.yaml"), f"--{name}", "3"])


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("model: {name: x}\naxes: {experiment.k: [1, 2], experiment.s: [1, 2]}", ""),
        (
            "experiment: {s: 0, after: 0}\naxes: {optimizer.learning_rate: [0.1, 0.2], experiment.k: [1, 0]}",
            " (at experiment.k = 0)",
        ),
        ("data: {train_images: 9}\naxes: {experiment.k: [1, 2], optimizer.batch_size: [9, 10]}", "size = 10)"),
        ("experiment: {after: 0}\naxes: {experiment.s: [0, 1], experiment.k: [0, 1]}", "s = 0, experiment.k = 0)"),
    ],
)
def test_a_problem_names_the_axes_that_make_it(text: str, end: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sweep_from_yaml(text)
    (line,) = str(caught.value).splitlines()
    assert line.endswith(end)
    assert line.count("(at ") == bool(end)


def test_many_impossible_cells_give_a_few_lines() -> None:
    with pytest.raises(ConfigError) as caught:
        sweep_from_yaml("data: {train_images: 10}\naxes: {optimizer.batch_size: 1..60}")
    lines = str(caught.value).splitlines()
    assert len(lines) == 10
    assert "line 2: axes.optimizer.batch_size: 11 is more than data.train_images, 10" in lines[0]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"\xff\xfe\x00", "UTF-8"),
        (b"# " + b"x" * (1 << 20), "1 MiB"),
        (b"experiment: {k: 1}\n# SHA-256 of all lines above: 00\n", "checksum"),
    ],
)
def test_a_file_that_is_no_yaml_text(tmp_path: Path, content: bytes, named: str) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    (tmp_path / "b.yaml").write_text("base: a.yaml")
    for name, place in (
        ("a", f"--config: {tmp_path}/a.yaml: "),
        ("b", f"{tmp_path}/b.yaml line 1: base: {tmp_path}/a.yaml: "),
    ):
        with pytest.raises(ConfigError, match=named) as caught:
            read_sweep_request(["--config", f"{tmp_path}/{name}.yaml"])
        assert str(caught.value).startswith(place)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("digit.yaml", "digits.yaml?"), ("zzz", "check the path"), ("no/such.yaml", "no such config file"),
        ("", "not a regular file"), ("digits.yaml/x", "Not a directory"), ("a\0b", "not a possible file name"),
        ("pipe.yaml", "not a regular file"),  # which is not waited for
    ],
)  # fmt: skip
def test_a_config_file_that_cannot_be_opened(tmp_path: Path, name: str, named: str) -> None:
    (tmp_path / "digits.yaml").write_text("model: {name: resnet20}\n")
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match=named) as caught:
        read_request(["--config", f"{tmp_path}/{name}"], "fastwi.train")
    assert str(caught.value).startswith("--config: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("first", "second"), [("a.yaml", "a.yaml"), ("./../{here}/a.yaml", ""), ("b.yaml", "a.yaml")]
)
def test_a_circle_of_bases(tmp_path: Path, first: str, second: str) -> None:
    (tmp_path / "a.yaml").write_text(f"base: {first.format(here=tmp_path.name)}")
    (tmp_path / "b.yaml").write_text(f"base: {second}")
    with pytest.raises(ConfigError, match=r"yaml line 1: base: .*a\.yaml leads round in a circle") as caught:
        read_sweep_request(["--config", str(tmp_path / "a.yaml")])
    assert "\n" not in str(caught.value)


def test_a_chain_of_bases_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "0.yaml").write_text("experiment: {k: 3}")
    for number in range(1, 400):
        (tmp_path / f"{number}.yaml").write_text(f"base: {number - 1}.yaml")
    assert read_sweep_request(["--config", str(tmp_path / "8.yaml")]).config.experiment.k == 3
    for last in (9, 399):
        with pytest.raises(ConfigError, match=rf"/{last - 9}\.yaml is base number 9 .*at most 8") as caught:
            read_sweep_request(["--config", str(tmp_path / f"{last}.yaml")])
        assert "\n" not in str(caught.value)


def test_a_file_whose_name_cannot_name_the_sweep(tmp_path: Path) -> None:
    file = tmp_path / "a\\b.yaml"
    file.write_text("experiment: {k: 1}")
    with pytest.raises(ConfigError, match=r"^sweep\.name: 'a\\\\b'"):
        read_sweep_request(["--config", str(file)])
    assert read_sweep_request(["--config", str(file), "--sweep.name", "ab"]).sweep == "ab"


@pytest.mark.parametrize("text", ["{a: " * 100_000, "[" * 100_000, "- " * 100_000, "experiment:\n  k: " + "[" * 31])
def test_deep_nesting_is_refused_before_it_costs_time(text: str) -> None:
    with pytest.raises(ConfigError, match="nested too deeply"):
        config_from_yaml(text)  # PyYAML by itself takes minutes: its time grows with the square


def test_a_configuration_that_was_built_by_hand_is_checked() -> None:
    config = dataclasses.replace(Config(), data=DataConfig(train_images=5), optimizer=OptimizerConfig(batch_size=6))
    with pytest.raises(ConfigError, match=r"^optimizer\.batch_size: 6 is more than data\.train_images, 5"):
        read_config(config, {})
