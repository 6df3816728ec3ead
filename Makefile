# Every target works alone on a machine with Python 3.11, gcc and make; .venv is made once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
PEERS := $(VENV)/.peers
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: setup build wheel demo test test-slow test-triton test-arm test-sanitize fuzz lint format bench bench-record bench-more docs clean

CXX_FILES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
# AddressSanitizer comes first in the process; leaks of the interpreter are not ours, torch's own vtables are not hidden.
SANITIZED = LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 TILEDATTN_LIBRARY=$(CURDIR)/build/sanitize/_C.abi3.so

setup: $(STAMP)

# torch goes in first and pinned, so that no resolver replaces it by another build.
$(STAMP): pyproject.toml setup.py constraints.txt
	$(PIP) --version > /dev/null 2>&1 || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	$(PIP) install -q "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(PIP) install -q -c constraints.txt -e ".[diffusers,cli,bench,docs,dev]"
	touch $(STAMP)

# The extra bench-peers. pytorch-toolbelt asks for a torchvision, which it needs for other things than tiles.
# The benchmark does without a peer that can't be installed and says so.
EXTRA = import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench-peers"])
$(PEERS): $(STAMP)
	$(PIP) install -q -c constraints.txt $$($(BIN)/python -c '$(EXTRA)') || echo "not all peers could be installed"
	$(PIP) install -q -c constraints.txt --no-deps pytorch-toolbelt || echo "pytorch-toolbelt could not be installed"
	touch $(PEERS)

# The native library in place; only what changed is compiled. Without a compiler the package stays pure Python.
build: $(STAMP)
	$(BIN)/python setup.py -q build_ext --inplace

wheel: $(STAMP)
	rm -rf build/lib build/bdist.*
	$(PIP) wheel -q --no-deps --no-build-isolation -w dist .

demo: $(STAMP)
	$(BIN)/tiledattn demo --out build/demo

# A process a core: tests compute with one thread each.
test: build
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" tests

test-slow: build
	$(BIN)/python -m pytest -m slow tests

# The kernels' compile tests on the oldest and the newest Triton that are supported, each in a folder of its own.
test-triton: $(STAMP)
	for version in 3.6.0 3.9.0; do \
	  $(PIP) install -q --no-deps --target build/triton-$$version "triton==$$version" && \
	  PYTHONPATH=build/triton-$$version $(BIN)/python -m pytest tests/backends/triton || exit 1; \
	done

# The portable CPU kernels on 64-bit ARM, by Debian's g++-aarch64-linux-gnu and qemu-user.
test-arm: $(STAMP)
	$(BIN)/python -m pytest -rs tests/arm

# The property tests on a library with AddressSanitizer and UndefinedBehaviorSanitizer.
test-sanitize: sanitized
	$(SANITIZED) $(BIN)/python -m pytest -p no:faulthandler tests/ops/test_blending.py tests/ops/test_padding.py \
	  tests/ops/test_attention.py tests/ops/test_gradients.py $(wildcard tests/backends/test_native*.py)

# Random layouts, strides and dtypes on the same library, for SECONDS.
SECONDS ?= 60
fuzz: sanitized
	PYTHONPATH=. $(SANITIZED) $(BIN)/python tests/fuzz_native.py --seconds $(SECONDS)

.PHONY: sanitized
sanitized: $(STAMP)
	TILEDATTN_NO_EXT=0 TILEDATTN_SANITIZE=1 $(BIN)/python setup.py -q build_ext --build-lib build/sanitize/lib

lint: $(STAMP)
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# The quick cases beside their peers: a table here, JSON, Markdown and a page under build/bench.
bench: build $(PEERS)
	$(BIN)/tiledattn bench --quick --fresh --device cpu --out build/bench

# Every case that a CPU has and how times grow, on an idle machine; kept under bench/results and shown in docs/benchmarks.md.
bench-record: build $(PEERS)
	$(BIN)/tiledattn bench --device cpu --out build/bench-record
	$(BIN)/tiledattn bench scaling --device cpu --json build/bench-record/benchmark.json
	$(BIN)/python -m bench.record build/bench-record/benchmark.json

# What is watched by itself: a small set for comparing two checkouts, and files that the suite has no table for.
bench-more: build
	$(BIN)/python -m pytest bench -o python_files="bench_*.py" --benchmark-only --benchmark-columns=median,iqr,rounds --benchmark-sort=name

# The documentation as a site, from this tree alone: nothing is fetched, and a warning is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf tiledattn/_C.abi3.so tiledattn/_build.json build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
