# `make` alone lists what there is.
.DEFAULT_GOAL := help
.SILENT:
.PHONY: help up down logs status doctor image bench-image sbom run test test-vm check \
  check-settings format lock audit fuzz soak recover bench accuracy measure clean

PYTHON ?= python3
# What a running server is asked at; `run` and `up` leave it to the settings unless PORT is given.
KEPT_PORT = $(shell sed -n 's/^REEF_PORT=["'\'']*\([0-9]*\).*/\1/p' .env 2>/dev/null | tail -n 1)
ASK = http://127.0.0.1:$(or $(PORT),$(REEF_PORT),$(KEPT_PORT),5000)
OTHER_PORT = $(if $(PORT),REEF_PORT=$(PORT))
# The names of what stands on make's command line.
CHOSEN = $(foreach name,$(.VARIABLES),$(if $(findstring command line,$(origin $(name))),$(name)))
VENV := .venv
BIN := $(VENV)/bin
TESTS ?= # all, in the order of pyproject.toml: the fast layers first

help: ## List the targets.
	grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

up: ## Build the container image, start it and wait until it is ready. PORT=5000 and any setting stay
	$(OTHER_PORT) scripts/appliance.sh up $(patsubst PORT,REEF_PORT,$(CHOSEN))

down logs status image bench-image:
	scripts/appliance.sh $@

down: ## Stop the container; its models and logs stay.
logs: ## Follow the container's log.
status: ## How the container is, and what is wrong with it.
doctor: ## What this computer lacks, and why an Edge TPU doesn't work.
	scripts/appliance.sh doctor || [ $$? -eq 10 ] # mere warnings
image: ## Build the container image, from Debian's archive where no registry answers.
bench-image: ## Build the benchmark's image, for docker compose run --rm bench --mode quick

run: $(VENV)/run ## Serve on this machine, in the foreground. PORT=5000
	$(OTHER_PORT) exec $(BIN)/python -m app serve

check-settings: $(VENV)/run ## Check what make run would start with: settings, models, port. PORT=5000
	$(OTHER_PORT) exec $(BIN)/python -m app check

test: $(VENV)/dev ## Run every test, the fast ones first. TESTS=tests/unit for some
	$(BIN)/python -m pytest $(TESTS)

test-vm: $(VENV)/dev ## Test the host's setup in a virtual machine, under QEMU. DRIVER_SOURCE=folder WHICH="not service"
	DRIVER_SOURCE=$(DRIVER_SOURCE) $(BIN)/python -m pytest --durations=12 -m "$(WHICH)" tests/vm

check: $(VENV)/dev ## Check format, lint, types, shell scripts and workflows.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/shellcheck -x .ci/run scripts/*.sh host-setup/host-setup.sh tests/vm/*.sh tests/host/stubs/*
	$(BIN)/hadolint --config .hadolint.yaml Dockerfile
	$(BIN)/zizmor --offline --quiet .github
	! command -v actionlint >/dev/null || actionlint

format: $(VENV)/dev ## Format the code and mend what the linter can mend.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(VENV)/dev ## Lock requirements/*.in with hashes. UPGRADE=--upgrade takes the newest
	for name in $(basename $(notdir $(wildcard requirements/*.in))); do \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	    --no-header $(UPGRADE) --output-file requirements/$$name.txt requirements/$$name.in; \
	done

audit: .venv-audit/ready ## Ask for known vulnerabilities in the locked packages; needs that service.
	.venv-audit/bin/pip-audit --require-hashes --disable-pip --requirement requirements/run.txt

fuzz: .venv-fuzz/ready ## Hostile input. WHAT=pictures, requests, api or decoder; the first three unless given
	for what in $(or $(WHAT),pictures requests api); do \
	  .venv-fuzz/bin/python -m tests.fuzz.$$what || exit 1; \
	done

soak: $(VENV)/dev ## Good, bad, slow and aborting clients, and devices that are killed. MINUTES=30
	$(BIN)/python -m bench.soak --minutes $(or $(MINUTES),30)

recover: $(VENV)/dev ## How soon service returns after each kind of fault. TIMES=50
	$(BIN)/python -m bench.recover --times $(or $(TIMES),50)

sbom: ## What is in the image: build/sbom.cdx.json, and its licences: build/licenses/
	scripts/appliance.sh sbom

# What the benchmark ends with is in make's last line, `Error N`; make itself ends with 2 then.
bench: $(VENV)/bench ## Measure a running server. PORT=5000 ARGS="--mode quick --url http://box:5000"; ARGS=--help
	BENCH_URL="$${BENCH_URL:-$(ASK)}" $(BIN)/python bench/benchmark.py $(ARGS)

accuracy: $(VENV)/dev ## Mean average precision through a running server. DATA=folder PORT=5000
	test -n "$(DATA)" || { echo 'make accuracy DATA=folder: which has instances.json and images/' >&2; exit 2; }
	$(BIN)/python -m bench.accuracy --url $(ASK) --data $(DATA)

measure: $(VENV)/dev ## Speed and memory, against their targets. WHAT=container for the image's
	$(BIN)/python -m bench.measure $(or $(WHAT),all)

clean: ## Remove what the other targets made.
	rm -rf $(VENV) .venv-* .mypy_cache .pytest_cache .ruff_cache .hypothesis build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A virtual environment with the locked dependencies; made again when the lock changes.
$(VENV)/bin/python:
	command -v $(PYTHON) >/dev/null || \
	  { echo 'reef: there is no $(PYTHON) here; install it (Debian and Ubuntu: apt install python3 python3-venv)' >&2; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Reef needs Python 3.11 or newer; name one: make run PYTHON=python3.12' >&2; exit 1; }
	$(PYTHON) scripts/environment.py make $(VENV)

# Tools that have an environment of their own, so that they can't change what is tested.
.venv-%/ready: requirements/%.txt | $(VENV)/bin/python
	$(BIN)/python scripts/environment.py make .venv-$*
	.venv-$*/bin/python scripts/environment.py install $<
	touch $@

# Where its Python has gone, as after an upgrade of the system, what was installed counts for nothing.
GONE := $(if $(shell test -x $(BIN)/python && echo there),,python-is-gone)
.PHONY: python-is-gone
python-is-gone: ;

$(VENV)/run $(VENV)/bench $(VENV)/dev: $(VENV)/%: requirements/%.txt $(GONE) | $(VENV)/bin/python
	echo 'Installing requirements/$*.txt into $(VENV) ...'
	$(BIN)/python scripts/environment.py install $<
	touch $@
