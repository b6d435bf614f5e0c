"""The process in which inputs are tried: `python worker.py JOB`, JOB a JSON object. Started by `fuzz.py`.

It writes a line to the pipe `job["pipe"]` before each input (its target and number) and after it (the outcome), so that
the driver knows which one crashed the interpreter, or hangs. The same seed, target and number give the same input.
"""

import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the directory of the campaigns
sys.dont_write_bytecode = True


def targets() -> dict[str, Any]:
    """Every kind of input by name."""
    from hostile.betons import Betons
    from hostile.checkpoints import Checkpoints
    from hostile.configs import Configs
    from hostile.sources import Sources
    from hostile.stores import Stores

    return {"betons": Betons, "checkpoints": Checkpoints, "configs": Configs, "stores": Stores, "sources": Sources}


def try_all(job: dict[str, Any]) -> None:
    """Try the inputs of `job["parts"]`: (target, first, count), one after another."""
    from hostile.guard import Guard

    corpus, box, findings = Path(job["corpus"]), Path(job["box"]), Path(job["findings"])
    work = box / "work"
    place = work / "t"
    tempfile.tempdir = str(work)
    made = targets()
    for name, _, _ in job["parts"]:
        if not (corpus / name).exists():
            (corpus / name).mkdir(parents=True)
            made[name].make_corpus(corpus / name)
    guard = Guard(box)
    for name, first, count in job["parts"]:
        target = made[name](corpus / name)
        for number in range(first, first + count):
            os.write(job["pipe"], f"{name} {number}\n".encode())
            if place.exists():
                shutil.rmtree(place)
            place.mkdir()
            os.chdir(place)
            try:
                with guard:
                    accepted = target.attempt(random.Random(f"{job['seed']} {name} {number}"), place)
                guard.check()
                outcome = "accepted" if accepted else "refused"
            except BaseException:
                keep(findings / f"{name}-{number}", place, traceback.format_exc())
                outcome = "finding"
            os.write(job["pipe"], f"{outcome}\n".encode())
    os.chdir(box)


def keep(finding: Path, place: Path, report: str) -> None:
    """The input and what became of it."""
    finding.mkdir(parents=True, exist_ok=True)
    (finding / "report.txt").write_text(report, errors="backslashreplace")
    with contextlib.suppress(OSError, shutil.Error):
        shutil.copytree(place, finding / "input", symlinks=True, ignore_dangling_symlinks=True,
                        ignore=lambda folder, names: [n for n in names if not _plain(os.path.join(folder, n))])  # fmt: skip


def _plain(path: str) -> bool:
    return os.path.islink(path) or os.path.isdir(path) or os.path.isfile(path)


if __name__ == "__main__":
    warnings.simplefilter("error")  # a warning on the user's terminal is no clean line
    try_all(json.loads(sys.argv[1]))
