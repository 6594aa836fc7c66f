# CFO Sync. `make` lists what there is to do.
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help venv demo test test-containers faults bench check audit sbom dist up down status clean lock manifests

python = .venv/bin/python
# The first interpreter that is new enough.
find_python = for each in python3 python3.14 python3.13 python3.12 python3.11; do \
	if "$$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo "$$each"; exit; fi; done

help:
	@echo 'make demo    play the whole story on a private stack: PostgreSQL, Kafka, Debezium, no Docker'
	@echo 'make test    run all tests (ARGS="-k name" passes arguments to pytest)'
	@echo 'make test-containers  run the end-to-end tests again, on containers (needs a Docker engine)'
	@echo 'make faults  the fault campaign and the whole crash matrix: about an hour; reports in docs/evidence'
	@echo 'make bench   measure it beside its alternatives and its limit: about 45 minutes; docs/benchmarks.md'
	@echo 'make check   lint, types, unit tests and the audit'
	@echo 'make audit   ask for known vulnerabilities of the Python packages, where that can be asked'
	@echo 'make sbom    write dist/sbom.json (CycloneDX)'
	@echo 'make dist    build the wheel and the source archive, into dist'
	@echo 'make up      start a stack in the background; its settings: .local/env'
	@echo 'make status  what of it runs'
	@echo 'make down    stop it; the data stays'
	@echo 'make clean   stop it and delete its data'
	@echo 'make manifests  write the generated manifests of deploy/k8s'
	@echo 'make lock    resolve the dependencies anew (needs uv)'

venv:
	@python=$$($(find_python)); \
	if [ -z "$$python" ]; then echo 'error: Python 3.11 or newer is needed (python3, python3.13, ...)' >&2; exit 1; fi; \
	exec "$$python" -I deploy/local/virtualenv.py

demo: venv
	@exec $(python) -m deploy.local demo

# On the stack of deploy/local, whatever engine is there: it is quick and needs no images.
test: venv
	@CFO_SYNC_TEST_STACK=$${CFO_SYNC_TEST_STACK:-local} exec $(python) -m pytest -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(ARGS)

# In one process: each would have a set of containers of its own.
test-containers: venv
	@CFO_SYNC_TEST_STACK=containers exec $(python) -m pytest tests/e2e $(ARGS)

# Its seed, printed with every schedule; `make faults SEED=7` draws another one.
SEED ?= 1
crash_matrix = docs/evidence/faults-crash-matrix.json

faults: venv
	@rm -f $(crash_matrix)
	CFO_SYNC_TEST_LONG=1 CFO_SYNC_TEST_REPORT=$(crash_matrix) $(python) -m pytest tests/faults/test_crash_matrix.py
	$(python) -m tests.faults --layout one-database --seed $(SEED) --minutes 30 --survivor
	$(python) -m tests.faults --layout two-databases --seed $(SEED) --minutes 15 --survivor

bench: venv
	@exec $(python) -m tests.bench $(ARGS)

check: venv
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
	$(python) -m pytest tests/unit $(ARGS)
	@$(MAKE) audit

audit: venv
	@exec $(python) -m deploy.supply audit

sbom: venv
	@exec $(python) -m deploy.supply sbom

dist: venv
	@exec $(python) -m hatchling build -d dist

up: venv
	@exec $(python) -m deploy.local up

down: venv
	@exec $(python) -m deploy.local down

status: venv
	@exec $(python) -m deploy.local status

clean: venv
	@exec $(python) -m deploy.local clean

manifests: venv
	@exec $(python) -m deploy.k8s

UV ?= uv
compile = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate

lock:
	$(compile) pyproject.toml -o deploy/requirements/runtime.txt
	$(compile) --extra dev --extra stack pyproject.toml deploy/requirements/build.in -o deploy/requirements/dev.txt
	$(compile) deploy/requirements/build.in --constraint deploy/requirements/dev.txt -o deploy/requirements/build.txt
	$(compile) deploy/requirements/tools.in -o deploy/requirements/tools.txt
	$(compile) -c deploy/requirements/dev.txt deploy/requirements/manifests.in -o deploy/requirements/manifests.txt
	@$(MAKE) venv
	@exec $(python) -m deploy.local lock
