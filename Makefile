# `make demo`, `make test`, `make test-long` and `make test-all` each do all of their own set-up; only Python 3.11 or newer, git and make need be there.
PYTHON ?= python3
VENV := .venv
BIN := $(abspath $(VENV))/bin
DEMO_SLIDES := data/new-slides
# The tests use all extras but tensorrt, which needs an NVIDIA driver even to import.
comma := ,
EXTRAS := dvc,surgery,int8,ncnn,efficientnet-lite,ray,signature

.PHONY: demo test test-long test-nightly test-all test-lowest coverage mutation lint lock bench clean

demo: $(VENV)/.demo-installed
	PATH="$(BIN):$$PATH" dvc repro
	PATH="$(BIN):$$PATH" cytomil make-bags synthetic --out $(DEMO_SLIDES) --train-bags 0 --test-bags 8 --seed 1
	PATH="$(BIN):$$PATH" cytomil rank $(DEMO_SLIDES)
	@echo "The true labels of these synthetic slides, which rank does not look at, stand in $(DEMO_SLIDES)/bags.csv."

# One thread a process, because there is a process a core.
PYTEST = OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -n 2

test: lint
	$(PYTEST) -m "not long and not nightly"

test-long: lint
	$(PYTEST) -m long

test-all: test test-long

# More kills of every command, and disks that are really full.
test-nightly: lint
	$(PYTEST) -m nightly

# The parts whose results a figure rests on: which branches the fast tests take.
COVERED := training.losses training.surgery training.methods mil evaluation features
coverage: $(VENV)/.test-installed
	$(PYTEST) -m "not long and not nightly" --cov-branch $(COVERED:%=--cov=cytomil.%) --cov-report=term:skip-covered

# Changes losses, surgery, metrics and thresholds one place after the other, and lists the changes that no test notices.
mutation: $(VENV)/.test-installed
	"$(BIN)/python" -m pip install --quiet --group robustness
	mkdir -p mutants  # Python ignores a folder that did not exist when it started
	PYTHONPATH="$(CURDIR)/mutants" OMP_NUM_THREADS=1 "$(BIN)/mutmut" run --max-children 2
	"$(BIN)/mutmut" results

# The fast tests with the lowest versions that pyproject.toml allows, in an environment apart.
test-lowest: pyproject.toml
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --upgrade "pip>=25.1" uv
	$(VENV)-lowest/bin/uv pip compile --quiet --resolution lowest-direct --group dev $(foreach extra,$(subst $(comma), ,$(EXTRAS)),--extra $(extra)) \
	  --no-annotate --no-header --output-file .constraints-lowest.txt pyproject.toml
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint .constraints-lowest.txt --group dev --editable ".[$(EXTRAS)]"
	OMP_NUM_THREADS=1 $(VENV)-lowest/bin/python -m pytest -n 2 -m "not long and not nightly"

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
	"$(BIN)/python" -m pip install --quiet --constraint constraints.txt --editable ".[dvc]"
	@touch $@

$(VENV)/.test-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	"$(BIN)/python" -m pip install --quiet --upgrade "pip>=25.1"  # the first that knows dependency groups
	"$(BIN)/python" -m pip install --quiet --constraint constraints.txt --group dev --editable ".[$(EXTRAS)]"
	@touch $@

# What can be made again. Cells of your own, in data/raw, and the grids' work are left alone.
clean:
	rm -rf $(VENV) $(VENV)-lowest .constraints-lowest.txt data/bags data/features data/inputs.json data/.inputs.json.hashes $(DEMO_SLIDES) models reports triage
