# make setup   .venv with the exact versions of requirements.txt (needs Python 3.11, pip, make; no root)
# make demo    setup, a first sweep on an embedded data set on this machine, wherever that is, and its figure
# make study   setup, then the study of docs/study.md, hours on two cores; ARGS="presets=[study_digits] tune=4"
# make test    setup, what the tests need from Debian (root or sudo, once), then pytest; ARGS="-k pool" goes to pytest
# make chaos   the fault study on a real one-machine Slurm, half an hour: docs/reliability.md; ARGS="repeats=5"
# make bench   the table of ratios of docs/performance.md, on a quiet machine; ARGS="--threads 1 --clock cpu" on a busy one
# make gpu     what of the CUDA paths holds, on one GPU in at most eight minutes; ARGS="--device cpu" rehearses it
# make lint    ruff and mypy; make format lets ruff rewrite what it can
# make lock    resolves the newest versions that pyproject.toml allows into the two lock files
# make clean   removes what the targets above made, results and figures excepted
# make resolve prints what would be installed, and installs nothing
# Whatever is already there is not installed again. The lock's torch needs a driver of CUDA 13 (580 or later). For an older one,
# add TORCH=2.7 (that version, of CUDA 12.6) or TORCH=cu126 (PyTorch's own builds; cpu, rocm6.4 ...) to setup and to what
# follows: it installs from the ranges of pyproject.toml instead of the lock.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := setup

PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
UV_VERSION := 0.13.9
UV := .tools/bin/uv
PY := .venv/bin/python
INSTALL := $(UV) pip install --quiet --python $(PY) --compile-bytecode
COMPILE := $(UV) pip compile --quiet --python-version 3.11 --upgrade --no-annotate --custom-compile-command "make lock"

# empty, or what chooses torch: a version by a constraint, else one of uv's names of PyTorch's builds
PIN := $(patsubst %,.tools/torch-%.txt,$(filter 2.%,$(TORCH)))
CHOSEN := $(if $(PIN),--constraint $(PIN),$(addprefix --torch-backend=,$(TORCH)))
OF := $(addprefix -,$(TORCH))

# uv takes no Python but the one given, and does not read pip's settings: those of the environment are handed on
export UV_PYTHON_DOWNLOADS := never
unexport VIRTUAL_ENV PYTHONPATH PYTHONDONTWRITEBYTECODE
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
ifdef PIP_CERT
export SSL_CERT_FILE ?= $(PIP_CERT)
endif

.PHONY: setup resolve demo study test chaos bench gpu lint format lock clean debian

setup: .venv/.run$(OF)

demo: setup
	$(PY) sweeps/launch.py dataset=digits seeds=3 cluster=local
	$(PY) analysis/curves.py name=digits
	@ls figures/digits/*.png | sed 's/^/figure: /'

study: setup
	$(PY) sweeps/study.py $(ARGS)

test: debian .venv/.ffcv$(OF)
	$(PY) -m pytest -n logical --dist loadfile --no-loadscope-reorder $(ARGS)

chaos: debian .venv/.dev$(OF)
	$(PY) -m pytest -m chaos
	$(PY) -m tests.chaos $(ARGS)

bench: .venv/.dev$(OF)
	$(PY) -m benchmarks.table $(ARGS)

gpu: .venv/.dev$(OF)
	$(PY) -m benchmarks.gpu $(ARGS)

lint: .venv/.dev$(OF)
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

format: .venv/.dev$(OF)
	.venv/bin/ruff check --fix --quiet || true
	.venv/bin/ruff format

lock: $(UV)
	$(COMPILE) pyproject.toml -o requirements.txt
	$(COMPILE) pyproject.toml --extra dev --extra ffcv --extra label -c requirements.txt -o requirements-dev.txt

clean:
	rm -rf .venv .tools build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(UV):
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	    f"Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}: say make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-user --upgrade \
	    --target .tools uv==$(UV_VERSION)

$(PY): | $(UV)
	$(UV) venv --quiet --clear --seed --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv

ifdef TORCH
.venv/.run$(OF): pyproject.toml $(PIN) | $(PY)
	$(INSTALL) $(CHOSEN) --editable .
	@touch $@

.venv/.dev$(OF): .venv/.run$(OF)
	$(INSTALL) $(CHOSEN) --editable '.[dev,label]'
	@touch $@
else
.venv/.run: requirements.txt pyproject.toml | $(PY)
	$(INSTALL) -r requirements.txt
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

# everything of the test lock that needs no library of the system
.venv/.dev: requirements-dev.txt .venv/.run
	grep -v '^ffcv==' requirements-dev.txt | $(INSTALL) -r -
	@touch $@
endif

.tools/torch-%.txt: | $(UV)
	@echo 'torch==$*.*' > $@

resolve: $(PIN) | $(UV)
	@$(UV) pip compile --quiet --python-version 3.11 --no-annotate --no-header $(CHOSEN) pyproject.toml

# built from source, with the locked setuptools rather than with whichever is the newest
.venv/.ffcv$(OF): requirements-dev.txt .venv/.dev$(OF) | debian
	grep '^ffcv==' requirements-dev.txt | $(INSTALL) --no-deps --no-build-isolation -r -
	@touch $@

debian:
	@PYTHON=$(PYTHON) bash tests/debian.sh
