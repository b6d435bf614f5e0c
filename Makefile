# Two commands do everything, set-up included: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test docs notebooks lint format install clean

demo: $(VENV)/installed
	$(BIN)/python -m data_prep digits --out data/digits --writer raw
	$(BIN)/python -m fastwi.train --config configs/digits.yaml

# Two processes of one thread each: on two cores twice as fast as one with two, and neither waits for the other's cores.
test: lint chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# The site, into docs/_build/html. Warnings are errors.
docs: $(VENV)/docs-installed
	$(BIN)/python docs/generated.py
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "docs/_build/html/index.html"

# The notebooks of examples/, executed where they are; what they print is committed with them.
notebooks: $(VENV)/docs-installed
	cd examples && for notebook in *.ipynb; do \
	  ../$(BIN)/jupyter execute --inplace $$notebook || exit 1; done

$(VENV)/docs-installed: $(VENV)/installed pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

# What depends on the versions of torch, Triton and NumPy, and on the processor's instructions. Each with a cache of its
# own of compiled code: torch was seen to run what it had compiled for other instructions.
SENSITIVE := tests/kernels tests/engine tests/population tests/analysis tests/models
FLOOR := $(VENV)-floor

# On the oldest torch that pyproject.toml allows. Its Triton interprets kernels with NumPy before 2.4 only.
.PHONY: test-floor
test-floor: $(FLOOR)/installed
	OMP_NUM_THREADS=1 TORCHINDUCTOR_CACHE_DIR=$(CURDIR)/$(FLOOR)/inductor \
	  $(FLOOR)/bin/python -m pytest --numprocesses 2 --dist loadfile $(SENSITIVE)

$(FLOOR)/installed: pyproject.toml setup.py
	$(PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/python -m pip install --quiet --upgrade pip
	$(FLOOR)/bin/python -m pip install --quiet torch==2.11.0 'numpy<2.4' pytest pytest-xdist hypothesis --editable .
	touch $@

# As on a processor with AVX2 alone, and on one with none of it, where MKL, oneDNN and torch choose other kernels.
.PHONY: test-settings
test-settings: $(VENV)/installed
	OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=AVX2 \
	  TORCHINDUCTOR_CACHE_DIR=$(CURDIR)/$(VENV)/inductor-avx2 \
	  $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(SENSITIVE)
	OMP_NUM_THREADS=2 ATEN_CPU_CAPABILITY=default MKL_CBWR=AVX2 ONEDNN_MAX_CPU_ISA=SSE41 \
	  TORCHINDUCTOR_CACHE_DIR=$(CURDIR)/$(VENV)/inductor-default \
	  $(BIN)/python -m pytest $(SENSITIVE)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@$(MAKE) --no-print-directory ffcv
	touch $@

# FFCV is built from source against OpenCV and libjpeg-turbo. fastwi does its work without it: it reads and
# writes .beton files itself. So a machine where it can't be built is told so, and goes on.
.PHONY: ffcv
ffcv:
	@if ! pkg-config --exists opencv4 libturbojpeg 2>/dev/null || ! command -v c++ >/dev/null; then \
	  root=; [ "$$(id -u)" = 0 ] || root="sudo -n"; \
	  echo "installing FFCV's system libraries (apt-get, where it is allowed)"; \
	  { $$root apt-get update && $$root env DEBIAN_FRONTEND=noninteractive apt-get install -y \
	    --no-install-recommends g++ pkg-config libopencv-dev libturbojpeg0-dev; } >$(VENV)/apt.log 2>&1 || true; \
	fi
	@$(BIN)/python -m pip install --quiet --editable '.[ffcv]' >$(VENV)/ffcv.log 2>&1 \
	  && echo "FFCV is installed" \
	  || echo "FFCV could not be installed here ($(VENV)/ffcv.log says why); going on without it"

# The report page is opened in a real browser by one test, which is left out where there is none.
.PHONY: chromium
chromium:
	@if ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null; then \
	  root=; [ "$$(id -u)" = 0 ] || root="sudo -n"; \
	  echo "installing Chromium for a test (apt-get, where it is allowed)"; \
	  { $$root apt-get update && $$root env DEBIAN_FRONTEND=noninteractive apt-get install -y \
	    --no-install-recommends chromium; } >$(VENV)/chromium.log 2>&1 \
	    || echo "Chromium could not be installed here; its test is left out"; \
	fi

clean:
	rm -rf $(VENV) $(FLOOR) build docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache
