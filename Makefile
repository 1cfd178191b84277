# Everything that a developer types. `make help` lists it.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
PYTHONS := python3.11 python3.12 python3.10 python3
# TORCH=cpu takes PyTorch's CPU build; other values are backends that uv knows, e.g. cu130, or
# `locked`, the build with a locked hash. The last choice is kept.
TORCH ?= $(shell cat $(VENV)/torch-choice 2>/dev/null || echo locked)
# Further options of the command behind a target, e.g. `make demo ARGS="--seed 7"`.
ARGS ?=
# Processes of tests, each with an Apache Kafka of its own.
JOBS ?= 2
# Folder of KuaiRand-Pure as published, for `replay` and `soak`.
KUAIRAND ?=
# Folder of a finished run, for `triton`.
RUN ?=

LOCKED := constraints/exfm.txt
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH" VIRTUAL_ENV="$(CURDIR)/$(VENV)"
TRITON := .cache/triton
INSTALLED := $(VENV)/.installed-$(TORCH)
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --generate-hashes \
	--no-emit-index-url --no-annotate --custom-compile-command "make constraints"

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' Makefile

.PHONY: install
install: $(INSTALLED) ## Create .venv with the locked packages and this project

.PHONY: demo
demo: $(INSTALLED) jars ## Run the whole loop on a simulated ad market, about four minutes
	@$(BIN)/exfm demo $(ARGS)

.PHONY: test
test: lint jars ## Run every check and every test
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal $(ARGS)

.PHONY: lint
lint: $(INSTALLED) ## Check format, style and types
	@$(BIN)/ruff format --check --quiet . || { echo "run 'make format'" >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy

.PHONY: format
format: $(INSTALLED) ## Format the code and repair what ruff can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.PHONY: replay
replay: $(INSTALLED) jars kuairand ## Replay KuaiRand-Pure at full speed: make replay KUAIRAND=DIR
	@$(BIN)/exfm replay kuairand $(KUAIRAND) $(ARGS)

.PHONY: soak
soak: $(INSTALLED) jars kuairand ## Show the guarantees under kills and bad data: make soak KUAIRAND=DIR
	@$(BIN)/python -m benchmarks.soak $(KUAIRAND) $(ARGS)

.PHONY: soak-das
soak-das: $(INSTALLED) jars ## Show what the join guarantees: a hundred kills, outages, damaged bytes
	@$(BIN)/python -m benchmarks.das_soak $(ARGS)

.PHONY: triton
triton: $(INSTALLED) finished-run $(TRITON)/bin/python ## Score a run's snapshots with tritonclient: make triton RUN=runs/NAME
	@$(BIN)/python -m benchmarks.triton "$(RUN)" $(TRITON)/bin/python

# tritonclient caps protobuf, so it has an environment of its own.
$(TRITON)/bin/python: | $(BIN)/uv
	@$(BIN)/uv venv --quiet --python $(BIN)/python $(TRITON)
	@$(BIN)/uv pip install --quiet --python $@ 'tritonclient[http]==2.*'

.PHONY: jars
jars: $(INSTALLED) ## Fetch the locked jars of Apache Kafka
	@$(BIN)/python -m flows.kafka.jars

.PHONY: jars-lock
jars-lock: $(INSTALLED) ## Resolve jgo.toml anew into jgo.lock.toml
	@$(BIN)/python -m flows.kafka.jars --lock

.PHONY: constraints
constraints: $(BIN)/uv ## Lock the newest allowed packages for Python 3.10 to 3.12, with hashes
	@$(COMPILE) --upgrade --group dev --output-file $(LOCKED) pyproject.toml
	@$(COMPILE) --upgrade --group pyproject.toml:serve --constraints $(LOCKED) \
		--output-file constraints/serve.txt
	@$(COMPILE) --upgrade --constraints $(LOCKED) --output-file constraints/train.txt pyproject.toml
	@echo uv | $(COMPILE) --upgrade --output-file constraints/uv.txt -

.PHONY: clean
clean: ## Remove .venv and every cache; runs/ stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: finished-run
finished-run:
	@test -f "$(RUN)/config.toml" || { echo "RUN must be the folder of a run, got '$(RUN)'" >&2; exit 2; }

.PHONY: kuairand
kuairand:
	@test -d "$(KUAIRAND)" || { \
		echo "KUAIRAND must be the folder of KuaiRand-Pure, got '$(KUAIRAND)'" >&2; exit 2; }

$(BIN)/uv: constraints/uv.txt
	@for python in $(PYTHON) $(PYTHONS); do \
		$$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
			2>/dev/null || continue; \
		echo "Creating $(VENV) with $$($$python --version)"; \
		$$python -m venv $(VENV) && exec $(BIN)/python -m pip --quiet --disable-pip-version-check \
			install --require-hashes --requirement constraints/uv.txt; \
	done; \
	echo "Python 3.10, 3.11 or 3.12 with its venv module must be on the PATH; none of these is:" \
		"$(PYTHON) $(PYTHONS)" >&2; exit 1
	@touch $@

# A changed choice of TORCH must replace a torch of the same version. uv's progress bars are wanted:
# the first download takes minutes on a slow line.
$(INSTALLED): $(BIN)/uv pyproject.toml $(LOCKED)
	@echo "Installing the locked packages (torch: $(TORCH))"
	@grep -qsvx '$(TORCH)' $(VENV)/torch-choice && replace="--reinstall-package torch"; \
		$(IN_VENV) constraints/install.sh $(LOCKED) $(TORCH) $$replace
	@$(IN_VENV) uv pip install --quiet --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.installed-*
	@echo $(TORCH) > $(VENV)/torch-choice
	@touch $@
