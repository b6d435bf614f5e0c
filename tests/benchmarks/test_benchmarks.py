"""Every benchmark in a tiny run: its table, its JSON file and its plot; and every command that the documents name."""

import functools
import importlib
import json
import os
import re
import shlex
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.autograd import DeviceType

from benchmarks import (
    device_check,
    evaluation,
    interpolation,
    kernel_times,
    memory,
    numbers,
    planning,
    runner,
    throughput,
    tune,
)
from benchmarks.output import cell, plot
from benchmarks.peers import beside, control
from fastwi.engine.choose import ENGINES
from fastwi.errors import UserError
from fastwi.kernels.cpu import library

ROOT = Path(__file__).parents[2]
TINY = {
    "busy": "--batch=16 --batches=1 --rounds=2 --busy=1",
    "convolution": "--image=8 --batch=2 --rounds=2",
    "coverage": "--parents=5,6 --datasets=20 --correlations=2 --resamples=100",
    "evaluation": "--device=cpu --alphas=4 --pieces=2 --images=16 --batch=8 --baselines=fastwi,again",
    "host": "--pairs=2 --rounds=2",
    "interpolation": "--device=cpu --pairs=2 --rounds=2",
    "memory": "--device=cpu --members=1,2 --rounds=1 --engines=loop --batch=8 --width=0.25",
    "numbers": "--device=cpu --members=2 --steps=1 --batch=4 --width=0.0625",
    "planning": "--trajectories=100 --rounds=2",
    "sweep": "--rounds=1 --threads=1 --parents=2 --pairs=3 --images=64",
    "throughput": "--device=cpu --members=1,2 --width=0.25 --batch=8 --batches=2 --least=1 --rounds=2 --workers=1 "
    "--baselines=usual,stock-graphs,vmap-eager,loop,again --kernels=2",
}
WITHOUT_DATA = {"convolution", "coverage", "host", "interpolation", "numbers", "planning", "sweep"}


def run(name, directory, data):
    """The JSON file of a tiny run, without its floors."""
    words = shlex.split(TINY[name]) + ([] if name in WITHOUT_DATA else [f"--data={data}"])
    assert importlib.import_module(f"benchmarks.{name}").main([*words, f"--out={directory}"]) == 0
    told = json.loads((directory / f"{name}-cpu.json").read_text())
    floors = [row for row in told["measurements"] if "floor" in row.get("case", "")]
    assert all(row.get("images_per_s", row.get("pairs_per_s", 0)) > 0 for row in floors)
    assert bool(floors) == (name in ("convolution", "evaluation", "interpolation", "throughput"))
    told["measurements"] = [row for row in told["measurements"] if row not in floors]
    return told


def rows_of(told, *keys):
    return {tuple(row[key] for key in keys): row for row in told["measurements"]}


def check_busy(told):
    rows = rows_of(told, "busy", "case")
    assert set(rows) == {(f"{count} busy", way) for count in (0, 1) for way in ("default", "fastwi", "passive")}
    assert all(row["reference_is_x"] == 1 for (_, way), row in rows.items() if way == "fastwi")


def check_convolution(told):
    rows = rows_of(told, "convolution", "pass", "case")
    assert ("1 x 3->16 3x3/1 at 8x8", "step", "channels-last") in rows
    for layer in ("1 x 3->16 3x3/1 at 8x8", "6 x 16->16 3x3/1 at 8x8", "1 x 16->32 3x3/2 at 8x8"):
        assert ((layer, "step", "fastwi kernel, again") in rows) == (library() is not None)
    assert ("5 x 64->64 3x3/1 at 2x2", "step", "contiguous") in rows
    assert ("5 x 64->64 3x3/1 at 2x2", "step", "fastwi kernel") not in rows  # it is computed by PyTorch there
    assert sum(int(name.split()[0]) for name, each, way in rows if (each, way) == ("step", "contiguous")) == 19
    for row in rows.values():  # 2 images a round
        flops = 1e9 * row["GFLOP_per_s"] / row["images_per_s"]
        if row["case"] == "contiguous" and "16->16" in row["convolution"]:
            assert flops == pytest.approx(2 * 16 * 64 * 16 * 9 * (3 if row["pass"] == "step" else 1))


