"""Inductor's code for a GPU, generated without one, for the network that the `graph` engine has it compile."""

import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from benchmarks import inductor

# A process of its own: torch answers in it as on a machine with a GPU.
SCRIPT = """
import json
from benchmarks.inductor import passes
from fastwi.models.resnet import ResNet

found = passes(ResNet(1, 10), 8, 16)
print(json.dumps({name: [made.launches, vars(made)] for name, made in found.items()}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    pytest.importorskip("triton")
    cache = str(tmp_path_factory.mktemp("inductor"))
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TORCHINDUCTOR_CACHE_DIR": cache}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("name", "most", "call"), [("forward", 30, "convolution"), ("backward", 40, "convolution_backward")]
)
def test_a_pass_launches_few_kernels_and_copies_nothing_into_another_layout(found, name, most, call):
    """7 convolutions, and 3 kernels for each norm with its ReLU: the bounds leave room for another torch's choice."""
    launches, made = found[name]
    assert made["calls"][call] == 7
    assert launches <= most
    assert made["other_layouts"] == 0
    copies = r"triton_poi_fused_(clone|permute|copy_|convolution|convolution_backward|add_copy_)"
    assert not [kernel for kernel in made["kernels"] if re.fullmatch(copies, kernel)]


def test_the_counts_are_in_the_table_and_in_the_file(monkeypatch, tmp_path, capsys):
    made = inductor.Pass(Counter(triton_a=2), Counter(convolution=3), 1)
    monkeypatch.setattr(inductor, "passes", lambda *_: {"forward": made})
    assert inductor.main([f"--out={tmp_path}"]) == 0
    assert "forward: 5 launches, 1 outputs" in capsys.readouterr().out
    assert json.loads((tmp_path / "inductor-cpu.json").read_text())["measurements"] == [
        {"pass": "forward", "launches": 5, "other_layouts": 1},
        {"pass": "forward", "launched": "convolution", "times": 3},
        {"pass": "forward", "launched": "triton_a", "times": 2},
    ]
