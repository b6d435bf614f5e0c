"""The campaigns of tests/campaigns, short and with fixed seeds: CI sees that they run and find nothing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGNS = Path(__file__).parent / "campaigns"


def campaign(name: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, str(CAMPAIGNS / name), *options], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_hostile_inputs(tmp_path):
    said = campaign("fuzz.py", "--inputs", "1500", "--seed", "20240501", "--findings", str(tmp_path))
    rows = re.findall(r"^(\w+) +([\d,]+) +([\d,]+) +([\d,]+) +(\d+)$", said, re.MULTILINE)
    tried = {name: [int(number.replace(",", "")) for number in numbers] for name, *numbers in rows}
    assert set(tried) == {"betons", "checkpoints", "configs", "stores", "sources"}
    for wanted, refused, accepted, findings in tried.values():
        # Both outcomes occur in each: inputs that are all refused, or all taken, would test little.
        assert refused + accepted == wanted
        assert min(refused, accepted) > 0
        assert findings == 0


def test_faults():
    said = campaign("faults.py", "--faults", "8", "--seed", "5")
    assert "8 faults injected, 0 lost or wrong results" in said
    injected = set(re.findall(r"^(\S.*?)  +[-\d ]*\d[-\d ]*$", said, re.MULTILINE))
    # Only root can have a full disk, and not everywhere.
    assert injected - {"disk full", "read-only"} == {
        "kill -9", "SIGTERM", "Ctrl-C", "clock back", "dataset replaced", "claims",
    }  # fmt: skip


def test_flipped_bits():
    said = campaign("flips.py", "--flips", "30", "--seed", "7")
    assert "30 bits flipped, 0 wrong results" in said
    kinds = set(re.findall(r"^(\S.*?)  +(?:train|sweep|analyze|report|convert)", said, re.MULTILINE))
    assert {"card", "beton, raw", "beton, JPEG", "run: metrics.jsonl", "store: index.sqlite", "config file"} <= kinds


def test_published_networks():
    """A transformer of torchvision's, with dropout, trains in bf16, and a run in two pieces equals one in one."""
    pytest.importorskip("torchvision", reason="its networks", exc_type=ImportError)
    said = campaign("networks.py", "torchvision VisionTransformer, 4 layers", "--one", "--precisions", "bf16")
    found = json.loads(said.splitlines()[-1])
    assert (found["bf16"], found["parameters"]) == ("trains", 148_170)
