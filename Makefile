# `make demo`, `make test`, `make test-long` and `make test-all` each do all of their own set-up; only Python 3.11 or newer, git and make need be there.
PYTHON ?= python3
VENV := .venv
BIN := $(abspath $(VENV))/bin
DEMO_SLIDES := data/new-slides

.PHONY: demo test test-long test-all lint lock bench clean

demo: $(VENV)/.demo-installed
	PATH="$(BIN):$$PATH" dvc repro
	PATH="$(BIN):$$PATH" cytomil make-bags synthetic --out $(DEMO_SLIDES) --train-bags 0 --test-bags 8 --seed 1
	PATH="$(BIN):$$PATH" cytomil rank $(DEMO_SLIDES)
	@echo "The true labels of these synthetic slides, which rank does not look at, stand in $(DEMO_SLIDES)/bags.csv."

# One thread a process, because there is a process a core.
PYTEST = OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -n 2

test: lint
	$(PYTEST) -m "not long"

test-long: lint
	$(PYTEST) -m long

test-all: test test-long

lint: $(VENV)/.test-installed
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"

# Without what a processor build of PyTorch lacks, and without the local part of a version.
lock: $(VENV)/.test-installed
	(head -n 1 constraints.txt; "$(BIN)/python" -m pip freeze --exclude-editable \
	  | sed -E 's/\+[a-z0-9.]+$$//' | grep -viE '^(nvidia-|cuda|triton)| @ ') > .constraints.txt
	mv .constraints.txt constraints.txt

bench: $(VENV)/.test-installed
	"$(BIN)/python" -m bench

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "cytomil needs Python 3.11 or newer; name one with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	"$(BIN)/python" -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.test-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	"$(BIN)/python" -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

# What can be made again. Cells of your own, in data/raw, and the grids' work are left alone.
clean:
	rm -rf $(VENV) data/bags data/features data/inputs.json data/.inputs.json.hashes $(DEMO_SLIDES) models reports triage
