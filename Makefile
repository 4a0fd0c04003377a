# Everything is installed into .venv from lock files with hashes; nothing else on the machine is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
PYTEST ?= $(BIN)/python -m pytest
ROUNDS ?= 100
SEEDS ?= 2000

.PHONY: up down test check format lock clean bench bench-wan bench-layers conformance soak help

help: ## what can be made here
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): requirements.lock pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): requirements-dev.lock $(RUNTIME)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

up: $(RUNTIME) ## start the regions on this machine and stay in the foreground (REGIONS, BASE_PORT, MERIDIAN_DATA)
	@exec $(BIN)/meridian local up

down: $(RUNTIME) ## stop every region on this machine
	@exec $(BIN)/meridian local down

test: $(DEV) ## all tests; those whose client is missing are skipped by name
	$(PYTEST)

check: $(DEV) ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: $(DEV) ## kill -9 everything ROUNDS times under load, half as often with power lost, then without each fsync; ROUNDS images by real clients; SEEDS simulated
	$(BIN)/meridian chaos crash --rounds $(ROUNDS)
	$(BIN)/meridian chaos crash --rounds $$(( ($(ROUNDS) + 1) / 2 )) --lossy
	$(BIN)/meridian chaos regions --rounds $$(( $(ROUNDS) * 2 / 5 )) --fault leader
	$(BIN)/meridian chaos regions --rounds $$(( $(ROUNDS) * 2 / 5 )) --fault all
	$(BIN)/meridian chaos regions --rounds $$(( $(ROUNDS) / 5 )) --fault power
	$(BIN)/meridian chaos regions --rounds $$(( $(ROUNDS) / 10 )) --fault partition --fault freeze
	$(BIN)/meridian chaos fsyncs
	MERIDIAN_IMAGES=$(ROUNDS) $(BIN)/python -m pytest -q tests/clients/test_skopeo_regions.py tests/clients/test_many_images.py
	MERIDIAN_KILLS=$(ROUNDS) $(BIN)/python -m pytest -q tests/node/test_fetch_crashes.py
	@mkdir -p build
	$(BIN)/meridian chaos simulate --seeds $(SEEDS) --state build/simulation.json

format: $(DEV) ## put the code into its form
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

lock: ## resolve the lock files anew (needs uv on the PATH)
	uv pip compile --quiet --no-config --universal --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links --no-header --group build pyproject.toml -o requirements.lock
	uv pip compile --quiet --no-config --universal --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links --no-header --group dev --constraint requirements.lock pyproject.toml -o requirements-dev.lock

conformance: $(RUNTIME) ## the OCI conformance program against a node of its own; results in build/conformance
	@.ci/install-clients conformance
	@$(BIN)/python -m tests.clients.conformance

bench: $(RUNTIME) ## speed and memory beside docker-registry and nginx, to bench/RESULTS.md (QUICK=1: to build/bench)
	$(BIN)/python -m bench $(if $(QUICK),--quick)

bench-wan: $(RUNTIME) ## commits, throughput and calm of three regions at emulated distances, to bench/RESULTS.md (MINUTES)
	$(BIN)/python -m bench.wan --minutes $(or $(MINUTES),10)

bench-layers: $(RUNTIME) ## layers fetched on demand between regions of the lab, to bench/RESULTS.md (needs root)
	$(BIN)/python -m bench.fetching
	$(BIN)/python -m bench.bulk

clean: ## remove what make put here, but no data of a cluster
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
