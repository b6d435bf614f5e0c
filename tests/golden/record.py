"""`python -m tests.golden.record`: record again the losses that `test_golden.py` holds every network to.

A trace is one network's losses on one thread: real digits, augmented, 8 a step, each step an epoch of its own so that
its loss is seen. Three kinds: `eager` and `fused` are 30 steps of the loop engine in fp32, by backend; `float64` is 8
steps of the same training in torch's own functions and double precision, from weights drawn in NumPy, so that nothing in
it differs between machines by more than float64's rounding.
"""

import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from data_prep import prepare
from fastwi.config.read import read_config
from fastwi.config.schema import Config, DataConfig
from fastwi.data.noise import Noise, Stream, raw_words
from fastwi.data.resident import ResidentDataset
from fastwi.data.split import open_splits
from fastwi.engine.choose import build_network
from fastwi.engine.loop import LoopEngine
from fastwi.engine.schedule import learning_rate
from fastwi.files import write_text
from fastwi.kernels.augment import augment_reference
from fastwi.kernels.compiler import compiler
from fastwi.kernels.cpu import library
from fastwi.models.names import MODEL_NAMES
from fastwi.population import Population

NETWORKS = tuple(name for name in MODEL_NAMES if not name.endswith("_b"))
"""Without the CIFAR ResNets of option B: resnet18 has their parts."""
RECORDED = Path(__file__).with_name("losses.json")
STEPS, FLOAT64_STEPS, BATCH = 30, 8, 8
SEED = 0  # of weights and noise
RATE, DROP = 1e-3, 5  # the rate falls to a tenth after 5 steps
PADDING = 2  # pixels
WIDTHS = {
    "resnet110": 0.25, "resnet110_gn": 0.25, "resnet56": 0.5, "resnet56_gn": 0.5, "resnet44": 0.5, "resnet44_gn": 0.5,
    "resnet18": 0.25, "vgg11": 0.25, "vgg13": 0.25, "vgg16": 0.25, "wrn16_4": 0.25, "wrn28_10": 0.125,
}  # fmt: skip
"""The large networks are narrowed, so that all traces take seconds."""


def has_batch_norm(name: str) -> bool:
    """Whether the fused backend applies to the network."""
    return not name.endswith("_gn") and name != "convnet"


def images_of(data: Path) -> ResidentDataset:
    """The training images of the digits at `data` that all traces see."""
    return open_splits(DataConfig(path=str(data), train_images=STEPS * BATCH), torch.device("cpu"))[0]


def traces(data: Path) -> dict[str, dict[str, list[float]]]:
    """Losses (nats) of every step by network and backend; `data` holds the digits."""
    digits, found = images_of(data), {}
    for name in NETWORKS:
        backends = ["eager"] + (["fused"] if has_batch_norm(name) and library() is not None else [])
        found[name] = {backend: trace(name, backend, digits) for backend in backends}
        found[name]["float64"] = float64_trace(name, digits)
    return found


def configuration(name: str, backend: str) -> Config:
    """The run that a trace is the beginning of."""
    return read_config(
        {
            "augment": {"padding": PADDING, "flip": 0.0},
            "model": {"name": name, "width": WIDTHS.get(name, 1.0)},
            "optimizer": {"batch_size": BATCH, "learning_rate": RATE},
            "schedule": {"drop_epochs": [DROP]},
            "seeds": {"init": SEED},
            "engine": {"device": "cpu", "precision": "fp32", "backend": backend, "threads": 1},
        }
    ).config


def trace(name: str, backend: str, digits: ResidentDataset) -> list[float]:
    """The engine's losses, each the mean over the step's batch before the step (nats)."""
    config = configuration(name, backend)
    network = build_network(config, digits.classes)
    engine = LoopEngine(network, config)
    population = Population.from_modules([network])
    losses = []
    for step in range(STEPS):
        every = torch.arange(step, len(digits), STEPS)
        batch = ResidentDataset(digits.images_NHWC[every], digits.labels_N[every], digits.table_C256, digits.classes)
        losses += engine.train_epoch(population, batch, [Noise(SEED)], step)
    return losses


