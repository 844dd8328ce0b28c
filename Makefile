# make demo   install the lean runtime into .venv and deblur the example photo
# make test   install everything into .venv, lint, check types and run the tests
# make long   run the tests that take long, after make test
# make cluster   install Ray too and run the tests that need it
# make lean   install the lean runtime into .venv-lean and run the tests that need no torch
# make docs   build the pages in docs/ into site/

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test long cluster lean docs clean

demo: .venv/lean
	$(BIN)/uid-run examples/astronaut_blurred.jpg -o out/astronaut_compare.png --compare --overwrite
	@echo "look at out/astronaut_compare.png: blurred on the left, the result on the right"

test: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses 2 --dist worksteal

long: .venv/dev
	$(BIN)/pytest --numprocesses 2 --dist worksteal -m long

cluster: .venv/dev
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[cluster]'
	$(BIN)/pytest -m 'long or not long' tests/serve/test_cluster.py

lean: .venv-lean/done
	.venv-lean/bin/pytest tests/bundles tests/runtime tests/test_layers.py

.venv-lean/done: pyproject.toml
	$(PYTHON) -m venv .venv-lean
	.venv-lean/bin/pip install --quiet --constraint constraints.txt --editable . hypothesis onnx pytest tifffile
	@touch $@

docs: .venv/docs
	$(BIN)/mkdocs build --strict

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is too old: Python 3.10 or newer is needed; name one with make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; echo "install the venv module first: apt install python3-venv"; exit 1; }

.venv/lean: .venv/bin/pip pyproject.toml
	rm -rf build  # files of an earlier layout would go into the wheel
	$(BIN)/pip install --quiet .
	@touch $@

.venv/dev: .venv/bin/pip pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ .venv/lean

.venv/docs: .venv/bin/pip pyproject.toml
	$(BIN)/pip install --quiet --editable '.[docs]'
	@touch $@ .venv/lean

clean:
	rm -rf .venv .venv-lean out build site *.egg-info src/*.egg-info
