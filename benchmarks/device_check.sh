#!/usr/bin/env bash
# What a machine can do, in at most 8 minutes and from a bare checkout: GPU tests, memory checks, all benchmarks in
# a short form. Nothing is installed, nothing is downloaded, FFCV is not needed:
#
#     bash benchmarks/device_check.sh [OUTPUT DIRECTORY]        (default: benchmarks/results/device_check)
#
# PYTHON names the interpreter (default: .venv/bin/python, else python3), DATA a dataset directory (default:
# data/cifar10, else any other in data/, else scikit-learn's digits). Modules that the interpreter lacks are taken from
# ./wheels where that is there. JSON, pictures and the log of each step go to the output directory. On a machine
# without a GPU the steps that need one are left out. SCALE=3 gives all steps three times their time, for a machine that
# is slow or busy. Every step is tried; the exit code is 1 where any failed.
set -u
cd "$(dirname "$0")/.." || exit 1

scale=${SCALE:-1}
budget=$((480 * scale)) # seconds in all
reserve=5               # of them for the summary
out=${1:-benchmarks/results/device_check}
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
temporary=$(mktemp -d) || exit 1
trap 'rm -rf "$temporary"' EXIT

python=${PYTHON:-}
if [ -z "$python" ]; then
  python=python3
  [ -x .venv/bin/python ] && python=.venv/bin/python
fi
export PYTHONPATH=".:$temporary/site${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONDONTWRITEBYTECODE=1

passed=() failed=() left_out=()

# step NAME SECONDS COMMAND...: run it within that time, or what is left of the budget; show its output and keep it.
step() {
  local name=$1 limit=$(($2 * scale)) left code started=$SECONDS
  shift 2
  left=$((budget - reserve - SECONDS))
  [ "$limit" -gt "$left" ] && limit=$left
  echo
  echo "== $name (at most $((limit > 0 ? limit : 0)) s): $*"
  if [ "$limit" -lt 5 ]; then
    echo "not run: the $budget seconds are over"
    failed+=("$name: not run, the $budget seconds were over")
    return
  fi
  timeout --kill-after=3 "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  cat "$out/$name.log"
  case $code in
    0) passed+=("$name ($((SECONDS - started)) s)") ;;
    124 | 137) failed+=("$name: ran past $limit s, see $out/$name.log") ;;
    *) failed+=("$name: exit code $code, see $out/$name.log") ;;
  esac
}

# leave_out NAME REASON: say that a step is not for this machine.
leave_out() {
  echo
  echo "== $1: left out, $2"
  left_out+=("$1: $2")
}

# The modules that are missing, as the names of their distributions.
missing() {
  "$python" - <<'PYTHON'
import importlib.util

wanted = {
    "fastargs": "fastargs", "terminaltables": "terminaltables", "yaml": "pyyaml", "safetensors": "safetensors",
    "sklearn": "scikit-learn", "joblib": "joblib", "threadpoolctl": "threadpoolctl", "PIL": "pillow",
    "rich": "rich", "markdown_it": "markdown-it-py", "mdurl": "mdurl", "pygments": "pygments",
    "matplotlib": "matplotlib", "contourpy": "contourpy", "cycler": "cycler", "fontTools": "fonttools",
    "kiwisolver": "kiwisolver", "pyparsing": "pyparsing", "dateutil": "python-dateutil", "six": "six",
    "polars": "polars", "_polars_runtime_32": "polars-runtime-32", "scipy": "scipy", "jinja2": "jinja2",
    "markupsafe": "markupsafe", "torchvision": "torchvision", "pytest": "pytest", "iniconfig": "iniconfig",
    "pluggy": "pluggy", "packaging": "packaging", "hypothesis": "hypothesis", "sortedcontainers": "sortedcontainers",
    "pydantic": "pydantic", "pydantic_core": "pydantic-core",
    "annotated_types": "annotated-types", "typing_inspection": "typing-inspection",
    "typing_extensions": "typing-extensions",
}
print(*(name for module, name in wanted.items() if importlib.util.find_spec(module) is None))
PYTHON
}

lacking=$(missing) || { echo "$python: cannot be run"; exit 1; }
if [ -n "$lacking" ] && [ -d wheels ]; then
  for name in $lacking; do
    "$python" -m pip install --quiet --no-index --find-links wheels --no-deps --no-warn-script-location \
      --disable-pip-version-check --target "$temporary/site" "$name" >>"$temporary/pip.log" 2>&1
  done
  lacking=$(missing)
