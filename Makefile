# Four commands: demo, test, check, bench. Each does its own set-up.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check bench clean setup
.DEFAULT_GOAL := help

help:
	@echo "make demo [DATA=folder]   four clinics, one private model, one release, on this machine"
	@echo "make test                 every test, in parallel"
	@echo "make check                ruff, mypy --strict, import contracts, unit tests"
	@echo "make bench                ratios against peers, written to bench-out/results.json"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed; remedy: install python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; remedy: make PYTHON=/path/to/python3.11 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	sh packaging/debian_setup.sh
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python packaging/demo/run.py $(if $(DATA),--data $(DATA)) --out demo-out

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q -n 2 --dist loadfile -m "not processes and not demonstration"

test: $(STAMP)
	$(BIN)/pytest -q -n 2 --dist loadfile -m "not demonstration"
	$(BIN)/pytest -q -m demonstration

bench: $(STAMP)
	$(BIN)/python packaging/bench/run.py --out bench-out

clean:
	rm -rf $(VENV) demo-out bench-out
