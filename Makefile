# Needs Python 3.11 or later with headers and venv, make, and a C compiler (for pytricia).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-services check bench torture docs clean

demo: $(VENV)/installed
	$(BIN)/netsage-pipeline demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --ignore tests/services

# With what there is of rabbitmq-server, nfdump and Elasticsearch; what is not there is skipped.
test-services: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/services

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Kills workers while flows are published: make torture KILLS=200 FLOWS=1000000 SEED=7
torture: $(VENV)/installed
	$(BIN)/python -m tests.services.torture --kills $(or $(KILLS),200) --flows $(or $(FLOWS),1000000) $(if $(SEED),--seed $(SEED))

bench: $(VENV)/installed
	$(BIN)/python benchmarks/chain.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/ledger.py
	$(BIN)/python benchmarks/queues.py
	$(BIN)/python benchmarks/sink.py

docs: $(VENV)/installed
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) dist demo-output

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