def check_coverage(told):
    rows = rows_of(told, "distribution", "parents", "method")
    assert len(rows) == (6 + 8) * 2 * 4
    of_means = [row["coverage_%"] for row in rows.values() if row["statistic"] == "mean"]
    assert 50 <= min(of_means) < max(of_means) == 100  # of 20 data sets
    for (name, parents, method), row in rows.items():
        if method == "widened percentile":
            assert row["coverage_%"] >= rows[name, parents, "percentile"]["coverage_%"]
        # Most barriers are 0, and of 5 parents now and then all.
        given = (name, parents, method) != ("barriers (most are 0)", 5, "fastwi")
        assert (row["without_interval_%"] == 0) == given


def check_evaluation(told):
    rows = rows_of(told, "case")
    assert {case for (case,) in rows} == {"fastwi", "fastwi, again"}
    for row in told["measurements"]:  # 2 of 4 alphas, on 16 images of each split
        assert row["images_a_round"] == 2 * 2 * 16
        assert row["s_in_all"] == pytest.approx(sum(row["seconds"]))
        assert len(row["seconds"]) == 2


def check_host(told):
    rows = rows_of(told, "case")
    assert {("rows, planned",), ("rows, once",), ("averages",)} < set(rows)
    assert all(0 < row["least_us"] <= row["us"] for row in rows.values())


def check_interpolation(told):
    rows = rows_of(told, "case")
    assert {("fastwi rows",), ("fastwi rows, again",), ("fastwi averages",), ("AveragedModel",)} <= set(rows)
    row = rows["torch.lerp, rows gathered",]
    assert row["GB_per_s"] / row["pairs_per_s"] == pytest.approx(12e-9 * (269_722 + 1_376))


def check_memory(told):
    (row,) = told["measurements"]
    assert row["engine"] == "loop"
    assert row["peak_MB_of_2"] - row["peak_MB_of_1"] == pytest.approx(row["MB_a_member"])
    assert min(row["peak_MB_of_1"], row["peak_MB_of_2"]) > 10
    # Weights, momentum and statistics of a ResNet20 of a quarter of the width, with room for alignment.
    assert 0.1 < row["population_MB_a_member"] < 0.2


def check_numbers(told):
    rows = rows_of(told, "precision", "engine")
    assert set(rows) == {(p, e) for p in numbers.LEAST for e in (numbers.EAGER, *ENGINES)}
    assert {row["verdict"] for row in rows.values()} == {"ok"}
    assert all(rows["bf16", engine]["gradient"] > rows["fp32", engine]["gradient"] > 0 for engine in ENGINES)


def check_planning(told):
    for row in told["measurements"]:  # one parent: 5 k, 64 children, 3 s
        assert (row["trajectories"], row["points"]) == (801, 480)
        assert 10 < row["peak_MB"] < 1000


def check_sweep(told):
    rows = rows_of(told, "part")
    # Parents to k = 20; 4 children of each k for s = 10; 10 epochs of each of their 2 averages.
    assert rows["path",]["epochs"] == 2 * (20 + 2 * 4 * 10 + 2 * 2 * 10)
    # k to 6; 8 children of 3 k for 4 epochs; 2 epochs of 4 averages in 9 cells.
    assert rows["grid",]["epochs"] == 6 + 3 * 8 * 4 + 9 * 4 * 2
    assert 0 < rows["grid",]["engine_s"] < rows["grid",]["seconds"]
    assert rows["pairs",]["pairs"] == 3
    assert rows["pairs",]["of_files_%"] > 0


