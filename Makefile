# The whole project in one command each; all of them make .venv first and reuse it.
#   make quickstart   from nothing to a fine-tuned GPT-1 in minutes        make test    lint and the whole test suite
#   make bench        figures beside the alternatives, on SHARDS (see benchmarks/README.md)   make soak   fault matrices
#   make paper    Table 5 and Figure 2 of the paper for a small model, as far as PAPER_HOURS go; see docs/results.md
#   make docs     the documentation as a site, in docs/_build
#   make gpu-wheels   what benchmarks/gpu.py needs on a GPU machine without network (torch aside), in gpu-wheels/
#   make mutants      whether the tests notice small changes of the code (about 12 minutes)
#   make TORCH=keep ..          keep the machine's own torch (a GPU build, say) instead of installing one
#   make PYTHON=python3.12 ..   choose the interpreter, 3.11 or newer
#   make BIN=DIR/bin open-mpi   what Open MPI needs on one machine, in an environment other than .venv

TORCH = torch==2.13.0
TRITON = triton==3.9.0
PYTHON = $(shell for python in python3 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
SHARDS = quickstart/shards
CORPUS = stories
BIN = .venv/bin
INSTALLED = .venv/installed
INTERPRETER = .venv/triton/installed
MPI_SETTINGS = $(BIN)/../etc/prte-mca-params.conf
PIP = $(BIN)/python -m pip -qq --disable-pip-version-check
# deepspeed, mpirun and tensorboard lie in .venv/bin and must be found without activating it.
export PATH := $(CURDIR)/$(BIN):$(PATH)

ifeq ($(origin PYTHON),command line)
# "Python 3.12.1" -> 3.12.1, and nothing if there is no such program.
VERSION := $(shell $(PYTHON) --version 2>&1 | sed -n 's/^Python //p')
NEWER = give Python 3.11 or newer, such as make PYTHON=python3.12
ifeq ($(VERSION),)
$(error error: PYTHON=$(PYTHON) does not run; $(NEWER))
endif
ifneq ($(shell echo $(VERSION) | awk -F. '{ print ($$1 == 3 && $$2 >= 11) }'),1)
$(error error: PYTHON=$(PYTHON) is Python $(VERSION); $(NEWER))
endif
endif

.PHONY: open-mpi quickstart test lint docs bench paper soak mutants gpu-wheels clean
.DELETE_ON_ERROR:

quickstart: $(INSTALLED)
	@$(BIN)/python quickstart.py

test: lint $(INTERPRETER)
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

# Exit code 75, "Error 75" of make: the hours are over, and the same command goes on.
PAPER_RUN = runs/10m-words
PAPER_LSTM = $(PAPER_RUN)-lstm
PAPER_CONFIG = pretrain_10m_words
PAPER_DATA = tasks
PAPER_EXAMPLES = 2000
PAPER_HOURS =
PAPER_STEPS =
PAPER_TUNING = optim.lr=3e-4
paper: $(INSTALLED)
	@$(BIN)/python benchmarks/paper.py --run $(PAPER_RUN) --lstm $(PAPER_LSTM) --config $(PAPER_CONFIG) \
		--data $(PAPER_DATA) --examples $(PAPER_EXAMPLES) $(if $(PAPER_HOURS),--hours $(PAPER_HOURS)) \
		$(if $(PAPER_STEPS),--steps $(PAPER_STEPS)) \
		$(PAPER_TUNING) $(PAPER_ARGS)

# For another Python: make GPU_PYTHON=3.11 gpu-wheels. pip takes only the versions of glibc that are named here.
GPU_PYTHON = 3.12
GPU_PLATFORMS = $(foreach glibc,2_28 2_27 2_17 2_12,--platform manylinux_$(glibc)_x86_64)
gpu-wheels:
	@DS_BUILD_OPS=0 $(PYTHON) -m pip wheel -qq --no-deps --constraint constraints.txt --wheel-dir $@ deepspeed
	@$(PYTHON) -m pip download -qq --no-deps --only-binary :all: --python-version $(GPU_PYTHON) --implementation cp \
		$(GPU_PLATFORMS) --constraint constraints.txt --dest $@ --requirement benchmarks/on_gpu/wheels.txt
	@du -sh $@

clean:
	rm -rf .venv quickstart gpu-wheels build docs/_build *.egg-info .pytest_cache .ruff_cache
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
	@$(PIP) install --use-pep517 --constraint constraints.txt --editable '.[mpi,test]'
	@$(MAKE) --silent --no-print-directory open-mpi
	@touch $@

# A CPU build of torch brings no Triton. Its interpreter runs our kernel in a test, which alone has this folder on its
# path. Where it cannot be installed, that test is skipped.
$(INTERPRETER): $(INSTALLED)
	@rm -rf $(@D) && mkdir -p $(@D)
	@$(BIN)/python -c 'import triton' 2>/dev/null && touch $@ || { \
		echo "environment: installing $(TRITON) for the test of its kernel"; \
		$(PIP) install --no-deps --target $(@D) $(TRITON) && touch $@; } || \
		echo "environment: no Triton, so that test is skipped"

# Open MPI refuses more ranks than cores, and the user root, unless it is told otherwise. On one machine and in a
# container, `mpirun -n 8` should run. An Open MPI outside the environment is left as it is.
open-mpi:
	@test -w $(MPI_SETTINGS) && test -x $(BIN)/mpiexec || exit 0; \
	grep -q '^rmaps_default_mapping_policy' $(MPI_SETTINGS) || \
		echo 'rmaps_default_mapping_policy = :oversubscribe' >>$(MPI_SETTINGS); \
	test "$$(id -u)" = 0 || exit 0; \
	rm -f $(BIN)/mpirun; printf '%s\n' '#!/bin/sh' '# make open-mpi wrote this, as root: root may start ranks.' \
		'export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1' \
		'exec "$$(dirname "$$0")/mpiexec" "$$@"' >$(BIN)/mpirun; chmod +x $(BIN)/mpirun
