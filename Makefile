# These work on a bare machine with Python 3.11 or newer: each makes an environment of its own and installs into it first.
#   make demo          the whole loop on a small model, offline, in minutes; results go to hydralign-demo
#   make test          style, types and tests, with the versions in constraints.txt
#   make test-lowest   the tests with the lowest versions that pyproject.toml allows
#   make test-newest   the tests with the newest versions of everything but torch

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0

.PHONY: demo test types tests test-lowest test-newest
demo: $(VENV)/installed
	$(BIN)/hydralign demo

test: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(MAKE) --no-print-directory --jobs 2 types tests

# Side by side, since mypy takes one core for a minute when it has no cache.
types:
	$(BIN)/mypy

tests:
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto

test-lowest: .venv-lowest/installed
	OMP_NUM_THREADS=1 .venv-lowest/bin/pytest --numprocesses auto

test-newest: .venv-newest/installed
	OMP_NUM_THREADS=1 .venv-newest/bin/pytest --numprocesses auto

# torch goes first and alone, so that its pin decides before any other package asks for a version of it.
$(VENV)/installed: pyproject.toml constraints.txt
	$(call make-environment,$(VENV))
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv-lowest/installed: pyproject.toml tests/lowest_versions.py
	$(call make-environment,.venv-lowest)
	.venv-lowest/bin/python tests/lowest_versions.py pyproject.toml > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet $(TORCH)
	.venv-lowest/bin/python -m pip install --quiet --constraint .venv-lowest/constraints.txt --editable '.[dev]'
	touch $@

.venv-newest/installed: pyproject.toml
	$(call make-environment,.venv-newest)
	.venv-newest/bin/python -m pip install --quiet $(TORCH)
	.venv-newest/bin/python -m pip install --quiet --upgrade $(TORCH) --editable '.[dev]'
	touch $@

define make-environment
	@$(PYTHON) -c 'import sys; sys.exit("hydralign needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
endef
