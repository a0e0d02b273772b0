PYTHON ?= python3
BIN = .venv/bin
DIGITS = build/digits
PATCHES = build/patches
# The variable is the theme's documented way to leave out its notice about MkDocs 2.
MKDOCS = NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

.PHONY: help install demo test test-slow check bench docs
.DEFAULT_GOAL := help

help:  ## What there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-10s %s\n", $$1, $$2}'

install: .venv/installed  ## A .venv with all that tests and benchmarks need

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: install  ## One cache of 1,797 digits, heads for three tasks; two backbones on photographs
	$(BIN)/python data/digits/make.py $(DIGITS)
	$(BIN)/featurize run $(DIGITS)/images -o build/digits.h5 --backbone seedling --layers auto
	$(BIN)/classify compare build/digits.h5 --labels $(DIGITS)/digit.csv \
		--labels $(DIGITS)/parity.csv --labels $(DIGITS)/loop.csv
	$(BIN)/python data/patches/make.py $(PATCHES)
	$(BIN)/featurize run $(PATCHES)/images -o $(PATCHES)/seedling.h5 --backbone seedling --layers auto
	$(BIN)/featurize run $(PATCHES)/images -o $(PATCHES)/lite0.h5 --backbone lite0 --layers auto
	$(BIN)/classify compare $(PATCHES)/lite0.h5 $(PATCHES)/seedling.h5 \
		--labels $(PATCHES)/what.csv --heads lda --folds 5

check: install  ## Lint, types, import floors, and whether the site builds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file mypy-scripts.ini tests benchmarks data examples docs
	$(BIN)/lint-imports
	$(MKDOCS) --site-dir build/check-site

test: install  ## All quick tests, on two cores
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: install  ## Kills, memory, attacks, reproduction: minutes each
	$(BIN)/pytest -m slow

bench: install  ## All benchmarks, or those named: PART="engines growth"
	$(BIN)/python benchmarks/bench.py $(PART)

docs: install  ## docs/cli.md from --help, tables and pictures, and the site: build/site/index.html
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_tables.py
	$(BIN)/python docs/make_pictures.py
	$(MKDOCS)
