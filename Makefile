# The front door. `make help` lists what is here; every target sets up .venv by itself.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_READY := $(VENV)/.run-ready
DEV_READY := $(VENV)/.dev-ready
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.DEFAULT_GOAL := help
.PHONY: help drill drill-crash drill-disks test lint format simulate mutants bench clean lock

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

$(RUN_READY): requirements.lock pyproject.toml
	@{ echo "setting up $(VENV) (once)"; test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	  $(PIP) install --require-hashes -r requirements.lock; \
	  $(PIP) install --no-deps --no-build-isolation -e . ; touch $@; } >&2

$(DEV_READY): requirements-dev.lock $(RUN_READY)
	@{ echo "adding the development tools (once)"; \
	  $(PIP) install --require-hashes -r requirements-dev.lock; touch $@; } >&2

drill: $(RUN_READY) ## Stall a subnet, recover it by a vote, print the phases (ARGS="--json --nns-nodes 4")
	@$(BIN)/reprise drill run subnet-divergence $(ARGS)

SCENARIOS ?= subnet-divergence subnet-loss membership-change upgrade canister-failure root-failure \
  governance-failure nns-stall nns-loss
OFFSETS ?= 0 3 7

drill-crash: $(RUN_READY) ## Every drill three times, one kill -9 in every phase (SCENARIOS=, OFFSETS=)
	@for scenario in $(SCENARIOS); do for offset in $(OFFSETS); do \
	  $(BIN)/reprise drill run $$scenario --kill-offset $$offset || exit 1; done; done

CUTS ?= 20
FAULTS ?= 20
ROT ?= 3
FULL ?= 1

drill-disks: $(RUN_READY) ## Power cuts, failing calls, rot, full disks (CUTS=, FAULTS=, ROT=, FULL=, ARGS=--json)
	@$(BIN)/python -m cli.lab.disks --cuts $(CUTS) --faults $(FAULTS) --rot $(ROT) --full $(FULL) $(ARGS)

# Tests with node processes of their own take both cores: they run one after another, apart.
test: $(DEV_READY) ## All tests (ARGS="-k name")
	@for run in '-n 2 -m "not processes"' '-m processes'; do \
	  eval $(BIN)/python -m pytest $$run $(ARGS) || [ $$? -eq 5 ] || exit 1; done

lint: $(DEV_READY) ## ruff, mypy --strict, layering contracts
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

SEEDS ?= 100
FIRST ?= 0

SCENARIO ?= consensus

simulate: $(RUN_READY) ## Under virtual time, with faults (SEEDS=, FIRST=, SCENARIO=consensus|adversarial|all|a drill)
	@$(BIN)/python -m simulation run --seeds $(SEEDS) --first $(FIRST) --scenario $(SCENARIO)

mutants: $(RUN_READY) ## Deliberately broken variants, each of which a campaign must catch
	@$(BIN)/python -m simulation mutants

bench: $(DEV_READY) ## Measure beside a peer or a bound (ONLY=simulation|consensus|soak, JSON=file)
	@$(BIN)/python -m bench $(if $(ONLY),--only $(ONLY)) $(if $(JSON),--json $(JSON))

format: $(DEV_READY) ## Rewrite the sources in the project's format
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

lock: $(DEV_READY) ## Resolve the pinned, hashed dependencies anew
	@$(PIP) install uv
	@for n in requirements requirements-dev; do $(BIN)/uv pip compile -q --generate-hashes \
	  --no-emit-index-url --no-header --python-version 3.11 $$n.in -o $$n.lock; done

clean: ## Remove what the targets made
	@rm -rf $(VENV) .reprise .mypy_cache .ruff_cache .pytest_cache

protobuf: ## Generate the message classes from replica/protocol/messages/ic.proto
	@$(PIP) install grpcio-tools==1.85.1
	@cd replica/protocol/messages && ../../../$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. ic.proto
