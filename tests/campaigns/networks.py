"""`python tests/campaigns/networks.py`: published networks trained, cloned, averaged and resumed, as a user would.

Each network is the `model.name` of a run of fastwi.train on 128 digits, enlarged: one epoch of a parent, one of two
children, their average, one more epoch. The run is done twice, at once and in two pieces, cut after the children; both
must give the same metrics.jsonl to the bit. Or the network is refused in one line, exit code 2, and nothing is left on
the disk. Anything else is a finding. Prints a table in Markdown.

Needs torchvision, and timm (pip install 'fastwi[networks]') for timm's; each network runs in a process of its own.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from data_prep import prepare
from fastwi.experiment.store import Measurement
from fastwi.models.registry import build_model
from fastwi.report.progress import TreeProgress
from fastwi.train import main as train

PRECISIONS = ("bf16", "fp32")
PATIENCE_S = 3600

_TORCHVISION = (
    "resnet18", "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "swin_t",
    "swin_v2_t", "densenet121", "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5", "regnet_y_400mf", "googlenet",
    "vgg11_bn",
)  # fmt: skip
_TIMM = (
    "resnet10t", "convnextv2_atto", "mobilenetv4_conv_small_035", "poolformer_s12", "edgenext_xx_small", "ghostnet_050",
    "mobilevit_xxs", "tinynet_e", "regnetx_002", "lcnet_035", "repvit_m0_9", "starnet_s050", "efficientvit_b0",
    "inception_next_atto", "rexnet_100", "skresnet18", "dla46_c", "test_byobnet",
)  # fmt: skip
_TIMM_SIZED = (
    "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "mixer_s32_224", "resmlp_12_224", "gmlp_ti16_224",
    "cait_xxs24_224", "convit_tiny", "levit_128s",
)  # fmt: skip
_VIT = "VisionTransformer(image_size[0], 8, 4, 4, 64, 128, dropout=0.1, num_classes=classes)"
_MAXVIT = "MaxVit(image_size, 32, 4, [32, 64], [1, 1], 16, 0.2, num_classes=classes)"
_NO_HEADS = "num_classes=classes, aux_logits=False, init_weights=False"
NETWORKS: dict[str, tuple[str, int]] = {
    **{f"torchvision {name}": (f"{name}(num_classes=classes)", 32) for name in _TORCHVISION},
    "torchvision alexnet": ("alexnet(num_classes=classes)", 64),
    "torchvision googlenet, no auxiliary heads": (f"googlenet({_NO_HEADS})", 32),
    "torchvision inception_v3, no auxiliary heads": (f"inception_v3({_NO_HEADS})", 80),
    "torchvision VisionTransformer, 4 layers": (_VIT, 32),
    "torchvision MaxVit, 2 blocks": (_MAXVIT, 64),
    **{f"timm {name}": (f"{name!r}", 32) for name in _TIMM},
    **{f"timm {name}": (f"{name!r}, img_size=image_size", 32) for name in _TIMM_SIZED},
    "timm vit_tiny, drop path": (
        "'vit_tiny_patch16_224', img_size=image_size, patch_size=8, drop_path_rate=0.2",
        32,
    ),
    "timm resnet10t, drop path": ("'resnet10t', drop_path_rate=0.2, drop_rate=0.1", 32),
    "timm efficientformer_l1": ("'efficientformer_l1'", 224),
    "timm fastvit_t8": ("'fastvit_t8'", 64),
}
"""By name: a call of torchvision's models, or timm's arguments; and the side of the images."""


class Cut(TreeProgress):
    """A run's progress that ends the run, as Ctrl-C does, once the children are done."""

    def measured(self, tasks: Sequence[int], measurements: Sequence[Measurement]) -> None:
        """Raise KeyboardInterrupt where the average is measured: it is not trained."""
        if measurements[0].train_loss is None:
            raise KeyboardInterrupt
        super().measured(tasks, measurements)


