"""The loading benchmark on a few images: every contestant hands out what it says, and results are written."""

import json

import pytest
import torch

from benchmarks import loading
from benchmarks.peers.airbench import AirbenchBatches
from benchmarks.peers.ffcv import FFCVBatches, normaliser
from benchmarks.task import Unavailable, make_task


def test_a_small_run_writes_its_results(tmp_path, digits_directory, capsys):
    contestants = "augment,again,augment-many,streamed,streamed-jpeg,streamed-jpeg-unchecked,torch-eager,dataloader"
    arguments = [f"--data={digits_directory}", f"--out={tmp_path}", "--device=cpu", f"--contestants={contestants}"]
    arguments += ["--batch=8", "--batches=3", "--rounds=2", "--workers=0"]
    assert loading.main(arguments) == 0
    told = json.loads((tmp_path / "loading-cpu.json").read_text())
    found = {m["contestant"]: m for m in told["measurements"]}
    assert set(found) == {loading.CONTESTANTS[key][0] for key in contestants.split(",")}
    floor = told["settings"]["memory_floor_images_per_s"]
    bytes_each = {"bfloat16": 2, "float32": 4}[told["settings"]["dtype"]]
    assert told["settings"]["bytes_an_image"] == 16 * 16 * 3 * (1 + bytes_each)
    for name, m in found.items():
        assert m["of_memory_floor_%"] == pytest.approx(100 * m["images_per_s_median"] / floor)
        assert m["images_a_round"] == 3 * 8 * (loading.MANY if "networks" in name else 1)
    assert found["fastwi resident"]["fastwi_ratio"] == 1
    assert (tmp_path / "loading-cpu.png").read_bytes().startswith(b"\x89PNG")
    assert "FFCV" not in capsys.readouterr().out


def test_unknown_contestants_are_refused(capsys):
    with pytest.raises(SystemExit):
        loading.main(["--contestants=dali"])
    assert "dali" in capsys.readouterr().err


@pytest.fixture
def task(digits_directory):
    return make_task(str(digits_directory), "cpu", 8, 3, 1)


@pytest.mark.ffcv
def test_ffcv_hands_out_the_images(task, monkeypatch):
    pytest.importorskip("ffcv")
    monkeypatch.setattr(torch, "compile", lambda call=None, **_: call or (lambda given: given))
    threads = torch.get_num_threads()
    batches = FFCVBatches(task)
    found = list(batches.epoch())
    batches.close()
    assert torch.get_num_threads() == threads
    _check_epoch(task, found)


def test_airbench_hands_out_the_images(task):
    pytest.importorskip("airbench")
    _check_epoch(task, list(AirbenchBatches(task).epoch()))


def _check_epoch(task, found):
    assert len(found) == 3
    for x_NCHW, labels_N in found:
        assert x_NCHW.shape == (8, 3, 16, 16)
        assert x_NCHW.dtype == task.dtype
        assert x_NCHW.is_contiguous(memory_format=torch.channels_last)
        assert labels_N.shape == (8,)
    labels = torch.cat([labels_N for _, labels_N in found])
    assert torch.equal(labels.sort().values, task.dataset.labels_N.sort().values)


def test_normalising_after_ffcv_is_the_table(task, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda call=None, **_: call or (lambda given: given))
    v_256 = torch.arange(256, dtype=torch.uint8)
    found = normaliser(task)(v_256.expand(3, 256)[None, :, None])[0, :, 0]
    wanted = task.dataset.table_C256.to(task.dtype)
    # One more rounding in float32 before that to bf16, which may turn it over: one unit in the last of 8 bits.
    torch.testing.assert_close(found.float(), wanted.float(), rtol=2**-7, atol=1e-5)


def test_a_gpu_is_left_to_others(task):
    import dataclasses

    with pytest.raises(Unavailable, match="cupy"):
        FFCVBatches(dataclasses.replace(task, device=torch.device("cuda")))


def test_a_small_set_is_taken_again_and_again(digits_directory):
    task = make_task(str(digits_directory), "cpu", 500, 4, 1)
    whole = make_task(str(digits_directory), "cpu", 1437, 1, 1)
    assert len(task.dataset) == 2000
    assert torch.equal(task.dataset.images_NHWC[:1437], whole.dataset.images_NHWC)
    assert torch.equal(task.dataset.images_NHWC[1437:], whole.dataset.images_NHWC[:563])


def test_one_failure_costs_no_others_figures(tmp_path, digits_directory, capsys, monkeypatch):
    def broken(_task):
        raise RuntimeError("no such\nluck")

    monkeypatch.setitem(loading.CONTESTANTS, "dataloader", ("the usual loader", broken))
    arguments = [
        f"--data={digits_directory}",
        f"--out={tmp_path}",
        "--device=cpu",
        "--contestants=augment,dataloader",
    ]
    assert loading.main([*arguments, "--batch=8", "--batches=2", "--rounds=2", "--workers=0"]) == 1
    assert "the usual loader: failed: RuntimeError: no such\n" in capsys.readouterr().out
    found = {m["contestant"]: m for m in json.loads((tmp_path / "loading-cpu.json").read_text())["measurements"]}
    assert found["fastwi resident"]["images_per_s_median"] > 0
    assert found["the usual loader"] == {
        "contestant": "the usual loader", "not_measured": "failed: RuntimeError: no such",
    }  # fmt: skip
