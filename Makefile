# Each target does its own set-up in .venv. To use an environment of your own: make VENV=/path/to/it ...
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: quickstart test slow soak check lint bench clean

quickstart: $(VENV)/.installed
	$(BIN)/perturblab quickstart

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -n $(JOBS)

# loadfile: a scheduler is started once per file (loadgroup of xdist 3.8 has no effect under pytest 9.2)
slow: $(VENV)/.installed-test  ## the longer tests: .ci/run runs them
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m slow

soak: $(VENV)/.installed-test  ## the promises of docs/reliability.md at their full size: an hour or more
	$(BIN)/python -m pytest -q -n $(JOBS) -m soak

lint: $(VENV)/.installed-test
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

check: lint test

bench: $(VENV)/.installed-test
	for b in input randaugment masked_loss probes correction noise grid; do $(BIN)/python benchmarks/$$b.py $(ARGS) || exit 1; done

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else "perturblab needs Python 3.11 or later; this is %d.%d: make PYTHON=python3.12 ..." % v[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[all,test]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
