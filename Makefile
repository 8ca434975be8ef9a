# A fresh machine needs only python3.11+, a C++17 compiler and make: `make serve` and `make test` do the rest.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
NATIVE := $(shell find native -name '*.h' -o -name '*.cpp' -o -name CMakeLists.txt)

.PHONY: setup serve test lint bench bench-transport bench-peers clean

setup: $(STAMP)

# torch first and exactly: a looser range would fetch gigabytes of CUDA libraries.
$(STAMP): pyproject.toml .ci/constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c .ci/constraints.txt torch
	$(BIN)/pip install -c .ci/constraints.txt -e '.[dev]'
	touch $@

serve: setup
	@$(BIN)/rbee serve $(ARGS)

test: setup
	$(BIN)/rbee pull
	$(BIN)/python -m pytest $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python benchmarks/bench_delivery.py $(ARGS)

bench-transport: setup
	$(BIN)/pip install -q -c .ci/constraints.txt pyzmq faster-fifo matplotlib
	$(BIN)/python benchmarks/bench_transport.py $(ARGS)

PEERS := build/peers/transformers

$(PEERS)/bin/transformers:
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install -q -c .ci/constraints.txt torch
	$(PEERS)/bin/pip install -q -c .ci/constraints.txt 'transformers[serving]' accelerate

bench-peers: setup $(PEERS)/bin/transformers
	$(BIN)/python benchmarks/bench_peers.py --transformers $(PEERS)/bin/transformers $(ARGS)

clean:
	rm -rf build $(VENV)
