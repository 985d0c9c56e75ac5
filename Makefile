# The first Python that fits; make PYTHON=... chooses another.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
# Tests of a file stay together: they share what they prepared.
SPREAD := --numprocesses 2 --dist loadfile

.PHONY: help demo rehearse-table2 reproduce-table2 test test-all check format bench dist clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP) ## generated raw files -> shards -> pre-training -> evaluation -> demo/report.html
	$(BIN)/skelpipe demo --out demo --force

rehearse-table2: $(STAMP) ## SLiM's Table 2 on generated data at the tiny scale: rehearsal/, minutes
	$(BIN)/skelpipe table slim-table-2 --scale tiny --synth rehearsal

reproduce-table2: $(STAMP) ## SLiM's Table 2 at the paper's scale from data/raw: days on a GPU
	$(BIN)/skelpipe table slim-table-2 --scale paper

test: $(STAMP) ## the test suite, minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(SPREAD)

test-all: $(STAMP) ## the test suite with its slow tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(SPREAD) -m "slow or not slow"

check: $(STAMP) ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP) ## rewrite the code as `check` wants it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## benchmarks, each a ratio against a baseline of the same run
	$(BIN)/skelpipe bench all

dist: $(STAMP) ## build the wheel, install it into a fresh environment and call it
	rm -rf dist build
	$(BIN)/python -m build --quiet --outdir dist
	$(PYTHON) -m venv dist/venv
	dist/venv/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	dist/venv/bin/skelpipe --version
	dist/venv/bin/skelpipe --help > /dev/null
	rm -rf dist/venv

clean: ## remove what the targets above made, but no data and no runs
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache
