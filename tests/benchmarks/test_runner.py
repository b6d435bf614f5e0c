"""The runner: rounds in turn, what is counted, failures of one case; floors; processes of their own."""

import dataclasses
import json
import os
import time
from functools import partial

import pytest
import torch

from benchmarks import floor, runner, task
from benchmarks.peers import single
from benchmarks.runner import Case, Floor, Report
from fastwi.data.card import read_card
from fastwi.engine.device import compiled
from fastwi.errors import UserError
from fastwi.kernels.cpu import library
from fastwi.models.registry import build_model


@pytest.fixture
def small(digits_directory):
    return task.make_task(str(digits_directory), 3, 8, workers=1)


def test_a_table_of_known_times(tmp_path, capsys, monkeypatch):
    """On a clock that the runs set all figures follow by hand. The first run builds, the second is a warm-up."""
    now, prepared, closed = [0.0], [], []

    def taking(*seconds):
        rounds = iter(seconds)

        def run():
            now[0] += next(rounds)

        return run

    def unavailable():
        raise UserError("needs a GPU")

    def broken():
        raise RuntimeError("no such\nluck")

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    fastwi = Case(taking(9, 9, 9, *[2] * 6), 4, lambda: prepared.append(1), lambda: closed.append(1))
    cases = {"fastwi": lambda: fastwi, "other": Case(taking(9, 9, 8, 4, 2), 8), "gpu": unavailable, "base": broken}
    bound = Floor("copy", {"copy": taking(*[0.5] * 8)}, lambda timings: 8 * timings["copy"][2])
    report = Report("tiny", {"device": "cpu"}, tmp_path)
    report.time("Title", "images", cases, 3, reference=["fastwi", "other"], again="fastwi", each={"GB": 0.5},
                floors=[bound], at={"members": 3})  # fmt: skip
    assert not report.failed  # a baseline's failure
    assert (len(prepared), len(closed)) == (9, 1)
    told = json.loads((tmp_path / "tiny-cpu.json").read_text())
    found = {row.pop("case"): row for row in told["measurements"]}
    assert found["gpu"] == {"members": 3, "not_measured": "needs a GPU"}
    assert found["base"] == {"members": 3, "not_measured": "failed: RuntimeError: no such"}
    assert found["other"] == {
        "members": 3, "images_per_s": 2.0, "quartiles": [1.5, 3.0],
        "ms_a_round": 4000.0, "reference_is_x": 1.0, "GB_per_s": 1.0, "of_copy_floor_%": 50.0, "images_a_round": 8,
        "seconds": [8.0, 4.0, 2.0],
    }  # fmt: skip
    assert found["fastwi"] == found["fastwi, again"]
    assert found["fastwi"]["seconds"] == [2.0, 2.0, 2.0]
    assert found["copy floor"] == {"members": 3, "images_per_s": 4.0}
    shown = " ".join(capsys.readouterr().out.split())
    assert "gpu: needs a GPU" in shown
    assert "Title; 3 rounds; reference: fastwi" in shown
    assert "4,000" in shown


def test_what_was_built_is_closed_once_whatever_fails():
    """A loader's workers, for one, where the first run fails, or where cases disagree."""
    closed = []
    cases = {
        name: Case(run, 1, close=partial(closed.append, name)) for name, run in (("a", lambda: 1 / 0), ("b", int))
    }
    report = Report("tiny", {"device": "cpu"}, None)
    report.time("Title", "images", cases, 1, again="b")
    assert sorted(closed) == ["a", "b"]

    def disagree(_results):
        raise UserError("off")

    with pytest.raises(UserError, match="off"):
        report.time("Title", "images", cases, 1, check=disagree)
    assert sorted(closed) == ["a", "a", "b", "b"]


