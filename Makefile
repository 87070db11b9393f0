# A newcomer's commands: make demo · make test · make bench · make lint. Everything is installed into .venv.
# PYTHONSAFEPATH keeps the repository root off sys.path (its kernels/ must not shadow a package of that name).
export PYTHONSAFEPATH := 1
PYTHON ?= python3
BIN := .venv/bin
SEED ?= 1

.PHONY: demo test test-slow bench lint install clean

install: .venv/installed

# torch first: whatever depends on it must find it there and not pull another build.
.venv/installed: pyproject.toml constraints.txt $(wildcard csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/python examples/demo.py --seed $(SEED)

test: install
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: install
	$(BIN)/python -m pytest -m "slow and not gpu"

bench: install
	$(BIN)/python -m pytest bench --benchmark-only -o python_files="bench_*.py"

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

clean:
	rm -rf .venv build runs
