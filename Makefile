# Two commands matter: `make demo` shows gpuctl at work on this computer, `make test` checks it.
# Both first make .venv (scripts/bootstrap.sh), which is quick when nothing changed.
# Written for GNU make 3.81, which is what macOS ships.

BIN := .venv/bin
DEMO := examples/quickstart
DEMO_HOME := $(CURDIR)/.make/demo-home
PYTEST_FLAGS :=
# Where Terraform finds its providers; /opt/tf-plugins where there is one.
export TF_PLUGIN_DIR ?= $(wildcard /opt/tf-plugins)
SEED :=
SHARD := 1/1

.DEFAULT_GOAL := help
.PHONY: help demo test lint test-slow conformance infra-test infra-docs clouds faults faults-full bench clean \
	installed-run installed-dev

help:
	@echo "make demo       a real training on this computer, its machine taken away in the middle"
	@echo "make test       lint and all quick tests"
	@echo "make lint       ruff and mypy"
	@echo "make test-slow  the tests that take minutes"
	@echo "make conformance  the emulated clouds against the vendors' own clients"
	@echo "make infra-test  Terraform's modules: checked, and applied to the emulated AWS"
	@echo "make infra-docs  the tables in their READMEs, made anew"
	@echo "make clouds     emulated clouds on this computer, to rehearse on"
	@echo "make faults     kill -9 at every point, on every emulated cloud; an hour"
	@echo "make faults-full  each point with each ending and fault: SHARD=1/8; goes on where it was"
	@echo "make bench      the benchmarks"
	@echo "make clean      remove what can be made again, except .venv"

# The exit code of `gpuctl run` is 0 only when the run succeeded; the recipe stops at anything else.
demo: installed-run
	@rm -rf "$(DEMO)/artifacts"
	GPUCTL_HOME="$(DEMO_HOME)" $(BIN)/gpuctl run $(DEMO)/train.yaml --provider local \
		--rehearse-interruption 8s --yes
	@test -n "$$(find "$(DEMO)/artifacts" -name metrics.json)" || \
		{ echo "demo: the run succeeded but $(DEMO)/artifacts has no metrics.json" >&2; exit 1; }
	GPUCTL_HOME="$(DEMO_HOME)" $(BIN)/gpuctl audit

test: lint
	$(BIN)/pytest -n 2 -m "not slow and not conformance" $(PYTEST_FLAGS)

lint: installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slow: installed-dev
	HYPOTHESIS_PROFILE=thorough $(BIN)/pytest -m "slow and not conformance" $(PYTEST_FLAGS)

# The emulated clouds against the vendors' own clients; makes environments for them below .make/.
conformance: installed-dev
	$(BIN)/pytest -m conformance $(PYTEST_FLAGS)

# Terraform's modules: format, validate, test, and apply to the emulated AWS. The plugins come from the
# folder TF_PLUGIN_DIR; what is missing is skipped with a word.
infra-test: installed-dev
	$(BIN)/pytest -n 2 tests/infra $(PYTEST_FLAGS)

infra-docs: installed-dev
	$(BIN)/python scripts/infra_docs.py

# Emulated clouds to try things on: prints what to export, and runs until Ctrl-C.
clouds: installed-dev
	@$(BIN)/python -m tests.clouds

# The crash matrix: every point once, paired by a seed that is printed (SEED=7 repeats one); then
# random sequences. `python -m tests.faults --only NAME` plays one case again.
faults: installed-dev
	FAULTS_SEQUENCES=200 $(BIN)/pytest -n 0 -q tests/faults/test_sequences.py
	$(BIN)/python -m tests.faults --write $(if $(SEED),--seed $(SEED)) $(FAULTS_FLAGS)

# The whole product; many hours. Results are kept in .make/faults/full.jsonl, share by share.
faults-full: installed-dev
	FAULTS_SEQUENCES=2000 $(BIN)/pytest -n 0 -q tests/faults/test_sequences.py
	$(BIN)/python -m tests.faults --full --shard $(SHARD) --minutes 100000 $(FAULTS_FLAGS)

bench: installed-dev
	@set -e; for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

clean:
	@if [ -n "$$(ls -A "$(DEMO_HOME)/local/machines" 2>/dev/null)" ]; then \
		echo "clean: a machine of the demo is still there. End it first:" >&2; \
		echo "  GPUCTL_HOME=$(DEMO_HOME) $(BIN)/gpuctl terminate --all --yes" >&2; exit 1; fi
	rm -rf .make build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis "$(DEMO)/artifacts"
	find . -name .venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

installed-run:
	@sh scripts/bootstrap.sh run

installed-dev:
	@sh scripts/bootstrap.sh dev
