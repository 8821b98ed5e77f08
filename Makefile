# The commands that people type and CI runs; `make` alone lists them.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& { command -v $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
EXTRAS := dev,docs,export,heif,video
# uv unpacks the same wheels in a sixth of pip's CPU time; pip remains for machines where only pip knows the way to them.
PIP = $(BIN)/python -m pip install --disable-pip-version-check
CONFIG ?=
EXAMPLES ?= 5000
# Without a GPU, two jobs run side by side, each with half of the CPUs; with a GPU, one GPU job at a time.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); [ "$$n" -ge 2 ] && echo 2 || echo 1)
SNAKEMAKE_FLAGS ?= --cores $(JOBS) --resources gpu=1

# All programs that Snakemake starts come from the project's environment, too. Recipes name the folder
# themselves: macOS's make 3.81 may look for a recipe's program on the PATH that it was started with.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Container images often set this. Then every process compiles what it imports, which takes three times
# as long as the import. An empty value counts as none. `setup` caches the bytecode of what commands
# import, also for those that people type without make.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup run test slurm test-slurm kubernetes test-kubernetes fuzz bench check docs format report verify ui status sync schema icons icon-clip clean-environment chaos

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## create .venv with everything in it (once)

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "microclip needs Python 3.11, 3.12 or 3.13 and found none; install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot create environments; install its venv module (Debian: apt install python3-venv)" >&2; exit 2; }
	@echo "setting up $(VENV) with $(PYTHON): 5 GB of packages, a minute or two, once"
	@"$(PYTHON)" -m venv $(VENV)
	@$(PIP) --quiet 'uv==0.13.9'
	@$(BIN)/python -m uv pip install --quiet --python $(BIN)/python -e '.[$(EXTRAS)]' \
		|| { echo "uv failed; pip tries the same, which takes several minutes" >&2; \
			$(PIP) --quiet -e '.[$(EXTRAS)]'; }
	@$(BIN)/python -c 'import snakemake.cli; from microclip import warm; warm.preload_all()'
	@touch $@

run: setup  ## run the study: descriptions, self-training, scores, tables, figures, page
	@$(BIN)/python -m microclip unlock
	@$(BIN)/python -m microclip plan --brief $(if $(CONFIG),--config $(CONFIG))
	@$(BIN)/snakemake $(SNAKEMAKE_FLAGS) $(if $(CONFIG),--configfile $(CONFIG))
	@$(BIN)/python -m microclip show $(if $(CONFIG),--config $(CONFIG))

test: setup  ## run the whole test suite, on two CPUs if there are two
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations 30 --durations-min 1

slurm: setup  ## install Slurm by apt (as root) and Snakemake's plugin for it
	@command -v slurmctld >/dev/null || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null \
		|| { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
			apt-get install -qq -y --no-install-recommends slurm-wlm munge >/dev/null; } \
		|| echo "apt could not install Slurm; the tests are skipped" >&2
	@$(BIN)/python -c "import snakemake_executor_plugin_slurm" 2>/dev/null \
		|| $(PIP) --quiet -e '.[cluster]'

# It waits for Slurm, minutes in all, so it is no part of `test`.
test-slurm: slurm  ## run a study on a real Slurm on this machine
	@MICROCLIP_SLURM_TESTS=1 $(BIN)/python -m pytest -rs -s tests/slurm

kubernetes: setup  ## install kubectl by apt (as root)
	@command -v kubectl >/dev/null || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null \
		|| { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
			apt-get install -qq -y --no-install-recommends kubernetes-client >/dev/null; } \
		|| echo "apt could not install kubectl; the tests are skipped" >&2

# It takes minutes, too.
test-kubernetes: kubernetes  ## run a study in pods: real kubectl, an imitation of a cluster
	@MICROCLIP_KUBERNETES_TESTS=1 $(BIN)/python -m pytest -rs -s tests/kubernetes

fuzz: setup  ## try every parser with hostile input for minutes (EXAMPLES=5000 each)
	@MICROCLIP_FUZZ=$(EXAMPLES) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz

chaos: setup  ## kill -9 a whole small study twenty times: nothing may be lost (ten minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m chaos -s tests/chaos

bench: setup  ## the short benchmarks: starting, a training step, and its views
	@$(BIN)/python benchmarks/startup.py --rounds 1
	@$(BIN)/python benchmarks/loader.py
	@$(BIN)/python benchmarks/step.py

check: setup  ## check lint, types, formatting and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/codespell
	@test ! -x $(BIN)/hadolint || $(BIN)/hadolint Dockerfile
	$(BIN)/snakemake --lint
	@$(MAKE) --no-print-directory docs

docs: setup  ## write the documentation site to build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: setup  ## format all code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow/rules

report: setup  ## Snakemake's own report of the study, results/report.html
	@$(BIN)/snakemake $(SNAKEMAKE_FLAGS) $(if $(CONFIG),--configfile $(CONFIG)) --report results/report.html

verify: setup  ## compare the study with the paper's numbers
	@$(BIN)/python -m microclip verify $(if $(CONFIG),--config $(CONFIG))

ui: setup  ## serve MLflow on 127.0.0.1
	@$(BIN)/python -m microclip ui

status: setup  ## list runs as done, running, failed or pending
	@$(BIN)/python -m microclip status $(if $(CONFIG),--config $(CONFIG))

sync: setup  ## copy to MLflow the runs that it lacks
	@$(BIN)/python -m microclip sync

schema: setup  ## write config/schema, JSON schemas of all config files
	@$(BIN)/python -m microclip export-schema

icons: setup  ## maintainers: redraw resources/icons (needs npm and a network)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[icons]'
	@$(BIN)/python -m microclip.icons.render

icon-clip: setup  ## maintainers: retrain icon-clip, after `make icons` (minutes on a GPU)
	@$(BIN)/python -m microclip.icons.pretrain
	@$(BIN)/python -m microclip.icons.align

clean-environment:  ## remove .venv
	rm -rf $(VENV)
