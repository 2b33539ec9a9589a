# `make demo` shows what MetaForge does; `make test` checks all of it. Both make `.venv` and install what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two test processes of one thread each: more threads would only fight over the cores.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test lint types architecture pytest results torture docs clean

demo: $(VENV)/installed
	$(BIN)/metaforge train --learner protonet --out runs/demo-$$(date +%Y%m%d-%H%M%S) --steps 400 --evaluate

test: lint types architecture pytest

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/mypy

architecture: $(VENV)/installed-dev
	$(BIN)/lint-imports

pytest: $(VENV)/installed-dev
	$(TEST_ENV) $(BIN)/python -m pytest -n 2

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

torture: $(VENV)/installed-dev
	$(BIN)/python -m tests.reliability

results: $(VENV)/installed
	$(BIN)/python -m benchmarks.accuracy
	$(BIN)/python -m benchmarks.adaptation
	$(BIN)/python -m benchmarks.which_method

docs: $(VENV)/installed
	$(BIN)/python -m docs.generate

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist
