# Needs make and Python 3.11 or later, nothing else: every target makes .venv by itself, the first time and whenever
# pyproject.toml or constraints.txt change. Which package index and which build of torch: pip's own settings decide.
PYTHON ?= python3.13 python3.12 python3.11 python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet -c constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint types format clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.run  ## reconstruct shapes with the shipped priors; writes demo-out/, a page to look at
	$(BIN)/metasdf demo -o demo-out

test: $(VENV)/.test  ## run the tests; options for pytest: make test ARGS="-k sphere -x"
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.lint  ## ruff
	$(BIN)/ruff check .

types: $(VENV)/.run $(VENV)/.lint  ## mypy
	$(BIN)/mypy

format: $(VENV)/.lint  ## sort imports and apply ruff's safe fixes
	$(BIN)/ruff check --fix .

clean:  ## remove all that make made: .venv, caches, dist, demo-out
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist demo-out
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment, three levels: a stamp says what is in it. Tests include what the demo needs.
$(VENV)/.run: $(BIN)/pip pyproject.toml constraints.txt
	@echo "installing metasdf into $(VENV) (the first time, minutes: torch is large)"
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.test: $(BIN)/pip pyproject.toml constraints.txt
	@echo "installing metasdf and its test tools into $(VENV) (the first time, minutes: torch is large)"
	@$(INSTALL) -e ".[test]"
	@touch $(VENV)/.run $@

$(VENV)/.lint: $(BIN)/pip pyproject.toml constraints.txt
	@echo "installing ruff and mypy into $(VENV)"
	@$(INSTALL) ruff mypy
	@touch $@

# pip comes last when an environment is made: its presence means that the making was not cut off.
$(BIN)/pip:
	@for python in $(PYTHON); do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    "$$python" -c 'import ensurepip, venv' 2>/dev/null || { bare="$$bare $$python"; continue; }; \
	    echo "making $(VENV) with $$("$$python" --version) ($$python)"; \
	    exec "$$python" -m venv $(VENV); \
	done; \
	if [ -n "$$bare" ]; then \
	    echo "Found$$bare, but without the modules venv and ensurepip, which make environments."; \
	    echo "Install them (Debian and Ubuntu: the package python3-venv, or python3.11-venv for that version) and run make again."; \
	else \
	    echo "No Python 3.11 or later found; tried: $(PYTHON)."; \
	    echo "Install one, or say where it is: make PYTHON=/path/to/python3 $(MAKECMDGOALS)"; \
	fi >&2; exit 1
