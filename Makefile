# onecard. `make help` explains every target.

HOST     ?= 127.0.0.1
PORT     ?= 8000
REGISTRY ?= configs/demo.yaml
ARGS     ?=

# The first of these that runs and is new enough; `make PYTHON=/path/to/python ...` names another.
PYTHON   ?= python3.11 python3.12 python3.13 python3
CARD     := $(shell nvidia-smi -L 2>/dev/null | grep -q . && echo yes)

SCHEMA   := configs/registry.schema.json
VENV     := .venv
BIN      := $(VENV)/bin
PIP      := $(BIN)/python -m pip --disable-pip-version-check

# Torch goes first: whatever comes after finds it there and pulls no other build. Without a card it is the CPU
# build where its index can be reached (only torch itself is asked for there); TORCH_CPU_INDEX= leaves it out.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
ifeq ($(CARD),yes)
TORCH    := "torch>=2.11"
EXTRAS   := [cuda]
else
TORCH    := torch==2.13.0 $(if $(TORCH_CPU_INDEX),--no-deps)
EXTRAS   :=
CPU_INDEX := $(TORCH_CPU_INDEX)
endif

# Nobody should have to read pip's warnings to learn that an index can't be reached.
ANSWERS  := $(BIN)/python -c 'import sys, urllib.request as web; web.urlopen(sys.argv[1], timeout=5)'
FAILED   := { echo 'The installation has failed; what pip says is above. Where it can'"'"'t reach a package index: set' \
  'PIP_INDEX_URL to one that can be reached from here (or HTTPS_PROXY), then run make again.' >&2; exit 1; }

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo serve chat plan pull test check lint types schema schema-check format clean

help: ## Say what each target does
	@echo 'usage: make TARGET [HOST=$(HOST)] [PORT=$(PORT)] [REGISTRY=$(REGISTRY)] [ARGS=...]'
	@echo
	@sed -n 's/^\([a-z-]*%\{0,1\}\):[^#]*## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | sed 's/%/NAME/' | \
	  awk -F'|' '{printf "  %-14s %s\n", $$1, $$2}'

demo: REGISTRY = configs/demo.yaml
demo: serve ## From a fresh clone to a chat model and an embedding model that answer on HOST:PORT

serve: $(VENV)/.onecard ## Serve REGISTRY on HOST:PORT (fetches what is missing)
	@$(BIN)/onecard serve $(REGISTRY) --host $(HOST) --port $(PORT) $(ARGS)

chat: $(VENV)/.onecard ## Talk to the language model (in another terminal than `make demo`)
	@$(BIN)/onecard chat --url http://$(HOST):$(PORT) $(ARGS)

plan: $(VENV)/.onecard ## Draw who gets which part of the card
	@$(BIN)/onecard plan $(REGISTRY) $(ARGS)

pull: $(VENV)/.onecard ## Fetch the models of REGISTRY
	@$(BIN)/onecard pull $(REGISTRY)

test: $(VENV)/.dev ## Run the whole test suite (ARGS='-k pool -x' for a part of it)
	$(BIN)/python -m pytest -q --timeout=300 $(ARGS)

check: lint types schema-check ## Everything that CI checks besides the tests

lint: $(VENV)/.dev ## Style and formatting, unchanged files (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## Types (mypy)
	$(BIN)/mypy

format: $(VENV)/.dev ## Format the code and fix what can be fixed (ruff)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schema: $(VENV)/.dev ## Write the registry's JSON schema and the tables of docs/registry.md anew from the specs
	@$(BIN)/python -m onecard.registry.schema >$(SCHEMA).new && mv $(SCHEMA).new $(SCHEMA)
	@$(BIN)/python -m onecard.registry.reference docs/registry.md

schema-check: $(VENV)/.dev ## Is the registry's JSON schema what the specs say?
	@$(BIN)/python -m onecard.registry.schema | diff -u $(SCHEMA) - || \
	  { echo '$(SCHEMA) is not what onecard/registry/spec.py says: run make schema' >&2; exit 1; }

bench-%: $(VENV)/.dev ## Run benchmarks/NAME.py (llm, embeddings, gateway, machine, sharing, sleep, soak, kernels)
	$(BIN)/python benchmarks/$*.py $(ARGS)

clean: ## Remove all that make made here: environment, caches, build output (fetched models stay)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# --- the environment: each file says that its step is done, so a second run does nothing ---

$(VENV)/.made:
	@for python in $(PYTHON); do \
	  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  echo "making $(VENV) with $$($$python --version)"; \
	  $$python -m venv $(VENV) && touch $@ && exit 0; \
	  echo 'That Python has no venv module; on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; \
	done; \
	echo 'onecard needs Python 3.11 or newer. Install one, or name it: make PYTHON=/path/to/python ...' >&2; \
	for python in $(PYTHON); do echo "  $$python is $$($$python --version 2>/dev/null || echo missing)" >&2; done; \
	exit 1

$(VENV)/.torch: $(VENV)/.made
	@echo 'installing PyTorch$(if $(CARD), with CUDA (some gigabytes: this takes minutes), for the CPU (some 200 MB)) ...'
	@if [ -n '$(CPU_INDEX)' ]; then \
	  if $(ANSWERS) $(CPU_INDEX)/torch/ 2>/dev/null; then index='--extra-index-url $(CPU_INDEX)'; \
	  else echo '$(CPU_INDEX) does not answer from here: taking what the package index has'; fi; \
	fi; \
	$(PIP) install $(TORCH) $$index || $(FAILED)
	@touch $@

$(VENV)/.onecard: $(VENV)/.torch pyproject.toml
	@echo 'installing onecard$(EXTRAS) and what it needs: some 60 packages, 60 MB; half a minute without a word ...'
	@$(PIP) install --quiet --editable '.$(EXTRAS)' || $(FAILED)
	@touch $@

$(VENV)/.dev: $(VENV)/.onecard
	@echo 'installing the tools for development: some 30 packages; half a minute without a word ...'
	@$(PIP) install --quiet --editable '.[dev]' || $(FAILED)
	@touch $@