fi

gpu=no
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null && gpu=yes
device=cpu
[ $gpu = yes ] && device=cuda

step versions 60 "$python" - <<'PYTHON'
import torch

from benchmarks.machine import describe_machine
from fastwi.engine.device import resolve_device

for name, value in describe_machine(resolve_device("auto")).items():
    print(f"{name}: {value}")
print(f"cuda: {torch.version.cuda}, cudnn: {torch.backends.cudnn.version()}")
PYTHON
echo "missing modules: ${lacking:-none}"
[ $gpu = yes ] && nvidia-smi

data=${DATA:-}
for card in data/cifar10/card.json data/*/card.json; do
  [ -z "$data" ] && [ -f "$card" ] && data=$(dirname "$card")
done
if [ -z "$data" ]; then
  data=$temporary/digits
  step digits 60 "$python" -m data_prep digits --out "$data" --writer raw
fi
echo "data: $data"

pytest=("$python" -m pytest -p no:cacheprovider)
to=(--device "$device" --out "$out")
if [ $gpu = yes ]; then
  # Not interpreted: tests/conftest.py asks for the interpreter only where there is no GPU.
  unset TRITON_INTERPRET
  # By file, so that a module that is missing elsewhere costs nothing here.
  mapfile -t with_gpu < <(grep -rl --include='test_*.py' '^@pytest.mark.gpu' tests)
  step gpu-tests 60 "${pytest[@]}" -m gpu "${with_gpu[@]}"
  # Most of their time goes into compiling some 300 variants of kernels.
  several=()
  "$python" -c 'import xdist' 2>/dev/null && several=(--numprocesses 8)
  step kernel-tests 110 "${pytest[@]}" "${several[@]+"${several[@]}"}" tests/kernels
  step throughput-16 140 "$python" -m benchmarks.throughput --rounds 3 --minutes 1.8 --data "$data" --device "$device" \
    --members 16 --batches 64 --least 8 --baselines stacked,graph,loop,again,stock-graphs,vmap,grouped-nhwc \
    --out "$out/members-16"
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -n 1)
  if [ -n "$sanitizer" ]; then
    # Without torch's cache of memory every tensor is an allocation of its own, whose ends can be overrun.
    memcheck=(env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool memcheck --report-api-errors no
      --error-exitcode 9 "${pytest[@]}" -x)
    step memcheck 30 "${memcheck[@]}" tests/kernels/test_interpolate.py -k evenly_spaced
    step memcheck-convolutions 30 "${memcheck[@]}" tests/kernels/test_stacked.py -k diverged
  else
    leave_out memcheck "compute-sanitizer is not on this machine"
  fi
else
  for name in gpu-tests kernel-tests memcheck; do
    leave_out "$name" "torch sees no GPU"
  done
fi

# A GPU has been busy with M = 16; and one more network is only what it adds once all branches of a step are taken.
one=(--members 1,2 --batches 4) many=(--members 1,4)
[ $gpu = yes ] && one=(--members 1 --batches 64) many=(--members 8,32)
step interpolation 30 "$python" -m benchmarks.interpolation --pairs 16 --rounds 5 "${to[@]}"
step throughput 180 "$python" -m benchmarks.throughput --least 2 --rounds 3 --minutes 1.5 --data "$data" "${one[@]}" "${to[@]}"
step memory 90 "$python" -m benchmarks.memory --rounds 1 --data "$data" "${many[@]}" "${to[@]}"
step evaluation 75 "$python" -m benchmarks.evaluation --alphas 6 --pieces 3 --images 300 --batch 100 \
  --baselines fastwi,again,autocast-static --data "$data" "${to[@]}"
step planning 20 "$python" -m benchmarks.planning --trajectories 1000 --rounds 1 --out "$out"

echo
echo "== $SECONDS s in all; results are in $out"
for line in "${passed[@]+"${passed[@]}"}"; do echo "passed    $line"; done
for line in "${left_out[@]+"${left_out[@]}"}"; do echo "left out  $line"; done
for line in "${failed[@]+"${failed[@]}"}"; do echo "FAILED    $line"; done
[ ${#failed[@]} -eq 0 ]
