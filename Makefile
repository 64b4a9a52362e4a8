# demo, test, check, fuzz, bench, cost: each makes .venv from the pinned constraints on its first run and reuses it afterwards
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := false
unexport PYTHONDONTWRITEBYTECODE

N ?= 100000
SECONDS ?= 3600

.PHONY: demo test test-all check fuzz bench real cost docs notebooks screenshots format test-old wheel clean

demo: $(VENV)/.ready  ## prune the bundled model four ways and write runs/demo/report.html
	$(BIN)/multiflow demo $(ARGS)

test: $(VENV)/.ready  ## the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal $(ARGS)

test-all: $(VENV)/.ready  ## the tests, and the sweep over all vision-language types of transformers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal -m "" $(ARGS)

check: $(VENV)/.ready  ## format, lint, types, import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: $(VENV)/.ready  ## N damaged files against every reader, for at most SECONDS; findings become tests
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.robust.fuzz --cases $(N) --seconds $(SECONDS) $(ARGS)

bench: $(VENV)/.ready  ## a cut of the benchmark on Shapes, and its report
	$(BIN)/multiflow bench run benchmarks/shapes.yaml --out runs/bench/cut --engine local --workers 2 --tier 1 --only \
		model=xvlm-shapes,vit-digits pruner=dense,multiflow,magnitude-modality seed=0 $(ARGS)
	$(BIN)/multiflow bench report runs/bench/cut

real: $(VENV)/.ready  ## the benchmark on real weights and data out of public packages; ARGS=--short computes a cut
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.real $(ARGS)

cost: $(VENV)/.ready  ## cost of pruning against the plain forward and one pass over the weights
	$(BIN)/python benchmarks/prune_cost.py $(ARGS)
	$(BIN)/python benchmarks/shapes_speed.py

docs: $(VENV)/.ready  ## renew what is generated from the registries, and build the site in build/site
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 COLUMNS=100 $(BIN)/python -m mkdocs build --strict

notebooks: $(VENV)/.ready  ## run docs/notebooks from top to bottom, and write what they show into them
	OMP_NUM_THREADS=1 $(BIN)/python docs/execute.py $(ARGS)

screenshots: $(VENV)/.ready  ## pictures of the reports of demo, bench and compare in build/screenshots: light, dark, narrow, print
	$(BIN)/python docs/screenshots.py $(ARGS)

format: $(VENV)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-old: .venv-old/.ready  ## model, golden and contract tests with the oldest supported transformers
	OMP_NUM_THREADS=1 .venv-old/bin/python -m pytest -q -n auto tests/families tests/test_golden.py tests/test_docs.py tests/contract $(ARGS)

wheel: $(VENV)/.ready  ## build what is published, and check it
	rm -rf dist
	$(BIN)/python -m pip install -q -e '.[release]'
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "multiflow needs Python 3.11 or later; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@

.venv-old/.ready: pyproject.toml constraints.txt
	test -x .venv-old/bin/python || $(PYTHON) -m venv .venv-old
	sed -e 's/^transformers==.*/transformers==5.17.0/' -e '/^huggingface_hub==/d' -e '/^tokenizers==/d' -e '/^safetensors==/d' \
		constraints.txt > .venv-old/constraints.txt
	PIP_CONSTRAINT=$(CURDIR)/.venv-old/constraints.txt .venv-old/bin/python -m pip install -q -e '.[dev]'
	touch $@

clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