def test_fastwis_own_failure_is_a_failure(capsys):
    report = Report("tiny", {"device": "cpu"}, None)
    report.time("Title", "images", {"fastwi": lambda: 1 / 0}, 1)
    assert report.failed
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_parts_of_a_whole_are_summed(monkeypatch):
    rows = []
    monkeypatch.setattr(Report, "add", lambda _self, _title, _rows, found=(), **_: rows.extend(found))
    monkeypatch.setattr(runner, "interleave", lambda *_: {"a": [1.0, 2.0, 6.0], "b": [2.0, 2.0, 2.0]})
    cases = {name: Case(lambda: None, 1) for name in "ab"}
    Report("tiny", {"device": "cpu"}, None).time("Title", "images", cases, 3, reference=["b"], sums=True)
    assert [row["s_in_all"] for row in rows] == [9.0, 6.0]
    assert [row["reference_is_x"] for row in rows] == [1.5, 1.0]
    assert [row["images_per_s"] for row in rows] == [3 / 9, 0.5]  # of the whole, as the verdict


def test_options_are_read_by_their_defaults(monkeypatch):
    given = []

    @runner.benchmark
    def main(report, rounds: int = 9, names: tuple[str, ...] = ("a", "b"), least: int = 0, members=(1, 2), hours=0.5):
        given.append((rounds, names, least, members, hours))

    monkeypatch.setattr(runner, "Report", lambda *_: type("R", (), {"failed": False}))
    for words in ([], ["--rounds=5", "--names=b", "--least=0", "--members=1,4,8", "--hours=2"]):
        assert main(words) == 0
    assert given == [(9, ("a", "b"), 0, (1, 2), 0.5), (5, ("b",), 0, (1, 4, 8), 2.0)]


def test_processes_of_their_own():
    assert runner.fresh(os.listdir) == []
    assert runner.fresh(os.getcwd) != os.getcwd()
    assert runner.fresh(os.getpid) != os.getpid()
    with pytest.raises(UserError, match="nowhere"):
        runner.fresh(read_card, directory="nowhere")
    with pytest.raises(RuntimeError, match="terminated"):
        runner.fresh(os._exit, status=3)


def test_the_convolutions_of_resnet20():
    network = build_model("resnet20", 10).train()
    layers, outputs = floor.convolutions(network, torch.Size([32, 32, 3]))
    assert outputs == 188_416
    assert [layer.first for layer, _ in layers] == [True] + [False] * 5
    assert sorted(count for _, count in layers) == [1, 1, 1, 5, 5, 6]
    products = sum(count * layer.flops(training=False) for layer, count in layers) / 2
    assert products + 640 == pytest.approx(40.55e6, rel=1e-3)  # the linear layer has 640
    assert all(layer.flops(True) == layer.flops(False) * (2 if layer.first else 3) for layer, _ in layers)
    assert network.training, "the network that was asked about is left as it was"


@pytest.mark.parametrize("training", [True, False])
def test_floors_follow_from_timings(small, training):
    each, floors = floor.floors_of(small, 2, training)
    _, outputs = floor.convolutions(small.network(), torch.Size([16, 16, 3]))
    assert each["GB"] == pytest.approx((8 if training else 2.5) * small.dtype.itemsize * outputs / 1e9)
    # One order of each layer twice as fast: the faster one counts.
    timings = {name: [0.25 if name.endswith("channels-last") else 0.5] for each in floors for name in each.runs}
    memory, convolutions = floors
    copied = memory.runs["copy"]()  # the target, of as many bytes as the source
    assert memory.rate(timings) == pytest.approx(2 * copied.nbytes / 0.5 / (1e9 * each["GB"]))
    assert convolutions.rate(timings) == pytest.approx(2 / (19 * 0.25))


@pytest.mark.parametrize("training", [True, False])
def test_what_is_timed_is_the_convolution(training):
    layers, _ = floor.convolutions(build_model("resnet20", 10), torch.Size([16, 16, 3]))
    for each, _ in layers:
        ways = floor.ways(each, 3, torch.float32, training)
        assert set(ways) == {*floor.ORDERS, *([floor.OWN] if library() is not None else [])}
        sizes = [each.layer.weight.shape] if each.first else [(3, *each.input_CHW), each.layer.weight.shape]
        for run in ways.values():
            result = run()
            if training:
                assert [gradient.shape for gradient in result] == sizes
            else:
                assert result.shape == (3, *each.output_CHW)
                assert not result.requires_grad


