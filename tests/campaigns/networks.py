"""`python tests/campaigns/networks.py`: published networks trained, cloned, averaged and resumed, as a user would.

Each network of `published_networks.py` is the `model.name` of a run of fastwi.train on 128 digits, enlarged: one epoch
of a parent, one of two children, their average, one more epoch. The run is done twice, at once and in two pieces, cut
after the children; both must give the same metrics.jsonl to the bit. Or the network is refused in one line, exit code
2, and nothing is left on the disk. Anything else is a finding.

Needs torchvision, and timm (pip install 'fastwi[networks]') for timm's; each network runs in a process of its own.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from published_networks import NETWORKS

from data_prep import prepare
from fastwi.config.read import config_from_mapping
from fastwi.engine.choose import build_network
from fastwi.experiment.store import Measurement
from fastwi.report.progress import TreeProgress
from fastwi.train import main as train

CLASSES = 10
PRECISIONS = ("bf16", "fp32")
PATIENCE_S = 3600


def settings(name: str, size: int, runs: Path, precision: str, backend: str) -> dict[str, dict[str, Any]]:
    data = {"path": str(runs.parent / "digits"), "image_size": size, "train_images": 128, "test_images": 64}
    return {
        "data": data, "model": {"name": name}, "run": {"directory": str(runs)},
        "optimizer": {"batch_size": 32, "learning_rate": 0.01}, "augment": {"padding": 2},
        "experiment": {"k": 1, "s": 1, "after": 1, "recompute_images": 64},
        "engine": {"device": "cpu", "precision": precision, "backend": backend, "threads": torch.get_num_threads()},
    }  # fmt: skip


class Cut(TreeProgress):
    """A run's progress that ends the run, as Ctrl-C does, once the children are done."""

    def measured(self, tasks: Sequence[int], measurements: Sequence[Measurement]) -> None:
        """Raise KeyboardInterrupt where the average is measured: it is not trained."""
        if measurements[0].train_loss is None:
            raise KeyboardInterrupt
        super().measured(tasks, measurements)


def outcome(name: str, size: int, runs: Path, precision: str, backend: str) -> str:
    """`trains`, `refused: <the line>`, or what went wrong."""
    pairs = [
        f"--{section}.{key}={value}"
        for section, keys in settings(name, size, runs, precision, backend).items()
        for key, value in keys.items()
    ]
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        code = train([*pairs, "--run.name=whole"])
        if code == 2:
            lines = [line for line in said.getvalue().splitlines() if line.startswith("fastwi: error:")]
            clean = len(lines) == 1 and not (runs / "whole").exists()
            return f"refused: {lines[0]}" if clean else f"FINDING: {said.getvalue()[-300:]}"
        with mock.patch("fastwi.report.progress.TreeProgress", Cut):
            codes = [code, train([*pairs, "--run.name=pieces"])]
        codes.append(train([*pairs, "--run.name=pieces"]))
    if codes != [0, 130, 0]:
        return f"FINDING: exit codes {codes}: {said.getvalue()[-300:]}"
    whole, pieces = ((runs / run / "metrics.jsonl").read_text() for run in ("whole", "pieces"))
    return "trains" if whole == pieces else "FINDING: a resumed run differs"


def one(label: str, backend: str, precisions: list[str]) -> dict[str, Any]:
    """All that is asked of one network, in this process."""
    code, size = NETWORKS[label]
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        here = Path(temporary)
        prepare("digits", here / "digits", writer="raw")
        (here / "network.py").write_text(code)
        name = f"{here / 'network.py'}:build"
        found: dict[str, Any] = {"network": label, "size": size, "backend": backend}
        for precision in precisions:
            found[precision] = outcome(name, size, here / precision, precision, backend)
        with contextlib.suppress(Exception):
            config = config_from_mapping(settings(name, size, here / "fp32", "fp32", backend))
            found["parameters"] = sum(p.numel() for p in build_network(config, CLASSES, (size, size)).parameters())
    return found | {"seconds": round(time.perf_counter() - begun, 1)}


def table(results: list[dict[str, Any]]) -> str:
    """The results in Markdown."""
    lines = ["| network | pixels | parameters | bf16 | fp32 | note |", "|---|---|---|---|---|---|"]
    for each in results:
        said = [each.get(precision, "FINDING: no answer") for precision in PRECISIONS]
        cells = ["trains, resumes" if s == "trains" else s.partition(":")[0] for s in said]
        notes = dict.fromkeys(s.partition(": ")[2].removeprefix("fastwi: error: ") for s in said if s != "trains")
        notes = {note.rpartition(":build': ")[2] or note: None for note in notes}
        parameters = f"{each['parameters']:,}" if "parameters" in each else ""
        note = "; ".join(notes).replace("|", "/")
        lines.append(f"| {each['network']} | {each['size']} | {parameters} | {' | '.join(cells)} | {note} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the campaign. Exit code 1 where there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="networks; default: all")
    parser.add_argument("--backend", default="eager", help="engine.backend")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="engine.precision")
    parser.add_argument("--results", type=Path, default=Path("networks.jsonl"), help="a line of JSON a network")
    parser.add_argument("--table", type=Path, help="also write the table, in Markdown, here")
    parser.add_argument("--one", action="store_true", help="do one network in this process and print its line")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.names[0], options.backend, options.precisions)))
        return 0
    done = [json.loads(line) for line in options.results.read_text().splitlines()] if options.results.exists() else []
    for label in options.names or NETWORKS:
        if any((each["network"], each["backend"]) == (label, options.backend) for each in done):
            continue
        command = [sys.executable, __file__, label, "--one", "--backend", options.backend]
        command += ["--precisions", *options.precisions]
        run = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        said = run.stdout.strip().splitlines()
        failed = {"network": label, "size": NETWORKS[label][1], "backend": options.backend,
                  "bf16": f"FINDING: {run.stderr[-500:]}"}  # fmt: skip
        done.append(json.loads(said[-1]) if run.returncode == 0 and said else failed)
        print(json.dumps(done[-1]), flush=True)
        with options.results.open("a") as stream:
            stream.write(json.dumps(done[-1]) + "\n")
    if options.table:
        options.table.write_text(table(done))
    findings = [each for each in done if "FINDING" in json.dumps(each)]
    print(f"{len(done)} networks, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
