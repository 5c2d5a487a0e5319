# `make help` lists the targets. Each target installs its requirements, once.

PYTHON ?= python3
CONFIG ?= serve_config.yaml
PORT ?=
QUICK ?=
VENV := .venv
BIN := $(VENV)/bin
PINS := pyproject.toml clients/python/pyproject.toml constraints.txt
CLIENT := clients/python
NODE_LOCKS := clients/typescript clients/typescript/examples/nestjs tests/clients/node_packages

# The tests start hundreds of processes, each of which would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install serve test test-fast bench check audit constraints

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed  ## Install the service and the command `embedserve` into .venv

serve: $(VENV)/.installed  ## Serve on port 8000 until Ctrl-C (CONFIG=file, PORT=number)
	@$(BIN)/embedserve serve $(CONFIG) $(if $(PORT),--port $(PORT))

test: $(VENV)/.installed-dev  ## Run all tests, with Ray and real models (35 minutes on two cores)
	@$(BIN)/pytest

test-fast: $(VENV)/.installed-dev  ## Run the tests that need no Ray, real model or client library (two minutes)
	@$(BIN)/pytest --fast

bench: $(VENV)/.installed-bench  ## Benchmark against other servers, most of an hour (QUICK=1: minutes)
	@$(BIN)/embedserve bench $(if $(QUICK),--quick)

check: $(VENV)/.installed-dev  ## Check formatting, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

audit:  ## Look up known vulnerabilities of all pinned dependencies (needs PyPI and npm)
	@rm -rf $(VENV)-audit && $(PYTHON) -m venv $(VENV)-audit
	@$(VENV)-audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	@$(VENV)-audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt
	@rm -rf $(VENV)-audit
	@for folder in $(NODE_LOCKS); do npm audit --package-lock-only --prefix $$folder || exit 1; done

constraints:  ## Resolve all dependencies again and write constraints.txt
	@rm -rf $(VENV)-resolve && $(PYTHON) -m venv $(VENV)-resolve
	@$(VENV)-resolve/bin/pip install --quiet '.[tiktoken,openai,cohere,voyage,otel,int8,bench,clients,dev]'
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
	@echo 'Installing the requirements of the plots.'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo 'Installing the requirements of the tests.'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[tiktoken,openai,cohere,voyage,otel,int8,bench,clients,dev]'
	@touch $@
