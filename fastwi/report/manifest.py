"""What a result was made with: versions, commit, device, dataset."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastwi.data.card import Card
from fastwi.engine.device import Resolved
from fastwi.models.changes import NETWORKS, Networks
from fastwi.version import __version__


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the source tree that runs, with "+changes" where files differ from it; None outside git."""
    root = Path(__file__).resolve().parents[2]
    try:
        run = [
            subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return run[0].strip() + ("+changes" if run[1].strip() else "")


def manifest(card: Card, resolved: Resolved, identity: str, networks: Networks) -> dict[str, Any]:
    """The manifest of a run as plain values; `networks`: the users' own."""
    device: dict[str, Any] = {"type": resolved.device.type, "cpu": cpu_name(), "threads": torch.get_num_threads()}
    if resolved.device.type == "cuda":
        device["gpu"] = torch.cuda.get_device_name(resolved.device)
        device["cuda"] = torch.version.cuda
    return {
        "identity": identity,
        "versions": {
            "fastwi": __version__, "python": platform.python_version(), "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "commit": commit(),
        "device": device,
        "precision": str(resolved.dtype).removeprefix("torch."),
        "backend": resolved.backend,
        "dataset": {"name": card.name, "sha256": dict(card.sha256), "source": card.source},
        **({NETWORKS: networks} if networks else {}),
    }  # fmt: skip
