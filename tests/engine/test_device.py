"""What `auto` means for threads and backends, on machines unlike this one."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

import fastwi.engine.device
from fastwi.config.schema import Config, EngineConfig
from fastwi.data.streamed import processors
from fastwi.engine.device import compiled, cpu_threads, resolve, resolve_device
from fastwi.engine.loop import LoopEngine
from fastwi.errors import ConfigError
from fastwi.models.registry import build_model


def train_with(threads: int) -> int:
    """The threads that an engine of `engine.threads: threads` leaves torch with."""
    torch.set_num_threads(3)
    config = EngineConfig(device="cpu", precision="fp32", backend="eager", threads=threads)
    LoopEngine(build_model("resnet20", 4, 0.25), Config(engine=config))
    assert cpu_threads(config) == torch.get_num_threads()
    return torch.get_num_threads()


@pytest.mark.parametrize(("allowed", "asked", "taken"), [(2, 0, 2), (64, 0, 3), (2, 5, 5)])
def test_threads_keep_to_a_containers_quota(monkeypatch, allowed, asked, taken):
    monkeypatch.setattr(fastwi.engine.device, "processors", lambda: allowed)
    assert train_with(asked) == taken


def test_processors_are_limited(monkeypatch):
    assert processors() >= 1
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # joblib's own limit stands in for a control group's
    assert processors() == 1


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1"])
def test_a_gpu_that_is_not_there_is_refused(monkeypatch, name):
    device = torch.device(name)
    there = (device.index or 0) + 1
    for count in range(3):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        if count >= there:
            assert resolve_device(name) == device
        else:
            with pytest.raises(ConfigError, match=f"engine.device: {name} .*{count} CUDA"):
                resolve_device(name)


@pytest.mark.parametrize(
    ("compiler", "headers", "backend"),
    [("/usr/bin/g++", True, "compile"), ("/usr/bin/g++", False, "eager"), (None, True, "eager")],
)
def test_compiled_only_where_that_can_work(monkeypatch, tmp_path: Path, compiler, headers, backend):
    if headers:
        (tmp_path / "Python.h").touch()
    monkeypatch.setattr(fastwi.engine.device, "compiler", lambda: compiler)
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    without_batch_norm = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    assert resolve(EngineConfig(device="cpu"), without_batch_norm).backend == backend


@pytest.mark.parametrize(("launcher", "backend"), [(True, "compile"), (False, "eager")])
def test_a_gpu_needs_a_compiler_too(monkeypatch, launcher, backend):
    """Triton builds its launchers with a C compiler, which slim images lack."""
    monkeypatch.setattr(fastwi.engine.device, "resolve_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(fastwi.engine.device, "has_triton", lambda _: launcher)
    assert resolve(EngineConfig(precision="fp32"), nn.Linear(2, 2)).backend == backend


def test_code_for_other_instructions_is_not_taken_from_the_cache(monkeypatch):
    """Measured with torch 2.14: after a run under ATEN_CPU_CAPABILITY=avx2 one without it crashed."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is restored
    places = set()
    for capability in ("avx2", "default"):
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", capability)
        compiled(torch.sin, torch.device("cpu"))
        places.add(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        compiled(torch.sin, torch.device("cpu"))  # the user's own choice stands, as this one does
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] in places
    assert len(places) == 2
