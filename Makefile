# make demo    learn the bundled example, compose it, show it in demo/
# make test    run the tests
# make check   lint and formatting
# make clean   remove what these made, .venv included

PYTHON ?= python3
WORKERS ?= 2

BIN := .venv/bin
READY := .venv/.ready
INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: demo test check clean

demo: $(READY)
	$(BIN)/dreamvideo demo

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS)

check: $(READY)
	$(INSTALL) ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(READY): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[test]"
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv demo dist .pytest_cache .ruff_cache
	find dreamvideo tests -name __pycache__ -type d -prune -exec rm -rf {} +
