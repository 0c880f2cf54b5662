# Two commands: `make run` runs the whole chain on the embedded default, `make test` runs the tests.
# Both install into .venv first; nothing is installed anywhere else.
PYTHON ?= python3.11
BIN := .venv/bin
PYTEST_PROCESSES ?= 2
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: run test install clean

run: .venv/installed
	dvc repro
	@mum summary --config-dir . --config-name params

test: .venv/installed
	OMP_NUM_THREADS=1 pytest -n $(PYTEST_PROCESSES) --dist loadfile

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

clean:
	rm -rf .venv outputs
