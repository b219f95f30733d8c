# Everything runs in a local environment, .venv, that the first target needing it makes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test slow lint types format bench gpu docs clean

help:  ## say what each target does
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: $(VENV)/.installed  ## make .venv with every dependency and build the operators

$(VENV)/.installed: pyproject.toml setup.py $(wildcard csrc/*.h csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --progress-bar off "torch>=2.11" torchvision ninja wheel "setuptools>=77"
	$(BIN)/pip install --quiet --progress-bar off --no-build-isolation -e ".[dev]"
	touch $@

demo: setup  ## data, training, a kill, resume, evaluation and pictures in runs/demo
	$(BIN)/python examples/demo.py --output-dir $(RUN)

test: setup  ## every test that takes seconds
	$(BIN)/python -m pytest -m "not slow and not gpu and not multigpu"

slow: setup  ## the tests that train for minutes
	$(BIN)/python -m pytest -m "slow"

lint: setup  ## style, layers and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup  ## static types
	$(BIN)/mypy

format: setup  ## rewrite the files in our format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup  ## time operators, model and data stream on this machine
	$(BIN)/python benchmarks/bench_msda.py --device cpu
	$(BIN)/python benchmarks/bench_masked_attention.py --device cpu
	$(BIN)/python benchmarks/bench_model.py
	$(BIN)/python benchmarks/bench_data.py

gpu: setup  ## check and time everything that needs a GPU
	PATH="$(CURDIR)/$(BIN):$$PATH" bash benchmarks/gpu_run.sh

docs: setup  ## check that every public name has a docstring and every link a target
	$(BIN)/ruff check --select D1 kernels xdecoder pipelines
	$(BIN)/python -m pytest -q tests/repo

clean:  ## remove what the targets above made, but not runs
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
