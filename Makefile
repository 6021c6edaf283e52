# Every target makes the virtual environment it needs. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
# Without a package index: WHEELHOUSE names what `make wheelhouse` made; the rest is the machine's.
WHEELHOUSE ?=
ifneq ($(WHEELHOUSE),)
VENV_OPTIONS := --system-site-packages
INSTALL := --no-index --find-links $(WHEELHOUSE) --no-deps -r $(WHEELHOUSE)/requirements.txt
else
INSTALL = -e '.[$(1)]' -c constraints.txt
endif
# Of `make gpu`, tests included; tests may take half.
GPU_SECONDS ?= 540
GPU_OUT ?= gpu-out
# A process for each core, four at most: each imports PyTorch. ARGS=-n0 runs all tests in one.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-hybrid demo-teacher test test-slow lint types check bench gpu \
	docs wheelhouse clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make the virtual environment (.venv) with the pinned versions

demo: $(STAMP) ## cache a teacher, train students from the cache, print the table (in demo-out/)
	$(BIN)/pipeline demo --out demo-out

demo-hybrid: $(STAMP) ## the same with a hybrid student (minutes more)
	$(BIN)/pipeline demo --out demo-out --hybrid

demo-teacher: $(STAMP) ## train the demo's teacher anew (hours; PARQUET=DIR adds a corpus)
	$(BIN)/python -m pipeline.demo.make_teacher --out pipeline/demo/teacher \
		$(if $(PARQUET),--parquet "$(PARQUET)")

test: $(STAMP) ## run the tests (offline, CPU, minutes)
	$(PYTEST) $(ARGS)

test-slow: $(STAMP) ## run the tests that are too slow for `make test`
	$(PYTEST) -m slow $(ARGS)

lint: $(STAMP) ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## check types
	$(BIN)/mypy

check: lint types test ## everything that must hold before a merge

bench: $(STAMP) ## measure what the speed claims rest on
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(DOCS_STAMP) ## build the documentation as a site (site/index.html), links checked
	rm -rf site build/docs
	$(BIN)/sphinx-build --fail-on-warning --quiet -c docs -d build/docs . site
	@echo "Open site/index.html"

gpu: $(STAMP) ## test and measure on this machine's GPU, in nine minutes (GPU_OUT=DIR)
	@begin=$$(date +%s); status=0; \
	XLSTM_DISTILL_GPU_TESTS=cuda timeout -k 10 $$(($(GPU_SECONDS) / 2)) $(BIN)/python -m pytest \
		tests/gpu -m gpu -n 4 --dist worksteal --timeout 120 $(ARGS) || status=1; \
	$(BIN)/python -m benchmarks gpu --out "$(GPU_OUT)" \
		--seconds $$(($(GPU_SECONDS) - ($$(date +%s) - begin))) || status=1; \
	exit $$status

wheelhouse: $(STAMP) ## download what a machine without an index needs (PYTHON_VERSION=3.12)
	$(BIN)/python -m benchmarks.gpu.wheelhouse --python-version "$(PYTHON_VERSION)" \
		--extras "$(EXTRAS)" --without "$(WITHOUT)"

clean: ## remove the virtual environment and the tools' caches; results stay
	rm -rf $(VENV) site .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -not -path './demo-out/*' -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo 'Python 3.11 or newer is needed; "$(PYTHON)" is' \
			"$$($(PYTHON) --version 2>/dev/null || echo missing)." \
			'Name another one: make $(MAKECMDGOALS) PYTHON=python3.12' >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV_OPTIONS) $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(call INSTALL,dev)
	@touch $@

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check $(call INSTALL,docs)
	@touch $@
