#!/usr/bin/env bash
# python -m benchmarks.device_check, whose --help says what it does, by the interpreter PYTHON (default:
# .venv/bin/python where it is there, else python3).
cd "$(dirname "$0")/.." || exit 1
[ -n "${PYTHON:-}" ] || { [ -x .venv/bin/python ] && PYTHON=.venv/bin/python; }
exec "${PYTHON:-python3}" -m benchmarks.device_check "$@"
