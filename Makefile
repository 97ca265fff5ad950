# Everything runs in .venv, which `make setup` makes; nothing is installed outside it. Only Python 3.11+ and make are needed.

# The first Python on PATH that is new enough; `make PYTHON=...` names another.
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
STAMP := .venv/set-up
# `make setup PIP_OPTIONS=...` passes options to every pip install, such as an index with the CPU build of torch.
PIP_OPTIONS ?=
# Tests that measure nothing run side by side, on a process more than there are cores: many wait for others' processes.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
PYTEST := $(BIN)/python -m pytest
LINT_IMPORTS := $(BIN)/lint-imports --no-logo
# Where `make arm64` keeps a Debian for arm64, and where the Python in it looks for packages. `make arm64 MIRROR=...` names
# a mirror of Debian; else apt's is taken.
ARM64 := build/arm64
ARM64_PACKAGES := $(ARM64)/debian/usr/local/lib/python3.11/dist-packages
MIRROR ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test bench long light arm64 chaos soak sim sims lint types check format docs constraints clean

help: ## Say what can be made
	@sed -n 's/^\([a-z0-9]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | column -t -s '|'

setup: $(STAMP) ## Make .venv with all that a developer needs (minutes at the first time, nothing afterwards)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "edgeplan needs Python 3.11 or later on PATH; or say make PYTHON=..." >&2; exit 1; }
	@echo "Setting up .venv with $$($(PYTHON) --version): takes some minutes, most of them for torch"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) install $(PIP_OPTIONS) --constraint constraints.txt hatchling
	@$(PIP) install $(PIP_OPTIONS) --constraint constraints.txt --no-build-isolation --editable '.[torch,onnx,translation,docs,dev]'
	@touch $@

demo: $(STAMP) ## Run a broker and three devices on this machine, and plans on them
	@$(BIN)/edgeplan demo

check: lint types ## All that needs no test run: style, types, imports

lint: $(STAMP) ## Check style, format and the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(LINT_IMPORTS)

types: $(STAMP) ## Check types
	$(BIN)/mypy

test: check ## Check everything, and run every test but the long ones
	$(PYTEST) -m "not long and not alone" --numprocesses=$(WORKERS) --dist=worksteal
	$(PYTEST) -m "alone and not long"

long: $(STAMP) ## Run the tests that take minutes
	$(PYTEST) -m long

light: $(STAMP) ## Make .venv-light without torch, as on a small device, and train on digits there
	@test -x .venv-light/bin/python || $(PYTHON) -m venv .venv-light
	@.venv-light/bin/python -m pip --disable-pip-version-check --quiet install $(PIP_OPTIONS) --constraint constraints.txt '.[onnx]'
	EDGEPLAN_LIGHT_PYTHON=.venv-light/bin/python $(PYTEST) --capture=no tests/acceptance/test_light_agent.py

arm64: $(STAMP) $(ARM64)/edgeplan ## Make a Debian for arm64 (as root; minutes at the first time), and train on digits there under emulation
	@du --bytes --summarize --exclude=__pycache__ $(ARM64_PACKAGES) | awk '{printf "A light agent and all that it needs: %.0f MB unpacked\n", $$1 / 1e6}'
	@EDGEPLAN_ARM64_ROOT=$(ARM64)/debian $(PYTEST) --capture=no --quiet tests/arm64

$(ARM64)/debian: | $(STAMP)
	@$(BIN)/python -m tests.arm64 $@ $(MIRROR)

$(ARM64)/edgeplan: constraints.txt pyproject.toml $(shell find broker coordinator edge_agent -name '*.py') | $(ARM64)/debian
	@rm -rf $(ARM64_PACKAGES)
	@$(PIP) install $(PIP_OPTIONS) --constraint constraints.txt --no-build-isolation --no-compile --target $(ARM64_PACKAGES) \
		--implementation cp --python-version 3.11 --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 \
		--only-binary=:all: '.[onnx]'
	@touch $@

bench: $(STAMP) ## Measure latency and throughput beside a raw pyzmq relay
	@$(BIN)/python -m tests.benchmarks

sim: $(STAMP) ## Replay one seed of the simulation: make sim SEED=123
	@$(BIN)/python -m tests.simulation $(SEED)

sims: $(STAMP) ## Search 20,000 seeds of the simulation for a broken promise (minutes)
	@$(BIN)/python -m tests.simulation --count 20000

chaos: $(STAMP) ## Kill programs under load, and compare what was promised: make chaos KILLS=500 SEED=1
	@$(BIN)/python -m tests.chaos --kills $(or $(KILLS),500) --seed $(or $(SEED),1)

soak: $(STAMP) ## Watch memory and open files of a broker and an agent at work: make soak MINUTES=30
	@$(BIN)/python -m tests.chaos.soak --minutes $(or $(MINUTES),30)

docs: $(STAMP) ## Build the documentation into build/docs; a warning is an error
	$(BIN)/mkdocs build --strict

format: $(STAMP) ## Format the code, and fix what can be fixed by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: $(STAMP) ## Write what is installed in .venv into constraints.txt
	@{ sed -n '/^#/p;/^[^#]/q' constraints.txt; \
	   $(BIN)/python -m pip freeze --all --exclude edgeplan --exclude pip | sed 's/ @ .*//; s/+[a-z0-9.]*$$//' | sort -f; } > .venv/constraints.txt
	@cp .venv/constraints.txt constraints.txt

clean: ## Remove .venv and everything else that was made
	rm -rf .venv .venv-light build/docs build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
