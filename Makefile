# The words that people and CI share. Needs Python 3.11 or 3.12, make and the package indexes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Everything but torch is in requirements/*.txt at its exact version and hash, and pip looks for
# nothing that a list does not name. torch stands apart: its build differs by machine, and plain
# `torch` would pull one for CUDA, which is several GB larger.
TORCH := torch==2.13.0
LOCK := build/lock
COMPILE = UV_CUSTOM_COMPILE_COMMAND="make lock" $(LOCK)/bin/uv pip compile --quiet --universal \
	--python-version 3.11 --fork-strategy fewest --generate-hashes $(UPGRADE)
COMPILE_PROJECT = $(COMPILE) pyproject.toml --no-emit-package torch

# What a list names, torch, and this checkout over them.
define install_list
$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement $(1)
$(BIN)/python -m pip install --quiet $(TORCH)
$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
@touch $@
endef

.PHONY: help demo train-demo fleet-demo serve install test test-slow check format lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## install what is needed, make a video from a prompt and one from a picture
	$(BIN)/wan-tpu generate "a red circle moving right on a black background" --seed 1 -o demo.mp4
	$(BIN)/wan-tpu generate "a blue square moving up on a gray background" --seed 1 \
		--model wan-tiny-ti2v --image docs/images/square.png -o demo-picture.mp4

train-demo: $(VENV)/.installed-train  ## install what is needed; wan-tiny learns a colour and a shape, and shows it
	$(BIN)/python -m wan_tpu.demo.train_demo

fleet-demo: $(VENV)/.installed-fleet-demo  ## install what is needed; an API and two slices of wan-tiny, and all that they need, on this machine
	$(BIN)/python -m server.demo.fleet

serve: $(VENV)/.installed-server  ## install what is needed and serve videos on http://127.0.0.1:8000
	$(BIN)/python -m server

install: $(VENV)/.installed-dev  ## install everything, the test and development tools too

test: $(VENV)/.installed-dev  ## every test but the slow ones
	$(BIN)/python -m pytest -n auto --maxprocesses 4 $(PYTEST)

test-slow: $(VENV)/.installed-dev  ## the tests that compile for minutes
	$(BIN)/python -m pytest -m slow $(PYTEST)

check: $(VENV)/.installed-dev  ## lint, format, types, and whether the packages fit each other
	$(BIN)/python -m pip check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.installed-dev  ## put the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:  ## write requirements/*.txt anew from pyproject.toml; UPGRADE=--upgrade takes newer versions
	$(PYTHON) -m venv $(LOCK)
	$(LOCK)/bin/python -m pip install --quiet --no-deps --require-hashes -r requirements/uv.txt
	$(COMPILE_PROJECT) --extra dev --extra tpu --output-file requirements/dev.txt
	$(COMPILE_PROJECT) --constraint requirements/dev.txt --output-file requirements/library.txt
	$(COMPILE_PROJECT) --constraint requirements/dev.txt --extra server --output-file requirements/server.txt
	$(COMPILE_PROJECT) --constraint requirements/dev.txt --extra train --output-file requirements/train.txt
	$(COMPILE_PROJECT) --constraint requirements/dev.txt --extra server --extra postgres --extra train --extra tpu \
		--output-file requirements/slice.txt
	$(COMPILE_PROJECT) --constraint requirements/dev.txt --extra fleet --extra train --extra tpu \
		--output-file requirements/fleet.txt
	$(COMPILE_PROJECT) --constraint requirements/dev.txt --extra fleet-demo --output-file requirements/fleet-demo.txt
	$(COMPILE_PROJECT) --constraint requirements/dev.txt --extra server --extra train --extra cuda \
		--output-file requirements/cuda.txt
	$(COMPILE) --group lock --output-file requirements/uv.txt

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements/library.txt pyproject.toml | $(BIN)/python
	$(call install_list,$<)

$(VENV)/.installed-server: requirements/server.txt pyproject.toml | $(BIN)/python
	$(call install_list,$<)

$(VENV)/.installed-train: requirements/train.txt pyproject.toml | $(BIN)/python
	$(call install_list,$<)

$(VENV)/.installed-fleet-demo: requirements/fleet-demo.txt pyproject.toml | $(BIN)/python
	$(call install_list,$<)

$(VENV)/.installed-dev: requirements/dev.txt pyproject.toml | $(BIN)/python
	$(call install_list,$<)
