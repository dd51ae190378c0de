# Two commands do everything on a fresh machine with Python 3.11 or newer:
#   make demo   a private federation of four synthetic hospitals, results in runs/demo/
#   make test   linters, type checker and tests
SHELL := /bin/bash
BIN := .venv/bin
CHROMIUM ?= /usr/bin/chromium
STAMP := .venv/.installed
NEW_ENOUGH := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export HF_HUB_OFFLINE := 1

.PHONY: setup demo test quick lint types unit slow e2e e2e-web chaos bench clean

setup: $(STAMP)

# torch first and pinned: anything that asks for plain torch would pull its newest build.
$(STAMP): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.11 or newer with venv was found. Install one (Debian: apt-get" \
			"install python3 python3-venv), or say where it is: make PYTHON=/path/to/python3"; \
		exit 1; fi
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	@$(BIN)/lorica demo --out runs/demo

test: setup
	@$(MAKE) --no-print-directory -j2 lint types
	@$(MAKE) --no-print-directory unit

# What a change touches, in two minutes: lint, types, the tests of its rooms. BASE=HEAD: since the last
# commit instead of since main.
quick: setup lint types
	@tests=$$($(BIN)/python tests/quick.py $(BASE)) && echo "tests: $${tests:-none}" | tr '\n' ' ' && echo && \
		if [ -n "$$tests" ]; then $(BIN)/python -m pytest -q -n 3 --dist worksteal -m "not slow" $$tests; \
		status=$$?; [ $$status = 5 ] || exit $$status; fi  # 5: none but slow ones

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@PYTHONPATH=.types $(BIN)/lint-imports --no-logo --cache-dir .venv/.import-linter >.venv/.imports 2>&1 \
		|| { cat .venv/.imports; exit 1; }

types: setup
	@$(BIN)/mypy -p lorica

# Three workers for two cores: many tests wait for processes of their own.
unit: setup
	@$(BIN)/python -m pytest -q -n 3 --dist worksteal -m "not slow"

# Real training to an accuracy, and Flower's own simulation engine: minutes. Whole federations of
# real processes have commands of their own: make e2e, make chaos.
slow: setup
	@$(BIN)/python -m pytest -q -n 2 --dist loadgroup -m "slow and not e2e and not chaos and not web"

# Every page of the monitor in a real Chromium, during a live simulation; pictures in docs/screens/.
e2e-web: setup
	@if [ ! -x $(CHROMIUM) ]; then \
		echo "make e2e-web needs Chromium (Debian: apt-get install chromium); or say where it is:" \
			"make e2e-web CHROMIUM=/path/to/chromium"; exit 1; fi
	@LORICA_CHROMIUM=$(CHROMIUM) LORICA_SCREENS=$(CURDIR)/docs/screens \
		$(BIN)/python -m pytest -q -m web tests/server/monitor/test_in_browser.py

# A real federation: coordinator and two sites, each on a network namespace of its own, and the compose
# files' services without an engine. Needs root and Linux; prints what it measures.
e2e: setup
	@if [ "$$(id -u)" != 0 ] || ! command -v ip >/dev/null; then \
		echo "make e2e makes network namespaces: run it as root, with iproute2 installed"; exit 1; fi
	@$(BIN)/python -m pytest -q -s -m e2e tests/e2e

# Kills at random over a run of 20 rounds, then each kind of crash alone, cut cables and full disks (as
# root); KILLS=20 make chaos for fewer, SEED=1 for others.
chaos: setup
	@LORICA_CHAOS_KILLS=$(or $(KILLS),100) LORICA_CHAOS_SEED=$(or $(SEED),0) \
		$(BIN)/python -m pytest -q -s -m chaos tests/e2e

# make bench NAME=dp-step
bench: setup
	@$(BIN)/python benchmarks/run.py $(NAME)

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
