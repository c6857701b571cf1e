# The whole project in one command each; all of them make .venv first and reuse it.
#   make quickstart   from nothing to a fine-tuned GPT-1 in minutes        make test    lint and the whole test suite
#   make bench        figures beside the alternatives, on SHARDS (see benchmarks/README.md)   make soak   fault matrices
#   make docs     the documentation as a site, in docs/_build
#   make mutants      whether the tests notice small changes of the code (about 12 minutes)
#   make TORCH=keep ..          keep the machine's own torch (a GPU build, say) instead of installing one
#   make PYTHON=python3.12 ..   choose the interpreter

TORCH = torch==2.13.0
PYTHON = $(shell for python in python3 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
SHARDS = quickstart/shards
CORPUS = stories
BIN = .venv/bin
INSTALLED = .venv/installed
PIP = $(BIN)/python -m pip -qq --disable-pip-version-check
# deepspeed, mpirun and tensorboard lie in .venv/bin and must be found without activating it.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: quickstart test lint docs bench soak mutants clean
.DELETE_ON_ERROR:

quickstart: $(INSTALLED)
	@$(BIN)/python quickstart.py

test: lint
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

soak: $(INSTALLED)
	@$(BIN)/python -m pytest -m soak $(PYTEST_ARGS)

mutants: $(INSTALLED)
	@$(BIN)/python -m tests.mutants $(MUTANTS_ARGS)

lint: $(INSTALLED)
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --quiet --diff
	@$(BIN)/mypy

docs: $(INSTALLED)
	@$(BIN)/sphinx-build -q -W --keep-going docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(INSTALLED)
	@$(BIN)/python benchmarks/bench.py $(SHARDS) --corpus $(CORPUS) $(BENCH_ARGS)

clean:
	rm -rf .venv quickstart build docs/_build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last: an interrupted installation is taken up again.
$(INSTALLED): setup.cfg constraints.txt pyproject.toml Makefile
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer on PATH; name one with make PYTHON=/path/to/python"; exit 2; }
	@echo "environment: .venv with $$($(PYTHON) --version) (some minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(if $(filter keep,$(TORCH)),--system-site-packages) .venv
ifeq ($(TORCH),keep)
	@$(BIN)/python -c 'import torch; print("environment: keeping torch", torch.__version__)'
else
	@echo "environment: installing $(TORCH)"
	@$(PIP) install --constraint constraints.txt $(TORCH)
endif
	@echo "environment: installing the rest"
	@$(PIP) install --constraint constraints.txt --editable '.[mpi,test]'
	@touch $@
