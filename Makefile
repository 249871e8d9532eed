# `make demo` and `make test` need make and Python 3.11 or newer; the rest is installed into .venv.

VENV  ?= .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := .venv-peers

# The first Python that is new enough. A name that is only a shim fails when it is called, and is passed over.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	if $$python -c '$(NEW_ENOUGH)' 2>/dev/null; then echo $$python; break; fi; done)

# On a busy machine, threads that spin while they wait make a training several times as long.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help venv demo test lint bench peers prove mutants clean

help:
	@echo 'make demo    install, then train, tune and try a tiny model on this machine (some minutes)'
	@echo 'make test    install, then run every check and test'
	@echo 'make lint    ruff and mypy --strict'
	@echo 'make bench   measure imports, lists, creates, data preparation, plans and, beside other trainers, training'
	@echo 'make peers   install those other trainers (TRL) into .venv-peers, for make bench alone'
	@echo 'make prove   the long proofs: kills by the dozen, gigabytes of data, 20,000 requests; writes benchmarks/proof.json'
	@echo 'make mutants   plant known faults one by one, and show that a test fails for each'
	@echo 'make venv    install only      make clean    remove .venv, .demo and caches'

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'make: no Python 3.11 or newer is on the PATH; install one, or: make PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { echo 'make: $(PYTHON) is older than Python 3.11' >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo 'make: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python examples/demo.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

# Those that train use threads of their own, and are therefore two at a time at most. In tests/cluster each of the two
# has a Ray cluster of its own, parts of which are killed.
test: lint
	$(BIN)/pytest tests/unit tests/contract -n auto --maxprocesses 4 --dist loadscope
	$(BIN)/pytest tests --ignore tests/unit --ignore tests/contract --ignore tests/cluster -n auto --maxprocesses 2 --dist loadscope --no-loadscope-reorder
	$(BIN)/pytest tests/cluster -n 2 --dist loadfile --no-loadscope-reorder

# In an environment of their own: what they need must never decide what ftctl runs with.
peers: $(PEERS)/.installed

$(PEERS)/.installed: $(STAMP) benchmarks/peers/requirements.txt constraints.txt
	@test -x $(PEERS)/bin/python || $(BIN)/python -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r benchmarks/peers/requirements.txt
	@touch $@

bench: $(STAMP) $(PEERS)/.installed
	$(BIN)/python benchmarks/bench.py

prove: $(STAMP)
	$(BIN)/python benchmarks/prove.py
	$(BIN)/python benchmarks/prove_server.py
	$(BIN)/python benchmarks/prove_ray.py

mutants: $(STAMP)
	$(BIN)/python tests/mutants/run.py

clean:
	rm -rf $(VENV) $(PEERS) .demo build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