def check_throughput(told):
    kernels = [row for row in told["measurements"] if "kernel" in row]
    told["measurements"] = [row for row in told["measurements"] if row not in kernels]
    for M in (1, 2):
        (whole, *parts) = (row for row in kernels if row["members"] == M)
        assert sum(row["us_a_step"] for row in parts) == pytest.approx(whole["us_a_step"])
        assert sum(row["launches_a_step"] for row in parts) == pytest.approx(whole["launches_a_step"])
    rows = rows_of(told, "case", "members")
    measured = {key for key, row in rows.items() if "not_measured" not in row}
    of_each_m = {"vmap, eager", "fastwi loop", "fastwi loop, again"}
    assert measured == {("usual script", 1)} | {(name, M) for name in of_each_m for M in (1, 2)}
    assert "GPU" in rows["best stock loop, CUDA graphs", 2]["not_measured"]
    assert rows["fastwi loop", 2]["reference_is_x"] == 1
    # Two steps of 8 images of one network a round, or one step of 8 images of each of two.
    assert {rows[key]["images_a_round"] for key in measured} == {16}


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_run(name, digits_directory, tmp_path, capsys, monkeypatch):
    if name == "host":
        pytest.importorskip("triton")
    if name == "memory":
        needs_peaks()
    if name == "planning":
        (tmp_path / "torch.py").write_text("raise AssertionError('planning needs no torch')")
        monkeypatch.syspath_prepend(tmp_path)
    titles = []
    monkeypatch.setattr(runner, "plot", lambda stem, title, *more: titles.append(title) or plot(stem, title, *more))
    told = run(name, tmp_path, digits_directory)
    assert len(set(titles)) <= 1  # a figure has the points of all tables, and so has its title
    shown = capsys.readouterr().out
    globals()[f"check_{name}"](told)
    assert {"cpu", "torch", "commit", "date"} <= told["machine"].keys()
    assert told["settings"]
    for row in told["measurements"]:  # the figures themselves: test_runner.py
        rates = [value for key, value in row.items() if key in ("images_per_s", "pairs_per_s") and "case" in row]
        assert all(row["case"] in shown and cell(rate) in shown for rate in rates)
    if name not in ("coverage", "host", "numbers", "planning", "sweep"):
        assert (tmp_path / f"{name}-cpu.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / f"{name}-cpu.svg").read_text()


def test_a_long_path(tmp_path):
    from benchmarks import sweep

    assert sweep.main(["--long=1000", "--rounds=1", "--threads=1", f"--out={tmp_path}"]) == 0
    (row,) = json.loads((tmp_path / "sweep-cpu.json").read_text())["measurements"]
    assert (row["part"], row["epochs"]) == ("long", 1000)


def commands():
    """(module, arguments) of every `python -m benchmarks.X` in documents."""
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]:
        text = path.read_text().replace("\\\n", " ")
        for found in re.finditer(r"-m benchmarks\.([\w.]+)([^\n`|]*)", text):
            yield pytest.param(found[1], shlex.split(found[2].partition(" and ")[0]), id=f"{path.name}:{found[0]}")


@pytest.mark.parametrize(("name", "arguments"), list(commands()))
def test_commands_of_the_documents_are_accepted(name, arguments, monkeypatch):
    def accept(*_):
        raise SystemExit(0)

    monkeypatch.setattr(runner, "Report", accept)
    monkeypatch.setattr(device_check, "_Check", accept)
    monkeypatch.setattr(control, "read", accept)
    monkeypatch.setattr(beside, "read_run", accept)
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"benchmarks.{name}").main(arguments)
    assert stopped.value.code == 0


@pytest.mark.parametrize(
    ("name", "words", "named"),
    [
        ("throughput", ["--baselines=loop,jax"], "jax"),
        ("throughput", ["--members=2,1"], "--members"),
        ("throughput", ["--members=0,1"], "--members"),
        ("throughput", ["--minutes=soon"], "soon"),
        ("busy", ["--batch=0"], "--batch"),
        ("sweep", ["--parts=path,walk"], "walk"),
        ("memory", ["--data=nowhere"], "nowhere"),
        ("busy", ["--data=nowhere"], "nowhere"),
        ("evaluation", ["--alphas=30", "--pieces=4", "--data=nowhere"], "--pieces"),
    ],
)
def test_bad_input_is_one_line(name, words, named, capsys):
    assert importlib.import_module(f"benchmarks.{name}").main(words) == 2
    line = capsys.readouterr().err
    assert named in line
    assert len(line.splitlines()) == 1


def test_cases_that_disagree_are_refused():
    exact = np.zeros((2, 2, 2))
    found = {evaluation.FASTWI: exact + np.array([1e-5, 0.4]), evaluation.SHOWN[evaluation.STOCK]: exact}
    evaluation.verify(torch.float32, 0.0, found)
    for off in ([1e-3, 0.0], [0.0, 0.6], [np.nan, 0.0]):
        with pytest.raises(UserError, match="fastwi differs"):
            evaluation.verify(torch.float32, 0.0, found | {evaluation.FASTWI: exact + off})
    original = interpolation.random_population(4, torch.device("cpu"))
    restore, _, *rest = interpolation.row_ways(original)[interpolation.OURS]
    with pytest.raises(RuntimeError, match="wrong way"):
        interpolation.checked("wrong way", (restore, lambda: None, *rest), 2)


