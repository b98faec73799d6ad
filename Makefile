# Needs Python 3.11 or later with headers and venv, make, and a C compiler (for pytricia).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-services check bench torture docs secrets up down clean

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

# Kills workers while flows are published, and importers while files come: make torture KILLS=200 FLOWS=1000000 IMPORT_KILLS=50 SEED=7
torture: $(VENV)/installed
	$(BIN)/python -m tests.services.torture --kills $(or $(KILLS),200) --flows $(or $(FLOWS),1000000) $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.services.torture_import --kills $(or $(IMPORT_KILLS),50) $(if $(SEED),--seed $(SEED))

bench: $(VENV)/installed
	$(BIN)/python benchmarks/chain.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/ledger.py
	$(BIN)/python benchmarks/queues.py
	$(BIN)/python benchmarks/sink.py
	$(BIN)/python benchmarks/importer.py

docs: $(VENV)/installed
	$(BIN)/python docs/generate.py
	$(BIN)/python grafana/generate.py

# Passwords that nobody guesses, each in a file; those that are there stay. The directory is for its owner, because containers have other uids.
secrets:
	@mkdir -p -m 0700 secrets; cd secrets; umask 022; \
	new() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }; \
	test -e rabbitmq_user || { word=$$(new); \
	    printf 'default_user = netsage\ndefault_pass = %s\n' "$$word" > rabbitmq_user; \
	    printf 'amqp://netsage:%s@rabbitmq:5672/\n' "$$word" > rabbitmq_url; }; \
	for each in elasticsearch_password grafana_password; do test -e $$each || new > $$each; done; \
	test -e maxmind_license_key || : > maxmind_license_key

# A whole site on this machine with the flows and the tables of the demo; needs Docker. Dashboards: http://127.0.0.1:3000, user admin.
SITE := docker compose --profile elasticsearch --profile grafana --profile prometheus --profile demo
up: secrets
	NETSAGE_LOOKUPS_DIRECTORY=./demo/tables NETSAGE_SENSOR=$${NETSAGE_SENSOR:-demo} $(SITE) up --build --detach --wait
	@echo "Grafana: http://127.0.0.1:3000, user admin, password in secrets/grafana_password"

down:
	$(SITE) down

clean:
	rm -rf $(VENV) dist demo-output

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
