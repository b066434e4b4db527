# Everything starts from a machine with python3.11 (or newer), g++ and make. nvcc and a GPU are optional.
#
#   make setup     .venv with all that tests and demo need (again only when pyproject.toml changes)
#   make test      setup, then linters, type checker, layer contracts, tests
#   make demo      setup, then compile the small model and let the emitted kernel continue a Python prompt
#   make nightly   setup, then the tests that take minutes
#   make lint      setup, then linters, type checker and layer contracts alone
#
# PYTHON chooses the interpreter, VENV the directory of the environment.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.tilecc-setup
# g++ does most of the work in the tests; two workers with one thread each fit two cores.
JOBS ?= 2

MODEL := models/mimo_tiny.py
CHECKPOINT := models/mimo_tiny
PACKAGE := build/mimo_tiny-sm_90a
PROMPT ?= import os\n\ndef read_lines(path):\n

export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup test lint demo nightly clean

help:
	@sed -n '2,9s/^# \{0,1\}//p' Makefile

setup: $(STAMP)

# torch comes first and pinned, so that the CPU build is taken where one is offered; the rest accepts it.
$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "python3.11 not found; set PYTHON" >&2; exit 3; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev,oracle,toolchain]"
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: lint
	$(BIN)/pytest -n $(JOBS) -m "not nightly"

nightly: setup
	$(BIN)/pytest -n $(JOBS) -m nightly

demo: setup
	$(BIN)/tilecc compile $(MODEL) --target sm_90a -o $(PACKAGE)
	printf '$(PROMPT)' | $(BIN)/tilecc run $(PACKAGE) --checkpoint $(CHECKPOINT) \
	    --prompt - --max-tokens 64 --device emulator --verify

clean:
	rm -rf build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