def test_numbers_that_are_off_are_found(seed):
    """Every quantity, of one member of two; and members that are alike."""
    draw = torch.Generator().manual_seed(seed)
    exact = {name: torch.randn(2, 5, generator=draw, dtype=torch.float64) for name in numbers.QUANTITIES}
    eager = numbers.compare(exact, exact)
    assert numbers.judge(eager, eager, 2.0, numbers.LEAST["fp32"]) == "ok"
    for name, wanted in exact.items():
        for wrong in (0.9, float("nan")):
            found = exact | {name: torch.stack([wanted[0], wrong * wanted[1]])}
            assert numbers.judge(numbers.compare(found, exact), eager, 2.0, numbers.LEAST["fp32"]).startswith(name)
    for wrong in (0.4, float("nan")):
        far = eager | {"gradient": wrong}
        assert numbers.EAGER in numbers.judge(eager, far, 2.0, numbers.LEAST["fp32"])
    alike = exact | {"way": exact["way"][[0, 0]]}
    assert numbers.judge(numbers.compare(alike, alike), eager, 2.0, numbers.LEAST["fp32"]) == "members are alike"


def test_kernel_and_call_apart(monkeypatch):
    measured = {"copy": (9.0, 0.5, 1.0), "a way": (3.0, 0.25, 2.0)}
    monkeypatch.setattr(interpolation, "of_calls", lambda runs, _device: {name: measured[name] for name in runs})
    copy = runner.Floor("memory", {"copy": lambda: None}, lambda timings: 4 / timings["copy"][0])
    ways = {"a way": (lambda: None, lambda: None, list, [])}
    (row,) = interpolation.kernel_and_call(ways, copy, 6, torch.device("cpu"))
    assert row == {
        "case": "a way", "host_ms": 3000, "kernels_ms": 250, "kernels_a_call": 2, "kernel_pairs_per_s": 24,
        "of_copy_kernel_%": 300,
    }  # fmt: skip


def test_the_kernels_of_a_step_and_of_a_call():
    x = torch.rand(16, 16)

    def epoch(report):
        for step in range(4):
            for _ in range(3 if step else 50):  # the first step is not profiled
                torch.mm(x, x)
            report(10)

    rows = {row["kernel"]: row for row in kernel_times.of_steps(epoch, 10, 4, torch.device("cpu"))}
    assert rows["aten::mm"]["launches_a_step"] == 3
    calls = {"one": lambda: torch.mm(x, x), "two": lambda: (torch.mm(x, x), torch.mm(x, x))}
    measured = kernel_times.of_calls(calls, torch.device("cpu"))
    assert measured["two"][2] == 2 * measured["one"][2] > 0
    assert all(host > 0 and seconds > 0 for host, seconds, _ in measured.values())
    events = [  # a GPU's: operators have their kernels' time too, and annotations span them
        SimpleNamespace(device_type=kind, is_user_annotation=marked, key=key, self_device_time_total=us, count=count)
        for kind, marked, key, us, count in (
            (DeviceType.CPU, False, "aten::mm", 7, 2), (DeviceType.CUDA, True, "a step", 9, 1),
            (DeviceType.CUDA, False, "void gemm", 3, 2), (DeviceType.CUDA, False, "copy", 4, 1),
        )
    ]  # fmt: skip
    profiler = SimpleNamespace(key_averages=lambda: events)
    assert kernel_times.kernels_of(profiler, torch.device("cuda")) == [("copy", 4e-6, 1), ("gemm", 3e-6, 2)]
    whole, *kernels = [{"kernel": name, "us_a_step": us} for name, us in (("all", 6), ("a", 3), ("b", 2), ("c", 1))]
    assert kernel_times.slowest([whole, *kernels], 1)[1:] == [kernels[0], {"kernel": "2 others", "us_a_step": 3}]


