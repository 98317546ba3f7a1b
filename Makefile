# Forward-OFA: `make` shows what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
DATA ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.9.9
RUNTIME := $(VENV)/.runtime-installed
TRAINER := $(VENV)/.trainer-installed
DEV := $(VENV)/.dev-installed

.PHONY: help
help: ## show this
	@echo 'Forward-OFA: a recommendation network made for each phone.'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name text; \
	  do printf '  make %-14s %s\n' "$$name" "$$text"; done
	@echo
	@echo '  PYTHON=python3.12 chooses the interpreter (3.11 or newer) that makes $(VENV)/.'

.PHONY: demo
demo: $(RUNTIME) ## the whole thing in minutes; DATA=path or name of a log, ARGS=--help for more
	@$(BIN)/forward-ofa demo $(if $(DATA),--data '$(DATA)') $(ARGS)

.PHONY: serve
serve: $(RUNTIME) ## serve the version that the last demo made, until Ctrl-C; ARGS=--help for more
	@$(BIN)/forward-ofa serve --metrics 127.0.0.1:9464 $(ARGS)

.PHONY: trainer
trainer: $(TRAINER) ## training as a service: Redis, gRPC, beat, worker, until Ctrl-C; ARGS=--help
	@$(BIN)/forward-ofa trainer up $(ARGS)

.PHONY: image
image: ## the container image, with docker, buildah or podman; ARGS='--base local' without a registry
	@deploy/image/build $(ARGS)

.PHONY: sbom
sbom: image ## what is in the image, as CycloneDX: dist/sbom.cdx.json
	@deploy/image/sbom dist/sbom.cdx.json

.PHONY: bench
bench: $(DEV) ## serving speed beside four peers and two floors, 20 minutes; ARGS=--quick: 2
	@$(BIN)/python -m benchmarks.serving $(ARGS)

.PHONY: soak
soak: $(DEV) ## 15 minutes at 80 % load with a real Redis: nothing fails, nothing grows
	@$(BIN)/python -m benchmarks.serving.soak $(ARGS)

.PHONY: overload
overload: $(DEV) ## 5 times the capacity: who is accepted waits little, the rest is refused at once
	@$(BIN)/python -m benchmarks.serving.overload $(ARGS)

.PHONY: faults
faults: $(DEV) ## breaks the split system under load, 4 minutes: what clients notice; ARGS=--only Redis: some
	@$(BIN)/python -m tests.faults $(ARGS)

.PHONY: paper
paper: $(DEV) ## the paper's tables and figures, ours beside them: hours; ARGS=--list shows what, --help more
	@$(BIN)/python -m experiments.kdd25 $(ARGS)

.PHONY: paper-quick
paper-quick: $(DEV) ## the same on a tiny log with one epoch each: minutes, to see that all of it works
	@$(BIN)/python -m experiments.kdd25 --quick $(ARGS)

.PHONY: deploy-check
deploy-check: $(DEV) ## what deploy/ builds, from YAML to pods that serve a device; ARGS=--help
	@$(BIN)/python -m deploy.check $(ARGS)

.PHONY: test
test: checks ## every check: lint, types, import rules, protos, tests (but the slow ones)
	$(BIN)/pytest -m 'not slow' $(ARGS)

.PHONY: test-all
test-all: checks ## as `make test`, with the slow tests
	$(BIN)/pytest $(ARGS)

.PHONY: test-failed
test-failed: checks ## what failed in the last run, once more and alone
	$(BIN)/pytest --last-failed --last-failed-no-failures none $(ARGS)

.PHONY: checks
checks: lint types imports protos-check ## what `make test` checks before it runs a test

.PHONY: lint
lint: $(DEV) ## ruff (rules and format) and buf
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/buf lint protos

.PHONY: types
types: $(DEV) ## mypy --strict on our packages
	$(BIN)/mypy

.PHONY: imports
imports: $(DEV) ## who may import whom (.importlinter)
	$(BIN)/lint-imports

.PHONY: protos
protos: $(DEV) ## regenerate forward_ofa_api/ from protos/
	scripts/protos.sh write

.PHONY: protos-check
protos-check: $(DEV) ## fail if forward_ofa_api/ is not what protos/ generates
	scripts/protos.sh check

.PHONY: format
format: $(DEV) ## let ruff and buf repair what they can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/buf format --write protos

.PHONY: dashboards
dashboards: $(DEV) ## write deploy/monitoring/grafana/dashboards/ from boards.py
	$(BIN)/python -m deploy.monitoring.dashboards

.PHONY: watch-live
watch-live: $(DEV) ## the whole system under load, watched by Prometheus, and pictures of its dashboards
	$(BIN)/python -m deploy.monitoring.live $(ARGS)

.PHONY: requirements
requirements: $(DEV) ## pin anew what requirements/*.in leave open
	for name in runtime s3 tracing trainer dev; do \
	  $(BIN)/uv pip compile --quiet --no-annotate --no-header --torch-backend=cpu \
	    "requirements/$$name.in" | sed 's/+cpu$$//' > "requirements/$$name.tmp"; \
	  mv "requirements/$$name.tmp" "requirements/$$name.txt"; \
	done

.PHONY: clean
clean: ## remove what was built and cached; .venv/, runs/ and downloaded data stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(RUNTIME): requirements/runtime.txt pyproject.toml scripts/install.sh
	@scripts/install.sh '$(PYTHON)' $(VENV) $(UV_VERSION) requirements/runtime.txt
	@touch $@

$(TRAINER): requirements/trainer.txt pyproject.toml scripts/install.sh
	@scripts/install.sh '$(PYTHON)' $(VENV) $(UV_VERSION) requirements/trainer.txt
	@touch $(RUNTIME) $@

$(DEV): requirements/dev.txt requirements/runtime.txt pyproject.toml scripts/install.sh
	@scripts/install.sh '$(PYTHON)' $(VENV) $(UV_VERSION) requirements/dev.txt
	@touch $(RUNTIME) $(TRAINER) $@
