"""The process in which inputs are tried: `python worker.py JOB`, JOB a JSON object. Started by `fuzz.py`.

Before each input its number is written to a journal, so that the driver knows which one crashed the interpreter, or
hangs. The same seed, target and number give the same input.
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

JOURNAL_BYTES = 100


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
    tempfile.tempdir = str(work)
    made = targets()
    guard = Guard(box)
    Guard.limit_memory()
    journal = os.open(job["journal"], os.O_RDWR | os.O_CREAT)
    for name, first, count in job["parts"]:
        target = made[name](corpus / name)
        refused = accepted = 0
        for number in range(first, first + count):
            line = f"{name} {number} {refused} {accepted}".ljust(JOURNAL_BYTES).encode()
            os.pwrite(journal, line, 0)
            place = work / "t"
            _remove(place)
            place.mkdir()
            os.chdir(place)
            try:
                with guard:
                    taken = target.attempt(random.Random(f"{job['seed']} {name} {number}"), place)
                guard.check()
            except BaseException:
                _keep(findings / f"{name}-{number}", place, traceback.format_exc())
            else:
                accepted, refused = accepted + taken, refused + (not taken)
        os.pwrite(journal, f"{name} {first + count} {refused} {accepted}".ljust(JOURNAL_BYTES).encode(), 0)
        with open(f"{job['journal']}.done", "a") as stream:
            stream.write(f"{name} {refused} {accepted}\n")
    os.chdir(box)
    _remove(work / "t")


def _remove(place: Path) -> None:
    if place.exists():
        shutil.rmtree(place)


def _keep(finding: Path, place: Path, report: str) -> None:
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
    asked = json.loads(sys.argv[1])
    if "make" in asked:
        for kind, each in targets().items():
            if kind in asked["make"]:
                (Path(asked["corpus"]) / kind).mkdir(parents=True)
                each.make_corpus(Path(asked["corpus"]) / kind)
    try_all(asked)