def test_tunes_table_is_shown_row_by_row(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("fastwi.tune._speed", lambda _kind, _config, _device, members: 100.0 * members)
    assert tune.main(["--device=cpu", f"--out={tmp_path}"]) == 0
    rows = json.loads((tmp_path / "tune-cpu.json").read_text())["measurements"]
    assert {"engine": "loop", "members": 4, "images_per_s": 400.0} in rows
    assert capsys.readouterr().out.count("images_per_s") == len(rows)
    assert tune.main(["--device=cpu", "--seconds=0"]) == 0  # what there is no time for has not failed
    monkeypatch.setattr("fastwi.tune._speed", lambda *_: 1 // 0)
    assert tune.main(["--device=cpu"]) == 1


def needs_peaks():
    if not os.access(memory._CLEAR, os.W_OK):
        pytest.skip("the system does not let a process measure its peak again")


def test_a_peak_is_seen_and_forgotten():
    import mmap

    needs_peaks()
    size = 64 * 2**20
    memory.forget_peak(torch.device("cpu"))
    before = runner.peak_bytes()
    with mmap.mmap(-1, size) as block:  # not from the heap, which may hold freed memory
        for page in range(0, size, mmap.PAGESIZE):
            block[page] = 1
    assert runner.peak_bytes() - before > 0.9 * size
    memory.forget_peak(torch.device("cpu"))
    assert runner.peak_bytes() - before < 0.5 * size


def test_a_peak_that_is_not_known_is_left_out_and_never_0(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "_STATUS", tmp_path / "absent")
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "absent" / "file")
    with pytest.raises(UserError, match="cannot be measured here"):
        runner.peak_bytes()
    with pytest.raises(UserError, match="cannot be forgotten here"):
        memory.forget_peak(torch.device("cpu"))
    assert "peak_MB" not in planning.measure(1)


def test_a_profile_that_fails_costs_no_other(tmp_path, monkeypatch, capsys):
    """One engine fails when it is run, one when it is profiled."""

    def run(name, *_):
        if name == "loop":
            raise ValueError("no such kernel")

    def of_steps(epoch, *_):
        if epoch.args == ("graph",):
            raise KeyError("no such event")
        return [{"kernel": epoch.args[0], "us_a_step": 1.0}]

    def fastwi_case(_task, _members, name):
        return runner.Case(functools.partial(run, name), 8), None

    monkeypatch.setattr(throughput, "fastwi_case", fastwi_case)
    monkeypatch.setattr(throughput, "of_steps", of_steps)
    words = (
        "--data=random --device=cpu --members=1 --width=0.25 --batch=8 --batches=1 --least=1 --rounds=1 --kernels=1"
    )
    assert throughput.main([*words.split(), "--baselines=loop,graph,stacked", f"--out={tmp_path}"]) == 1
    told = json.loads((tmp_path / "throughput-cpu.json").read_text())["measurements"]
    assert {row["case"] for row in told if "images_per_s" in row} >= {"fastwi graph", "fastwi stacked"}
    assert [row["case"] for row in told if "kernel" in row] == ["fastwi stacked"]
    shown = capsys.readouterr().out
    assert shown.count("no such kernel") == 1
    assert "no such event" in shown


def test_a_way_that_fails_costs_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(interpolation.Population, "averages", lambda *_: 1 / 0)
    words = ["--device=cpu", "--pairs=2", "--rounds=1", "--match=fastwi", f"--out={tmp_path}"]
    assert interpolation.main(words) == 1
    told = rows_of(json.loads((tmp_path / "interpolation-cpu.json").read_text()), "case")
    assert told["fastwi rows",]["pairs_per_s"] > 0
    assert "ZeroDivisionError" in told["fastwi averages",]["not_measured"]


def test_engines_apart(monkeypatch):
    """In processes of their own; one that a fault ends has a row, and the others theirs."""
    settings = {"factor": 2.0, "device": "cpu", "members": 2, "steps": 1, "batch": 4, "width": 0.0625}
    ((way, row),) = numbers.rows_of([("fp32", numbers.EAGER)], 1, **settings)
    assert (way, row["verdict"]) == (("fp32", numbers.EAGER), "ok")

    def fresh(_function, way, **_):
        _, engine = way
        if engine == "halo":
            raise BrokenProcessPool("terminated abruptly")
        return {"engine": engine, "verdict": "ok"}

    monkeypatch.setattr(numbers, "fresh", fresh)
    found = dict(numbers.rows_of([("bf16", "halo"), ("bf16", "graph")], 1, **settings))
    assert found["bf16", "graph"] == {"engine": "graph", "verdict": "ok"}
    assert "terminated" in found["bf16", "halo"]["verdict"]
