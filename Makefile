PYTHON ?= python3
BIN = .venv/bin
DIGITS = build/digits

.PHONY: install demo test test-slow check bench docs

install: .venv/installed

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/python data/digits/make.py $(DIGITS)
	$(BIN)/featurize run $(DIGITS)/images -o build/digits.h5 --backbone seedling --layers auto
	$(BIN)/classify compare build/digits.h5 --labels $(DIGITS)/digit.csv \
		--labels $(DIGITS)/parity.csv --labels $(DIGITS)/loop.csv

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: install
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: install
	$(BIN)/pytest -m slow

bench: install
	@for script in cut_saving c_path further_task million_rows; do $(BIN)/python benchmarks/$$script.py || exit 1; done

docs: install
	$(BIN)/python docs/make_cli.py
