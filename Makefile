# certmill: every command a newcomer needs. `make` alone prints them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export PYTHONUNBUFFERED = 1

.DEFAULT_GOAL := help
.PHONY: help run test check format lock bench bench-ocsp bench-issue bench-signer load fuzz soak soak-batch crash clean

help: ## print this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.run ## install what is needed, initialise ./var once, serve until Ctrl-C
	@deploy/bootstrap softhsm
	@exec $(BIN)/certmill serve

test: $(VENV)/.dev ## install what is needed, run every test with the coverage gates
	@deploy/bootstrap softhsm gcc guide java nss postgresql strace
	@deploy/coverage-gate $(BIN)/python

check: $(VENV)/.dev ## format, lint, types, import contracts, file sizes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	@deploy/file-sizes

format: $(VENV)/.dev ## let ruff lay out and mend the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: bench-ocsp bench-issue bench-signer ## every benchmark

bench-ocsp: $(VENV)/.run ## OCSP worker against nginx (static, return) and aiohttp, ratios
	@deploy/bootstrap softhsm wrk nginx
	@$(BIN)/python -m loadtests.bench_ocsp

bench-issue: $(VENV)/.run ## certificates/s in bulk and by single calls against the bare token and a bare loop
	@deploy/bootstrap softhsm
	@$(BIN)/python -m loadtests.bench_issue

bench-signer: $(VENV)/.run ## the signer pool against the bare token: lanes, batches, urgent work; ratios and a plot
	@deploy/bootstrap softhsm
	@$(BIN)/python -m loadtests.bench_signer

soak: $(VENV)/.dev ## ten minutes of random HSM faults under load: nothing lost, nothing leaked
	@deploy/bootstrap softhsm gcc
	@$(BIN)/python -m loadtests.soak_signer --minutes 10

crash: $(VENV)/.dev ## kill the authority at every step and between fsyncs under load: nothing lost, nothing doubled
	@deploy/bootstrap softhsm strace postgresql
	@$(BIN)/python -m loadtests.crash_harness --database sqlite
	@$(BIN)/python -m loadtests.crash_harness --database postgresql

fuzz: $(VENV)/.dev ## 120,000 hostile requests for certificates and batches: only 4xx, no defect, memory flat
	@deploy/bootstrap softhsm
	@$(BIN)/python -m loadtests.fuzz_input

soak-batch: $(VENV)/.dev ## a batch of 100,000 rows, kill -9 of the authority three times: one certificate for each row
	@deploy/bootstrap softhsm
	@$(BIN)/python -m loadtests.soak_batch

load: $(VENV)/.dev ## Locust, headless, against a certmill of its own: issuing and OCSP
	@deploy/bootstrap softhsm
	@$(BIN)/python -m loadtests.run_load

lock: $(VENV)/.dev ## resolve the dependencies anew (needs uv on the PATH)
	uv pip compile -q --upgrade pyproject.toml --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header -o requirements/run.lock
	uv pip compile -q --upgrade pyproject.toml --extra dev --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header -c requirements/run.lock -o requirements/dev.lock

clean: ## remove the environment and build output (never ./var: it holds keys)
	rm -rf $(VENV) build

$(VENV)/.run: requirements/run.lock pyproject.toml deploy/bootstrap
	@PYTHON=$(PYTHON) deploy/bootstrap venv $(VENV) requirements/run.lock && touch $@

$(VENV)/.dev: requirements/dev.lock pyproject.toml deploy/bootstrap
	@PYTHON=$(PYTHON) deploy/bootstrap venv $(VENV) requirements/dev.lock && touch $@ $(VENV)/.run
