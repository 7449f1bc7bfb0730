# `make demo` and `make test` need Python 3.11 or newer and its package index; they set up everything else in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint clean

demo: $(STAMP)  ## handwritten digits through encoder, prefill and decode
	$(BIN)/python -m demo

test: $(STAMP)  ## all tests
	$(BIN)/python -m pytest

lint: $(STAMP)  ## ruff, mypy, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:  ## remove what the targets above made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) cannot make virtual environments; install its venv package (Debian: apt install python3-venv)"; exit 1; }
	@echo "Installing packages into $(VENV) (the first time a few minutes: torch brings about 3 GB) ..."
	$(BIN)/python -m pip install --disable-pip-version-check $(if $(CI),--quiet) -c constraints.txt -e '.[operator,runtime,test,dev]'
	@touch $@
