# Every target works alone on a machine with Python 3.11, gcc and make; .venv is made once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: setup demo test test-slow test-triton lint format bench clean

setup: $(STAMP)

# torch goes in first and pinned, so that no resolver replaces it by another build.
$(STAMP): pyproject.toml setup.py constraints.txt
	$(PIP) --version > /dev/null 2>&1 || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	$(PIP) install -q "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(PIP) install -q -c constraints.txt -e ".[diffusers,cli,bench,dev]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/tiledattn demo --out build/demo

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" tests

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow tests

# The kernels' compile tests on the oldest and the newest Triton that are supported, each in a folder of its own.
test-triton: $(STAMP)
	for version in 3.6.0 3.9.0; do \
	  $(PIP) install -q --no-deps --target build/triton-$$version "triton==$$version" && \
	  PYTHONPATH=build/triton-$$version $(BIN)/python -m pytest tests/backends/triton || exit 1; \
	done

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python -m pytest bench -o python_files="bench_*.py" --benchmark-only --benchmark-columns=median,iqr,rounds --benchmark-sort=name

clean:
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