def float64_trace(name: str, digits: ResidentDataset) -> list[float]:
    """The same for plain PyTorch in float64, from other weights and with another normalisation of the images."""
    torch.set_num_threads(1)
    config = configuration(name, "eager")
    network = build_network(config, digits.classes).double().train()
    draw_uniform_(network)
    momentum, decay = config.optimizer.momentum, config.optimizer.weight_decay
    optimizer = torch.optim.SGD(network.parameters(), RATE, momentum, weight_decay=decay)
    table_C256 = ((torch.arange(256, dtype=torch.float64) / 255 - 0.5) / 0.25).repeat(3, 1)
    losses = []
    for step in range(FLOAT64_STEPS):
        every = torch.arange(step, len(digits), STEPS)
        draws = Noise(SEED).draws(step, BATCH, PADDING, 0.0)
        order_N, offset_N2 = torch.from_numpy(draws.order_N), torch.from_numpy(draws.offset_N2)
        x_NCHW = augment_reference(digits.images_NHWC[every], order_N, offset_N2, None, table_C256, PADDING)
        loss = functional.cross_entropy(network(x_NCHW), digits.labels_N[every][order_N])
        optimizer.param_groups[0]["lr"] = learning_rate(step, 1, config.optimizer, config.schedule)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@torch.no_grad()
def draw_uniform_(network: nn.Module) -> None:
    """Draw weights and biases again, equal to the bit on all machines: torch's normal draws are not.

    Uniform with He's variance, 2 / fan in; biases and what belongs to norms stay near where they begin.
    """
    for place, parameter in enumerate(network.parameters(), start=1):
        words = raw_words(SEED, Stream.INIT, place, parameter.numel())
        uniform = torch.from_numpy((words >> np.uint64(11)) * 2.0**-52 - 1.0).view(parameter.shape)  # in [-1, 1)
        if parameter.dim() > 1:
            parameter.copy_(uniform * (6 / parameter[0].numel()) ** 0.5)
        else:
            parameter.copy_(parameter.round() + 0.01 * uniform)


def machine() -> dict[str, str]:
    """All that the last bit of a loss can depend on beside the sources."""
    return {
        "torch": torch.__version__,
        "torch_build": hashlib.sha256(torch.__config__.show().encode()).hexdigest()[:16],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor(),
        "compiler": _compiler(),
    }


def _processor() -> str:
    """Vendor, model and a digest of features and cache size: libraries choose their kernels by these."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.system()} {platform.machine()} {platform.processor()}"
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "cache size",
              "Features", "CPU implementer", "CPU part")  # fmt: skip
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    stated = "\n".join(f"{key}={facts.get(key, '')}" for key in wanted)
    name = f"{facts.get('vendor_id', '')} {facts.get('model name', '')}".strip() or platform.machine()
    return f"{name} {hashlib.sha256(stated.encode()).hexdigest()[:16]}"


def _compiler() -> str:
    """The first line of the compiler's version: it makes the fused kernels."""
    command = compiler() if library() is not None else None
    if command is None or shutil.which(command) is None:
        return ""
    return subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def measured() -> dict[str, Any]:
    """The traces of this machine, and what it is."""
    with tempfile.TemporaryDirectory() as directory:
        data = prepare("digits", Path(directory) / "digits", writer="raw")
        return {"machine": machine(), "losses": traces(data)}


def as_text(found: dict[str, Any]) -> str:
    """JSON with one trace a line; Python's shortest decimals read back to the same bits."""
    lines = [f'{{"machine": {json.dumps(found["machine"], indent=1)},', '"losses": {']
    each = [
        f"{json.dumps(name)}: {{\n"
        + ",\n".join(f" {json.dumps(backend)}: {json.dumps(losses)}" for backend, losses in backends.items())
        + "\n}"
        for name, backends in found["losses"].items()
    ]
    return "\n".join([*lines, ",\n".join(each), "}}"]) + "\n"


def main(argv: list[str]) -> int:
    """Entry point: with `--print` the traces are written to stdout instead of losses.json."""
    text = as_text(measured())
    if argv == ["--print"]:
        sys.stdout.write(text)
    else:
        write_text(RECORDED, text)
        print(RECORDED)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
