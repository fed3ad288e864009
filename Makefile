# Each target sets up what it needs; `make help` lists them.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# pip's and DVC's own chatter, and DVC's usage reports, stay off.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export DVC_NO_ANALYTICS := 1
# Dozens of processes of a run import the project: it is compiled once, wherever this would forbid to keep that.
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup repro seeds test fuzz check browser bench bench-gpu rehearsal docs coverage lock clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## create the environment from the lock file

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || { echo "Python 3.11 or later is needed; run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@

repro: $(READY) ## run the whole reproduction (dvc repro)
	$(BIN)/dvc repro

seeds: $(READY) ## repeat the reproduction over three seeds and write metrics/seeds.json
	$(BIN)/python -m stages.seeds --seeds 0 1 2 --out metrics/seeds.json

test: check browser ## set up, check and test everything
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 10

fuzz: $(READY) ## test properties by other examples than make test, every time anew
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile fuzz

browser: ## see that there is a Chromium for the tests of pages, which are skipped without
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	get="apt-get install -qq --no-install-recommends chromium"; \
	test "$$(id -u)" = 0 && { $$get || { apt-get update -qq && $$get; }; } >/dev/null 2>&1 \
	|| echo "no Chromium, and no right to install it: the tests of pages are skipped"

check: $(READY) ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(READY) ## build the documentation site in build/site
	$(BIN)/mkdocs build --strict --quiet
	@echo "docs: build/site/index.html"

coverage: $(READY) ## branch coverage of all tests in build/coverage (an hour)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --cov --cov-report html:build/coverage/html --cov-report term:skip-covered

lock: $(READY) ## write requirements.lock anew from pyproject.toml
	$(BIN)/pip-compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header --no-annotate --allow-unsafe --strip-extras --extra pipeline,export,hub,trackers,video,serve,tune,curate,docs,dev --output-file requirements.lock pyproject.toml

bench: $(READY) ## speed and memory as ratios against named baselines (about an hour)
	$(BIN)/python tests/benchmarks/startup_cost.py
	$(BIN)/python tests/benchmarks/data_speed.py
	$(BIN)/python tests/benchmarks/loader_speed.py
	$(BIN)/python tests/benchmarks/rows_memory.py
	$(BIN)/python tests/benchmarks/trainer_speed.py
	$(BIN)/python tests/benchmarks/scoring_speed.py
	$(BIN)/python tests/benchmarks/evaluate_speed.py
	$(BIN)/python tests/benchmarks/model_speed.py
	$(BIN)/python tests/benchmarks/names_speed.py
	$(BIN)/python tests/benchmarks/label_speed.py
	$(BIN)/python tests/benchmarks/teacher_speed.py
	$(BIN)/python tests/benchmarks/export_speed.py --deformable
	$(BIN)/python tests/benchmarks/export_speed.py
	$(BIN)/python tests/benchmarks/export_speed.py --model models/round_2
	$(BIN)/python tests/benchmarks/serve_speed.py --model models/round_2

bench-gpu: $(READY) ## training and labelling on the GPUs of this machine; ends with 2 where there is none
	$(BIN)/python tests/benchmarks/gpu_speed.py

rehearsal: $(READY) ## the stages of GLIP-L's run at the paper's row counts, without pictures or GPU (hours; SCALE=0.01: minutes)
	$(BIN)/python tests/benchmarks/rehearsal.py --scale $(or $(SCALE),1)

clean: ## remove what a run writes; the environment stays
	git clean -fdxq data models metrics plots reports
