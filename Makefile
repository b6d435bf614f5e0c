# Two commands do everything, set-up included: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint format install clean

demo: $(VENV)/installed
	$(BIN)/python -m data_prep digits --out data/digits --writer raw
	$(BIN)/python -m fastwi.train --config configs/digits.yaml

# Two processes of one thread each: on two cores twice as fast as one with two, and neither waits for the other's cores.
test: lint chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

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
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
