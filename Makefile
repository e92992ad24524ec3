# make demo   install, then prepare, train, evaluate and translate the embedded corpus, in under 6 minutes on two cores
# make test   lint, types and all tests;  make check: without the slow tests;  make test-gpu: the tests that need CUDA
# make docs   build the site of the documentation in build/site; warnings are errors
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test check test-gpu lint format docs clean

demo: .venv/installed
	$(BIN)/python scripts/prepare.py
	$(BIN)/python scripts/train.py
	$(BIN)/python scripts/evaluate.py checkpoint=runs/demo/best.pt
	$(BIN)/python scripts/translate.py checkpoint=runs/demo/best.pt input=examples/demo.en output=runs/demo/demo.de
	@echo && echo "Five translations (all of examples/demo.en is in runs/demo/demo.de):"
	@paste -d '\n' examples/demo.en runs/demo/demo.de | head -10
	@echo && echo "checkpoint:  runs/demo/best.pt"
	@echo "TensorBoard: $(BIN)/tensorboard --logdir runs   (events in runs/demo)"

test: lint
	$(BIN)/pytest -n 2 --dist worksteal

check: lint
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow"

test-gpu: .venv/installed-dev
	$(BIN)/pytest -m cuda

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "site: build/site/index.html; for the search: $(BIN)/python -m http.server --directory build/site"

clean:
	rm -rf build/site .venv *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "gnmt needs Python 3.11 to 3.13, this is " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) --editable '.[dev]'
	@touch $@

.venv/installed-docs: .venv/installed
	$(PIP) --editable '.[docs]'
	@touch $@