def outcome(options: Sequence[str], runs: Path) -> str:
    """`trains`, `refused: <the line>`, or what went wrong."""
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
        code = train([*options, "--run.name=whole"])
        if code == 2:
            lines = [line for line in errors.getvalue().splitlines() if line.startswith("fastwi: error:")]
            clean = len(lines) == 1 and not (runs / "whole").exists()
            return f"refused: {lines[0]}" if clean else f"FINDING: {errors.getvalue()[-300:]}"
        with mock.patch("fastwi.report.progress.TreeProgress", Cut):
            codes = [code, train([*options, "--run.name=pieces"])]
        codes.append(train([*options, "--run.name=pieces"]))
    if codes != [0, 130, 0]:
        return f"FINDING: exit codes {codes}: {errors.getvalue()[-300:]}"
    whole, pieces = ((runs / run / "metrics.jsonl").read_text() for run in ("whole", "pieces"))
    return "trains" if whole == pieces else "FINDING: a resumed run differs"


def one(label: str, backend: str, precisions: Sequence[str]) -> dict[str, Any]:
    """All that is asked of one network, in this process."""
    call, size = NETWORKS[label]
    library = "torchvision.models" if label.startswith("torchvision") else "timm"
    call = call if library == "torchvision.models" else f"create_model({call}, num_classes=classes)"
    found: dict[str, Any] = {"network": label, "size": size}
    with tempfile.TemporaryDirectory() as temporary:
        here = Path(temporary)
        prepare("digits", here / "digits", writer="raw")
        (here / "network.py").write_text(
            f"import {library}\n\ndef build(classes, image_size):\n    return {library}.{call}\n"
        )
        name = f"{here / 'network.py'}:build"
        for precision in precisions:
            options = [
                f"--data.path={here / 'digits'}", f"--data.image_size={size}", "--data.train_images=128",
                "--data.test_images=64", f"--model.name={name}", f"--run.directory={here / precision}",
                "--optimizer.batch_size=32", "--optimizer.learning_rate=0.01", "--augment.padding=2",
                "--experiment.k=1", "--experiment.s=1", "--experiment.after=1", "--experiment.recompute_images=64",
                "--engine.device=cpu", f"--engine.precision={precision}", f"--engine.backend={backend}",
                f"--engine.threads={torch.get_num_threads()}",
            ]  # fmt: skip
            found[precision] = outcome(options, here / precision)
        with contextlib.suppress(Exception):
            network = build_model(name, 10, 1.0, (size, size))
            found["parameters"] = sum(weights.numel() for weights in network.parameters())
    return found


def line(found: dict[str, Any]) -> str:
    """A network's line of the table, in Markdown."""
    said = [found.get(precision, "FINDING: no answer") for precision in PRECISIONS]
    cells = ["trains, resumes" if text == "trains" else text.partition(":")[0] for text in said]
    notes = {text.partition(": ")[2].rpartition(":build': ")[2]: None for text in said if text != "trains"}
    note = "; ".join(notes).removeprefix("fastwi: error: ").replace("|", "/")
    parameters = f"{found['parameters']:,}" if "parameters" in found else ""
    return f"| {found['network']} | {found['size']} | {parameters} | {' | '.join(cells)} | {note} |"


def main() -> int:
    """Run the campaign. Exit code 1 where there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="networks; default: all")
    parser.add_argument("--backend", default="eager", help="engine.backend")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="engine.precision")
    parser.add_argument("--one", action="store_true", help="do one network in this process and print its line")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.names[0], options.backend, options.precisions)))
        return 0
    print("| network | pixels | parameters | bf16 | fp32 | note |\n|---|---|---|---|---|---|")
    done = []
    for label in options.names or NETWORKS:
        command = [sys.executable, __file__, label, "--one", "--backend", options.backend]
        command += ["--precisions", *options.precisions]
        run = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        printed = run.stdout.strip().splitlines()
        done.append({"network": label, "size": NETWORKS[label][1]})
        done[-1] |= (
            json.loads(printed[-1]) if run.returncode == 0 and printed else {"bf16": f"FINDING: {run.stderr[-500:]}"}
        )
        print(line(done[-1]), flush=True)
    findings = [each for each in done if "FINDING" in json.dumps(each)]
    print(f"{len(done)} networks, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
