# `make help` lists what there is to do. Each target installs what it needs, once.

PYTHON ?= python3
CONFIG ?= serve_config.yaml
PORT ?=
QUICK ?=
VENV := .venv
BIN := $(VENV)/bin
PINS := pyproject.toml clients/python/pyproject.toml constraints.txt
CLIENT := clients/python

.DEFAULT_GOAL := help
.PHONY: help install serve test bench check constraints

help:  ## List the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed  ## Install the service into .venv, at pinned versions

serve: $(VENV)/.installed  ## Serve on port 8000 until Ctrl-C (CONFIG=file, PORT=number)
	@$(BIN)/embedserve serve $(CONFIG) $(if $(PORT),--port $(PORT))

test: $(VENV)/.installed-dev  ## Run every test, those on a real Ray too (a few minutes)
	@$(BIN)/pytest

bench: $(VENV)/.installed-bench  ## Measure against other servers (QUICK=1: minutes, not most of an hour)
	@$(BIN)/embedserve bench $(if $(QUICK),--quick)

check: $(VENV)/.installed-dev  ## Check formatting, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

constraints:  ## Resolve every dependency anew into constraints.txt
	@rm -rf $(VENV)-resolve && $(PYTHON) -m venv $(VENV)-resolve
	@$(VENV)-resolve/bin/pip install --quiet '.[tiktoken,bench,clients,dev]'
	@{ sed -n '/^#/p' constraints.txt; $(VENV)-resolve/bin/pip freeze \
	  | grep -v '^embedserve' | sed 's/^torch==.*/torch==2.13.0/'; } > constraints.new
	@mv constraints.new constraints.txt && rm -rf $(VENV)-resolve

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ...'; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python $(PINS)
	@echo 'Installing into $(VENV): about 2 GB and two minutes, the first time only.'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e $(CLIENT) -e .
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@echo 'Installing what the pictures need.'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo 'Installing what the tests need.'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[tiktoken,bench,clients,dev]'
	@touch $@
