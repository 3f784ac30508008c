# Everything a newcomer types. The first target that needs it builds .venv; a stamp file keeps it from happening twice.
#   make demo SEED=1            the exact testbed, end to end, to runs/demo/report.html (another seed, another directory)
#   make chat DATA=../shared/data a chat model end to end, to runs/chat/report.html
#   make hh DATA=../shared/data real preference data, end to end, to runs/hh/report.html

PYTHON ?= $(shell command -v python3.11 || command -v python3)
SEED ?= 0
DATA ?= ../shared/data
WORKERS ?= 2
VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
PIP_INSTALL := $(PIP) install --no-compile --quiet --progress-bar off -c constraints.txt

# A second OpenMP thread beside a busy neighbour costs far more than it gives; parallelism comes from processes.
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false
# A shell with another environment active must not leak into this one.
unexport PYTHONPATH
# Without cached bytecode every process of a run or a test compiles torch and transformers again, seconds at a time.
unexport PYTHONDONTWRITEBYTECODE
unexport VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help setup chat demo hh docs test test-all lint clean

help:
	@echo "make setup | demo [SEED=0] | chat [DATA=../shared/data] | hh [DATA=../shared/data] | docs | test | test-all | lint | clean"

setup: $(STAMP)

# torch goes in first, by the exact pin: then nothing that follows can pull another build of it.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch setuptools
	$(PIP_INSTALL) --no-build-isolation -e '.[dev]'
	touch $@

chat: $(STAMP)
	$(BIN)/align chat --data $(DATA)

demo: $(STAMP)
	$(BIN)/align demo --seed $(SEED)

hh: $(STAMP)
	$(BIN)/align hh --data $(DATA)

docs: $(STAMP)
	$(BIN)/python -m docs.generate
	PYTHONPATH=tests $(BIN)/python -m docs.generate.formats_page

test: $(STAMP)
	$(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow and not gpu"

test-all: $(STAMP)
	$(BIN)/python -m pytest -q -n $(WORKERS)

lint: $(STAMP)
	$(BIN)/ruff check align evals recipes tests benchmarks docs
	$(BIN)/mypy

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
