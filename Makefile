# `make demo` and `make test` need nothing but python3 (3.11 or newer): each sets up .venv itself, once.
PYTHON ?= python3
PYTEST_ARGS ?=
# One process per core of the machines of continuous integration; PYTEST_WORKERS=0 runs all in one process (pdb, profiles).
PYTEST_WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PYTEST = $(BIN)/python -m pytest --numprocesses $(PYTEST_WORKERS) --dist worksteal
INSTALL := $(BIN)/python -m pip install --constraint constraints.txt
# Waiting threads sleep: where other work shares the cores, spinning ones make training ten times slower.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test test-slow fuzz coverage docs lint format clean

demo: $(VENV)/.package
	$(BIN)/ptrag-sc demo --out demo_output --overwrite

test test-slow fuzz coverage: export OMP_NUM_THREADS := 1
test: $(VENV)/.group-test
	$(PYTEST) $(PYTEST_ARGS)

test-slow: $(VENV)/.group-test
	$(PYTEST) -m "slow and not gpu and not internet and not fuzz" $(PYTEST_ARGS)

# 100 odd screens through set-up, one step, prediction, evaluation and a plot; PTRAG_SC_FUZZ=2000 draws so many.
fuzz: $(VENV)/.group-test
	$(BIN)/python -m pytest --numprocesses 0 -m fuzz tests/test_fuzz.py $(PYTEST_ARGS)

coverage: $(VENV)/.group-test
	$(PYTEST) --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

docs: $(VENV)/.group-doc
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

lint: $(VENV)/.group-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/zizmor --offline --no-progress .github/workflows

format: $(VENV)/.group-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo_output docs/_build docs/api/generated docs/tutorials/*.ipynb dist build

# Each stamp file says that one step of the set-up is complete and newer than what it was made from.
$(VENV)/.pip:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("ptrag_sc needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade "pip>=25.1"
	@touch $@

$(VENV)/.package: $(VENV)/.pip pyproject.toml constraints.txt
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.group-%: $(VENV)/.package
	$(INSTALL) --group $*
	@touch $@
