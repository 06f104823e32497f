# exitlens: `make run` does the whole study on the built-in model and data, `make test` checks everything.
# Needs make and Python 3.11 or newer; no root, no earlier step. Everything lands in .venv/ and runs/.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# The Python that makes .venv; choose another with `make PYTHON=/path/to/python ...`. The pins were made on 3.11.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14 python; do \
	if command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then command -v $$p; break; fi; done)
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/main
RUN_ARGS ?=
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 4 ] && echo 4 || echo $$n)
PYTEST_ARGS ?=

# What a stamp stands for: installed from these very files.
PINS := pyproject.toml constraints.txt
STAMP_RUN := $(VENV)/.installed-run
STAMP_TEST := $(VENV)/.installed-test

PIP_FAILED = { echo >&2; \
	echo "error: pip could not install the pinned packages (its message is above)." >&2; \
	echo "       No network? Point pip at a mirror (PIP_INDEX_URL=...) or a folder of wheels (PIP_FIND_LINKS=... PIP_NO_INDEX=1)." >&2; \
	echo "       No wheel for this Python ($$($(BIN)/python -V))? Try: make clean && make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; \
	exit 1; }

.PHONY: help run test lint types web pytest docs wheel clean install

help: ## list what can be made
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

run: $(STAMP_RUN) ## the whole study on the built-in model and data; ends with tables and the report's path (OUT=runs/main)
	$(BIN)/exitlens run --out $(OUT) $(RUN_ARGS)

test: lint types web docs pytest ## lint, types, the views' module, documentation, tests; any warning fails

lint: $(STAMP_TEST) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP_TEST) ## mypy, strict, on src/
	$(BIN)/mypy src

docs: $(STAMP_TEST) ## the documentation site, in build/site; any warning fails
	$(BIN)/python -m sphinx -q -W --keep-going docs build/site
	@echo "documentation: build/site/index.html"

# What a user of the package gets: the wheel, built apart from the checkout and installed where nothing else is.
wheel: $(STAMP_TEST) ## build the wheel and install it in an empty environment
	rm -rf dist build/wheel-env
	$(BIN)/python -m build -q
	if [ -e .git ] && command -v git >/dev/null; then $(BIN)/python scripts/package_files.py dist; fi
	"$(PYTHON)" -m venv build/wheel-env
	build/wheel-env/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt dist/*.whl
	cd build && wheel-env/bin/exitlens look "The capital of France is" --layers last -q

# The committed bundle is what its sources give; node is needed for that and for nothing else.
web: ## the component of web/: its types and tests, and the committed bundle rebuilt and compared (where node is there)
	@if command -v npm >/dev/null 2>&1; then \
		cd web && { [ -d node_modules ] || npm ci --no-audit --no-fund; } && npm run --silent types && npm run --silent test \
		&& npm run --silent check; \
	else echo "web: skipped, there is no npm (on Debian and Ubuntu: apt install nodejs npm)"; fi

# One thread a worker: many small products, and results that do not depend on the number of cores. Files are given out
# in the order of tests/conftest.py, long ones first.
pytest: $(STAMP_TEST) ## the tests alone (PYTEST_ARGS='-k name')
	EXITLENS_TYPECHECK=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
		$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

install: $(STAMP_RUN) ## only make .venv with the pinned packages

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "error: no Python 3.11 or newer found (python3 is: $$(python3 -V 2>&1 || echo missing)); install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; fi
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; v < (3, 11) and sys.exit("error: exitlens needs Python 3.11 or newer, %s is %d.%d" % (sys.executable, v[0], v[1]))'
	@rm -rf $(VENV)
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); \
		echo "error: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

$(STAMP_RUN): $(PINS) | $(BIN)/python
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e . || $(PIP_FAILED)
	@touch $@

$(STAMP_TEST): $(PINS) | $(BIN)/python
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]' || $(PIP_FAILED)
	@touch $(STAMP_RUN) $@

clean: ## remove .venv and every cache; runs/ stays
	rm -rf $(VENV) web/node_modules build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
