"""What a result was made with: versions, commit, device, dataset."""

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastwi.config.sweep import SweepSpec
from fastwi.engine.device import Resolved
from fastwi.models.changes import NETWORKS, Networks
from fastwi.version import __version__

if TYPE_CHECKING:
    from fastwi.data.card import Card
    from fastwi.experiment.planner import PlannedSweep
    from fastwi.experiment.resources import Resources


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        named = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        named = None
    return named[1].strip() if named else platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the source tree that runs, with "+changes" where files differ from it; None outside git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # an installed package may lie within somebody else's repository
        return None
    # Without what hooks of Git have: GIT_DIR is another repository, that of the hook.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    how: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 10, "check": True, "env": environment}
    try:
        head, changed = (
            subprocess.run(["git", "-C", str(root), *words], **how).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+changes" if changed else "")


def cards_of(planned: "PlannedSweep", resources: "Resources") -> "list[Card]":
    """The card of each dataset of a sweep, in the order of its points."""
    configs = {point.config.data.path: point.config for point in planned.points}
    return list(map(resources.card, configs.values()))


def subject_of(spec: SweepSpec, cards: "Sequence[Card]") -> str:
    """Networks and datasets of a sweep in words, all where they are axes."""
    return f"{', '.join(spec.values('model.name'))} on {', '.join(card.name for card in cards)}"


def manifest(cards: "Sequence[Card]", resolved: Resolved, identity: str, networks: Networks) -> dict[str, Any]:
    """The manifest of a run or a sweep as plain values; `networks`: the users' own.

    Of several datasets it has names and sources; `PlannedSweep.contents` has a digest of each.
    """
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    device: dict[str, Any] = {"type": resolved.device.type, "cpu": cpu_name(), "threads": torch.get_num_threads()}
    if resolved.device.type == "cuda":
        device |= {"gpu": torch.cuda.get_device_name(resolved.device), "cuda": torch.version.cuda}
    dataset: dict[str, Any] = {name: "; ".join(getattr(card, name) for card in cards) for name in ("name", "source")}
    if len(cards) == 1:
        dataset["sha256"] = dict(cards[0].sha256)
    made = {
        "identity": identity,
        "versions": {"fastwi": __version__, **versions},
        "commit": commit(),
        "device": device,
        "precision": str(resolved.dtype).removeprefix("torch."),
        "backend": resolved.backend,
        "dataset": dataset,
    }
    return made | ({NETWORKS: networks} if networks else {})