@pytest.mark.ffcv
def test_ffcv_hands_out_the_images(small, monkeypatch):
    pytest.importorskip("ffcv")
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)
    threads = torch.get_num_threads()
    epoch, close = single.ffcv_batches(small)
    found = list(epoch())
    close()
    assert torch.get_num_threads() == threads
    assert len(found) == 3
    for x_NCHW, labels_N in found:
        assert (x_NCHW.shape, x_NCHW.dtype, labels_N.shape) == ((8, 3, 16, 16), small.dtype, (8,))
        assert x_NCHW.is_contiguous(memory_format=torch.channels_last)
    labels = torch.cat([labels_N for _, labels_N in found])
    assert torch.equal(labels.sort().values, small.dataset.labels_N.sort().values)


def test_normalising_after_ffcv_is_the_table(small):
    v_256 = torch.arange(256, dtype=torch.uint8)
    found = single.normalised(small, v_256.expand(3, 256)[None, :, None])[0, :, 0]
    wanted = small.dataset.table_C256.to(small.dtype)
    # One more rounding in float32 before that to bf16, which may turn it over: one unit in the last of 8 bits.
    torch.testing.assert_close(found.float(), wanted.float(), rtol=2**-7, atol=1e-5)


def test_random_images_stand_in_for_a_dataset():
    drawn = task.make_task(task.RANDOM, 3, 8)
    assert drawn.dataset.images_NHWC.shape == (24, 32, 32, 3)
    assert len(drawn.dataset.labels_N.unique()) > 3
    other, _, _ = task.load(task.RANDOM, "test", torch.device("cpu"), 24)
    assert not torch.equal(other.images_NHWC.sort(0).values, drawn.dataset.images_NHWC.sort(0).values)


def test_rounds_end_in_time_and_rates_are_printed_after_each(capsys):
    report = Report("tiny", {"device": "cpu"}, None)
    report.time("Title", "images", {"fastwi": Case(lambda: None, 1)}, 5, until=0.0)
    shown = capsys.readouterr().out
    assert "round 1, images/s: fastwi" in shown
    assert "round 2" not in shown
    assert "Title; 1 rounds" in shown


def test_a_small_set_is_taken_again_and_again(digits_directory):
    again = task.make_task(str(digits_directory), 4, 500)
    whole = task.make_task(str(digits_directory), 1, 1437)
    assert len(again.dataset) == 2000
    assert torch.equal(again.dataset.images_NHWC[:1437], whole.dataset.images_NHWC)
    assert torch.equal(again.dataset.images_NHWC[1437:], whole.dataset.images_NHWC[:563])


def test_a_picture_that_fails_costs_no_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runner, "plot", lambda *_: 1 / 0)
    report = Report("tiny", {"device": "cpu"}, tmp_path)
    assert report.time("Title", "images", {"fastwi": Case(lambda: None, 1)}, 1) == ["fastwi"]
    assert "no picture: division by zero" in capsys.readouterr().out
    assert not report.failed
    (row,) = json.loads((tmp_path / "tiny-cpu.json").read_text())["measurements"]
    assert row["case"] == "fastwi"


def test_a_copy_is_long_beside_the_start_of_its_launch():
    """Of 4 us, on a GPU that copies 2.5 TB/s: under 2 %."""
    bound = floor.copy_floor(torch.device("meta"), 1.0)
    copied = bound.runs["copy"]()
    assert bound.rate({"copy": [2.0]}) == copied.nbytes
    assert copied.nbytes / 5e12 > 50 * 4e-6


def test_the_stock_loop_is_compiled_as_fastwi_is(small, monkeypatch):
    """On a GPU it is told to keep channels-last order too."""
    given = []
    monkeypatch.setattr(torch, "compile", lambda _function, **how: given.append(how["options"]))
    for device in map(torch.device, ("cpu", "cuda")):
        compiled(len, device)
        dataclasses.replace(small, device=device).compiled(len)
    single.compiled_step(small, True)
    on_cpu, on_gpu = given[0], given[2]
    assert given == [on_cpu, on_cpu, on_gpu, on_gpu, {"triton.cudagraphs": True}]
    assert on_cpu != on_gpu
