# Needs python3 (3.10 or later, with venv), make and a package index; pip's own settings
# decide which index. A second call uses the same virtual environment again.
#
#   make quickstart
#   make test PYTHON=python3.12 VENV=/tmp/venv ARGS="-k link"

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# Two tests at a time: a run under test is two processes or more, and times are limited.
PARALLEL := -n 2 --dist worksteal

BIN := $(VENV)/bin
# The checkout that this virtual environment was last installed from, if it is another one.
OTHER := $(filter-out $(CURDIR),$(shell cat $(VENV)/.dglpipe-checkout 2>/dev/null))

.DEFAULT_GOAL := help
.NOTPARALLEL:
# Processes of the tests import what earlier ones have compiled.
test test-all: export PYTHONDONTWRITEBYTECODE :=
.PHONY: quickstart test test-all lint lint-style lint-types lint-workflows wheel docs gpu-check install \
  clean help FORCE

quickstart: $(VENV)/.dglpipe-run ## train on the embedded data set in two processes
	$(BIN)/dglpipe train $(ARGS)

test: $(VENV)/.dglpipe-test ## the tests, without slow ones and repeats
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow" $(ARGS)

test-all: $(VENV)/.dglpipe-test ## the whole test suite
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

lint: lint-style lint-types lint-workflows ## style, format, types and workflows

lint-style: $(VENV)/.dglpipe-dev ## style and format
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

lint-types: $(VENV)/.dglpipe-dev ## types
	$(BIN)/python -m mypy

# The schemas are part of the package check-jsonschema: nothing is downloaded.
SCHEMA := $(BIN)/python -m check_jsonschema --force-filetype yaml --builtin-schema
FORMS := $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
lint-workflows: $(VENV)/.dglpipe-dev ## workflows and issue forms of .github, CITATION.cff
	$(SCHEMA) vendor.github-workflows .github/workflows/*.yml
	$(SCHEMA) custom.github-workflows-require-timeout .github/workflows/*.yml
	$(SCHEMA) vendor.github-issue-forms $(FORMS)
	$(SCHEMA) vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(SCHEMA) vendor.citation-file-format CITATION.cff
	$(BIN)/zizmor --offline --quiet .github

wheel: $(VENV)/.dglpipe-dev ## source distribution and wheel in dist/, checked
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

docs: $(VENV)/.dglpipe-docs ## the documentation as a site, in build/docs
	$(BIN)/python -m sphinx -E -W --keep-going -n -c docs -d build/doctrees . build/docs $(ARGS)

gpu-check: $(VENV)/.dglpipe-run ## what can only be checked with CUDA devices
	$(BIN)/python tools/gpu_check/gpu_check.py $(ARGS)

install: $(VENV)/.dglpipe-test $(VENV)/.dglpipe-dev ## nothing but the virtual environment, with all tools

clean: ## remove .venv, build outputs and caches; runs/ stays
	rm -rf .venv build dist src/dglpipe.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks tools examples -name __pycache__ -prune -exec rm -rf {} +

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# What is installed, one stamp an extra. Packages that are there already stay as they are.
EXTRA :=
$(VENV)/.dglpipe-test: EXTRA := [test]
$(VENV)/.dglpipe-dev: EXTRA := [dev]
$(VENV)/.dglpipe-docs: EXTRA := [docs]
STAMPS := $(addprefix $(VENV)/.dglpipe-,run test dev docs)
$(STAMPS): setup.cfg pyproject.toml $(if $(OTHER),FORCE) | $(VENV)/.dglpipe-venv
	$(BIN)/python -m pip install --editable '.$(EXTRA)'
	echo '$(CURDIR)' > $(VENV)/.dglpipe-checkout
	touch $(VENV)/.dglpipe-run $@

$(VENV)/.dglpipe-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo 'dglpipe needs Python 3.10 or later: make ... PYTHON=python3.x' >&2; exit 2; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) \
	  || { echo "$(PYTHON) has no venv (on Debian: the package python3-venv)" >&2; exit 2; }
	touch $@

FORCE:
