# The words that people and CI share. Needs Python 3.11 or 3.12, make and the package indexes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# torch first and exact: with 2.13.0 here nothing pulls the CUDA build, which is several GB larger.
TORCH := torch==2.13.0

.PHONY: help demo serve install test test-slow check format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## install what is needed and make a video from a prompt
	$(BIN)/wan-tpu generate "a red circle moving right on a black background" --seed 1 -o demo.mp4

serve: $(VENV)/.installed-server  ## install what is needed and serve videos on http://127.0.0.1:8000
	$(BIN)/python -m server

install: $(VENV)/.installed-dev  ## install everything, the test and development tools too

test: $(VENV)/.installed-dev  ## every test but the slow ones
	$(BIN)/python -m pytest -n auto --maxprocesses 4 $(PYTEST)

test-slow: $(VENV)/.installed-dev  ## the tests that compile for minutes
	$(BIN)/python -m pytest -m slow $(PYTEST)

check: $(VENV)/.installed-dev  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.installed-dev  ## put the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-server: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[server]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
