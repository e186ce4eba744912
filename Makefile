# The commands of the README. `make help` lists them.
#
# Needs python3 (3.11 or later), git and make; all else goes into .venv, which is brought up to date
# only when pyproject.toml or the constraints change.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
STUDY ?= search_spaces/lr_sigma.yaml
ARGS ?=
TESTS ?= tests

# A slow or restless network: wait longer than pip does by itself, and try again.
export PIP_DEFAULT_TIMEOUT ?= 120
export PIP_RETRIES ?= 8
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet
PROJECT := pyproject.toml constraints-cpu.txt

# Without an NVIDIA GPU the constraints keep torch small; with one, torch comes with CUDA.
HAS_GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)
CONSTRAINTS := $(if $(HAS_GPU),,-c constraints-cpu.txt)

# Two test processes on two cores: more threads each would only be in each other's way.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help run test chaos bench bench-gpu bench-orchestration lint format test-lowest dist clean

help: ## List these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' \
	    | awk -F'|' '{ printf "  make %-12s %s\n", $$1, $$2 }'

run: $(VENV)/.installed ## Train the study STUDY=search_spaces/lr_sigma.yaml and write its report; ARGS='--slots 8' adds options
	$(BIN)/wesar-sweep run $(STUDY) $(ARGS)

test: lint ## Check the source, then run all tests in two processes; TESTS=tests/store runs some
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 $(TESTS)

chaos: $(VENV)/.installed-dev ## Kill, freeze and starve a study's processes 50 times on each database; ARGS='--faults 200'
	$(TEST_ENV) $(BIN)/python -m tests.chaos $(ARGS)

lint: $(VENV)/.installed-dev ## Check style (ruff) and types (mypy)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## Put the source into the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed ## Measure the engine on this CPU against plain torch; rows go to results/benchmarks.csv
	$(BIN)/python benchmarks/cpu_engine.py

bench-orchestration: $(VENV)/.installed ## Measure asks and tells a second on SQLite and PostgreSQL; ARGS='--workers 1,8,32'
	$(BIN)/python benchmarks/orchestration.py $(ARGS)

# The most important first; what fails in one script does not keep the others from running.
bench-gpu: $(VENV)/.installed ## The same on this GPU, with every kernel, the cost of methods, modes and data, the slots' occupancy
	@failed=; for script in gpu_engine gpu_kernels gpu_overhead gpu_modes gpu_data gpu_occupancy; do \
	    echo "$(BIN)/python benchmarks/$$script.py $(ARGS)"; \
	    $(BIN)/python benchmarks/$$script.py $(ARGS) || failed="$$failed $$script"; done; \
	$(BIN)/python benchmarks/chart.py; \
	test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

# torch is left at the constraints' version where there is no GPU: its older builds for CPUs are on
# few package indexes. Its lower bound is the version that the GPU machines carry.
test-lowest: ## Run the tests that are not slow with the lowest version of each dependency
	rm -rf .venv-lowest
	.ci/venv .venv-lowest
	.venv-lowest/bin/python -c "$$LOWEST" > .venv-lowest/lowest.txt
	.venv-lowest/bin/python -m pip install --quiet $(CONSTRAINTS) -c .venv-lowest/lowest.txt -e '.[dev]'
	$(TEST_ENV) .venv-lowest/bin/python -m pytest -n 2 -m 'not slow' $(TESTS)

dist: $(VENV)/.installed-dev ## Build the wheel and the source archive into dist/
	$(INSTALL) build
	$(BIN)/python -m build --outdir dist .

clean: ## Remove the virtual environments, caches and builds; results stay
	rm -rf $(VENV) .venv-lowest build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: $(PROJECT)
	.ci/venv $(VENV)
	$(INSTALL) $(CONSTRAINTS) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) $(CONSTRAINTS) -e '.[dev]'
	touch $@

define LOWEST
import re, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
for line in project["dependencies"] + extras["zstd"] + extras["hf"] + extras["cmaes"] + extras["postgres"]:
    name, lowest = re.match(r"([\w-]+)(?:\[\w+\])?>=([\w.]+)", line).groups()
    if name != "torch":
        print(f"{name}=={lowest}")
endef
export LOWEST
