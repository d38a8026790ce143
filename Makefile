# Needs Python 3.11 and make, nothing else. `make help` lists the targets.
PYTHON ?= python3.11
CONFIG ?= examples/cartpole.yaml
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.lockstep-setup

# one compute thread for tests and benchmarks; a trainer sets its own number while it works
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export NPROC := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help setup train test test-long test-cluster chaos fuzz check format bench bench-peers

help:
	@echo "make train [CONFIG=…] [ORCHESTRATOR=ray]  train and evaluate two simultaneous PPO agents on 64 CartPole-v1"
	@echo "                                          environments, or those of CONFIG, such as examples/pendulum.yaml"
	@echo "make test     run the tests"
	@echo "make test-long  run the tests with full matrices and long schedules"
	@echo "make test-cluster  run \`ray up cluster.yaml\` on hosts in namespaces of this machine (Linux; root, iproute2, rsync"
	@echo "                   and openssh-server)"
	@echo "make chaos [FAULTS=1000]  put faults into runs and compare them with undisturbed ones; goes on where it ended"
	@echo "make fuzz     run the tests with damaged messages and files, with many of them"
	@echo "make check    check lint, format, types and import directions"
	@echo "make bench    measure step times against skrl, environment copies against a plain loop, and the fan-out"
	@echo "make bench-peers  compare with RLlib, TorchRL and skrl on HalfCheetah-v5"
	@echo "make format   format the code"
	@echo "make setup    create the environment .venv with every extra (the other targets do this by themselves)"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $(STAMP)

train: $(STAMP)
	$(BIN)/lockstep train $(CONFIG) $(if $(ORCHESTRATOR),--set orchestrator.kind=$(ORCHESTRATOR))

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-long: $(STAMP)
	LOCKSTEP_TESTS=long $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-cluster: $(STAMP) build/cluster/wheels
	LOCKSTEP_TESTS=cluster $(BIN)/python -m pytest tests/cluster

# what the hosts install: they have no network
build/cluster/wheels: pyproject.toml constraints.txt
	$(BIN)/python -m pip download --quiet --dest $@ --constraint constraints.txt torch==2.13.0 '.[torch,multiagent]' 'setuptools>=77' wheel
	touch $@

chaos: $(STAMP)
	$(BIN)/python -m tests.chaos --faults $(or $(FAULTS),1000)

fuzz: $(STAMP)
	LOCKSTEP_TESTS=long $(BIN)/python -m pytest -m fuzz --numprocesses 2

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/house/test_imports.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python benchmarks/step_time.py
	$(BIN)/python benchmarks/check_cost.py
	$(BIN)/python benchmarks/vectorisers.py
	$(BIN)/python benchmarks/fan_out.py

bench-peers: $(STAMP) .venv-rllib/.lockstep-setup .venv-torchrl/.lockstep-setup
	$(BIN)/python benchmarks/peers.py

# an environment for each other library, because it pins other versions
.venv-%/.lockstep-setup: benchmarks/peers/%.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet torch==2.13.0
	.venv-$*/bin/python -m pip install --quiet --requirement $<
	touch $@
