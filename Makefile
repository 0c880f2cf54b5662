# `make run` runs the whole chain on the embedded default, `make test` the tests, and `make test-containers` those that
# build the images and start a Kubernetes: as root on Debian 12, by the scripts in the folder MUM_TEST_CLUSTER.
# All install into .venv first; nothing is installed anywhere else.
PYTHON ?= python3.11
BIN := .venv/bin
PYTEST_PROCESSES ?= 2
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: run test test-containers install clean

run: .venv/installed
	dvc repro
	@mum summary --config-dir . --config-name params

test: .venv/installed
	OMP_NUM_THREADS=1 pytest -n $(PYTEST_PROCESSES) --dist loadfile -m "not container and not cluster"

test-containers: .venv/installed
	@test -n "$(MUM_TEST_CLUSTER)" || { echo "MUM_TEST_CLUSTER: expected the folder of scripts for containers"; exit 2; }
	OMP_NUM_THREADS=1 pytest -m "container or cluster" --durations=10 tests/docker tests/cluster

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

clean:
	rm -rf .venv outputs
