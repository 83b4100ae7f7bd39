# What a contributor runs. `make run` and `make test` set up by themselves.
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.ready

.PHONY: help run setup fmt lint type test unit guest testhost testhost-shell bench docs lock clean

help:
	@printf '%s\n' 'make run    boot a Debian kernel as a domain, with its console in front of you' \
	  'make test   everything: lint, types, unit tests, guest tests' \
	  'make unit   the tests that boot nothing (seconds)' \
	  'make fmt lint type bench docs lock clean'

run: $(STAMP)
	@$(VENV)/bin/python scripts/demo.py

setup: $(STAMP)

# System packages, uv, and the locked Python packages; does nothing when all is there.
$(STAMP): pyproject.toml requirements/dev.txt scripts/setup
	@scripts/setup

fmt: $(STAMP)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

lint: $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports --no-cache

type: $(STAMP)
	$(VENV)/bin/mypy

unit: $(STAMP)
	$(VENV)/bin/pytest tests/unit -n 2

guest: $(STAMP)
	$(VENV)/bin/pytest tests/guest

# In the test host a busy machine's timeouts may strike: what fails there has a second try.
test: lint type
	$(VENV)/bin/pytest tests/unit -n 2
	$(VENV)/bin/pytest tests/guest
	$(VENV)/bin/pytest tests/testhost -n 2 || $(VENV)/bin/pytest tests/testhost -n 2 --last-failed --last-failed-no-failures none

# The hypervisor with a KVM that works.
testhost: $(STAMP)
	$(VENV)/bin/pytest tests/testhost -n 2

# A shell in the machine that the hypervisor is tested on: QEMU with a KVM of its own inside.
testhost-shell: $(STAMP)
	$(PY) -m tests.testhost

bench: $(STAMP)
	$(PY) -m bench

docs: $(STAMP)
	$(PY) scripts/docs.py

# Re-resolve and export with hashes; uv.lock itself names a registry and stays out of the tree.
lock: $(STAMP)
	@export PATH="$$PWD/.venv-tools/bin:$$PATH" && uv lock && \
	  uv export -q --no-emit-project --no-default-groups --no-header -o requirements/runtime.txt >/dev/null && \
	  uv export -q --no-emit-project --all-groups --no-header -o requirements/dev.txt >/dev/null

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
