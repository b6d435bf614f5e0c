"""The steps of benchmarks.device_check: their seconds and command lines."""

import importlib.util
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastwi.errors import UserError

ROOT = Path(__file__).parents[1]
BUDGET_S = 480


@dataclass(frozen=True)
class Step:
    """A Python command: its words on a GPU and on a CPU. Without words for a CPU it needs a GPU.

    `{data}`, `{device}`, `{out}` and `{engines}` (all but loop and halo) are filled in; `tool` runs the command.
    """

    seconds: int
    gpu: str
    cpu: str = ""
    tool: str = ""
    asked: bool = False
    """Only where it is asked for by name."""


def _benchmark(name: str, words: str = "") -> str:
    return f"-m benchmarks.{name} --device {{device}} --out {{out}} {words}"


# With versions that no test has run with here, a warning is no failure.
_PYTEST = "-m pytest -p no:cacheprovider -W default"
_TRITON_TESTS = " ".join(
    f"tests/kernels/test_{name}.py" for name in ("stacked", "interpolate", "sgd", "augment", "combine")
)
# Kernels alone: torch refuses to capture a step without its cache of memory, which is off under the memory checker.
_MEMCHECKED = " ".join(
    f"tests/kernels/test_{name}.py" for name in ("interpolate", "stacked", "halo_backward", "halo_forward")
)
_SMALL = "--batch 16 --batches 2 --least 2 --rounds 2"
_POPULATION = _benchmark("throughput", "--data {data} --baselines {engines} --members")
_HALO = _benchmark("throughput", "--data {data} --baselines stacked,halo --members")
_PEERS = _benchmark("throughput", "--data {data} --members")
STEPS = {
    "versions": Step(15, "-m benchmarks.machine", "-m benchmarks.machine"),
    "numbers": Step(
        70, _benchmark("numbers", "--apart 1"), _benchmark("numbers", "--members 2 --steps 1 --batch 16 --width 0.25")
    ),
    "population": Step(
        85, f"{_POPULATION} 1,64,256 --batches 390 --least 24 --rounds 5 --minutes 1.2", f"{_POPULATION} 1,2 {_SMALL}"
    ),
    # In a process of its own: a profiler slows what runs after it.
    "kernels": Step(
        50, f"{_POPULATION} 1,64,256 --batches 64 --least 4 --rounds 1 --kernels 12",
        f"{_POPULATION} 1,2 {_SMALL} --kernels 12",
    ),
    # Likewise: a fault of its kernels would end the other engines' measurements too.
    "halo": Step(
        50, f"{_HALO} 1,64 --batches 128 --least 8 --rounds 3 --kernels 12", f"{_HALO} 1,2 {_SMALL}"
    ),
    "interpolation": Step(
        30, _benchmark("interpolation", "--pairs 256,1024 --match fastwi --apart 1 --rounds 9"),
        _benchmark("interpolation", "--pairs 4,8 --match fastwi --rounds 3"),
    ),
    "tune": Step(25, _benchmark("tune", "--seconds 15"), _benchmark("tune", "--seconds 15")),
    "gpu-tests": Step(40, f"{_PYTEST} {{parallel}} -m gpu {{gpu_tests}}"),
    "kernel-tests": Step(40, f"{_PYTEST} {{parallel}} {_TRITON_TESTS}"),
    "memcheck": Step(
        35, f"{_PYTEST} -x {_MEMCHECKED} -k 'evenly_spaced or diverged or on_a_gpu'",
        tool="compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 9",
    ),
    "memory": Step(
        20, _benchmark("memory", "--data {data} --engines stacked --members 8,32 --rounds 1"),
        _benchmark("memory", "--data {data} --engines loop --members 1,2 --rounds 1 --batch 16 --width 0.25"),
    ),
    "evaluation": Step(
        20,
        _benchmark("evaluation", "--data {data} --alphas 6 --images 5000 --baselines fastwi,autocast-static"),
        _benchmark("evaluation", "--data {data} --alphas 2 --images 16 --batch 8 --rounds 1 --baselines fastwi"),
    ),
    "peers": Step(
        150,
        f"{_PEERS} 1,16 --batches 128 --least 8 --rounds 5 --minutes 2.2 --workers 12 "
        "--baselines {engines},loop,again,usual,stock,stock-graphs,vmap,grouped-nhwc",
        f"{_PEERS} 1 {_SMALL} --baselines loop,vmap-eager",
        asked=True,
    ),
}  # fmt: skip
"""By name, in the order in which they run. The limits of those that run unasked sum to BUDGET_S."""


def chosen_steps(words: Sequence[str]) -> dict[str, Step]:
    """The steps that `words` name, or all that run unasked. Raises UserError for a name or a number that is none."""
    if not words:
        return {name: step for name, step in STEPS.items() if not step.asked}
    chosen = {}
    for word in words:
        name, _, seconds = word.partition("=")
        if name not in STEPS:
            raise UserError(f"{name}: is not one of {', '.join(STEPS)}")
        if seconds and not (seconds.isdecimal() and int(seconds)):
            raise UserError(f"{word}: give whole seconds, at least 1")
        chosen[name] = replace(STEPS[name], seconds=int(seconds)) if seconds else STEPS[name]
    return {name: chosen[name] for name in STEPS if name in chosen}


def words_of(step: Step, on_gpu: bool, data: str, out: Path) -> list[str]:
    """The command line of a step, after the interpreter."""
    from fastwi.engine.choose import ENGINES

    filled = {
        "{data}": shlex.quote(data),
        "{device}": "cuda" if on_gpu else "cpu",
        "{out}": shlex.quote(str(out)),
        "{engines}": ",".join(name for name in ENGINES if name not in ("loop", "halo")),
        "{parallel}": "-p xdist --numprocesses 8" if importlib.util.find_spec("xdist") else "-q",
        # By file, so that a module that is missing elsewhere costs nothing here.
        "{gpu_tests}": shlex.join(
            str(path.relative_to(ROOT))
            for path in sorted((ROOT / "tests").rglob("test_*.py"))
            if "pytest.mark.gpu" in path.read_text()
        ),
    }
    text = step.gpu if on_gpu else step.cpu
    for name, value in filled.items():
        text = text.replace(name, value)
    return shlex.split(text)
