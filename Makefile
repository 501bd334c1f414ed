# Every target sets up what it needs; a second call finds it installed. Needs make and Python 3.10 or later.
# PYTHON=/path/to/python3.11 make test   uses that interpreter for the virtual environment.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && { echo $$p; break; }; done)

VENV := .venv
OLDEST := .venv-oldest
MAIN := .venv-transformers-main
TRANSFORMERS_MAIN := https://github.com/huggingface/transformers/archive/refs/heads/main.zip
WORKERS ?= 2
# No test may reach the network; one thread per process, because the workers already fill the cores.
QUIET := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

DURATIONS := tests/durations.json

.PHONY: help demo durations test test-full test-oldest test-transformers-main lint docs clean
.DELETE_ON_ERROR:

help:
	@echo "make demo         train a tiny model on real images, from nothing to a reloaded adapter"
	@echo "make test         formatter, linter, types and the test suite"
	@echo "make test-full    the same, with the slow tests"
	@echo "make test-oldest  the test suite on the oldest supported versions (constraints-oldest.txt)"
	@echo "make test-transformers-main  the test suite against the newest commit of transformers"
	@echo "make durations    the test suite, recording in $(DURATIONS) how long each test takes"
	@echo "make lint         formatter, linter and types alone"
	@echo "make docs         build the documentation into site/"
	@echo "make clean        remove the virtual environments and everything built"

demo: $(VENV)/.installed
	HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 $(VENV)/bin/vlm-lora train --demo

test: lint
	$(QUIET) $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow"

durations: $(VENV)/.installed
	$(QUIET) $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow" --record-durations $(DURATIONS)

test-full: lint
	$(QUIET) $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadgroup

test-oldest: $(OLDEST)/.installed
	$(QUIET) $(OLDEST)/bin/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow"

test-transformers-main: $(MAIN)/.installed
	$(QUIET) $(MAIN)/bin/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow"

lint: $(VENV)/.installed
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m mypy

docs: $(VENV)/.installed-docs
	$(VENV)/bin/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) $(OLDEST) $(MAIN) site build dist .mypy_cache .ruff_cache .pytest_cache

# The stamps are written last, so an interrupted set-up is taken up again by the next call.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(call create,$(VENV))
	$(VENV)/bin/python -m pip install --constraint constraints.txt --editable ".[dev]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(VENV)/bin/python -m pip install --constraint constraints.txt --editable ".[docs]"
	@touch $@

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(call create,$(OLDEST))
	$(OLDEST)/bin/python -m pip install --constraint constraints-oldest.txt --editable ".[dev]"
	@touch $@

# Last, so that it replaces the release; pip then says that it is newer than pyproject.toml allows, which is the point.
$(MAIN)/.installed: pyproject.toml constraints.txt
	$(call create,$(MAIN))
	$(MAIN)/bin/python -m pip install --constraint constraints.txt --editable ".[dev]"
	$(MAIN)/bin/python -m pip install --upgrade "$(TRANSFORMERS_MAIN)"
	@touch $@

define create
	@test -n "$(PYTHON)" || { echo "No Python 3.10 or later found; name one: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is older than 3.10"; exit 1; }
	$(PYTHON) -m venv $(1) || { echo "Python's venv module is missing (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	$(1)/bin/python -m pip install "pip>=22"
endef
