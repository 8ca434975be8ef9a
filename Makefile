# A fresh machine needs only python3.11+, a C++17 compiler and make: `make serve` and `make test` do the rest.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PROMETHEUS := build/prometheus
NATIVE := $(shell find native -name '*.h' -o -name '*.cpp' -o -name CMakeLists.txt)
CXX_FILES := $(filter %.h %.cpp,$(NATIVE))

# The tests start hundreds of processes: each would compile our modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup serve test test-fast test-properties test-schemas test-native-long fuzz soak compat coverage lint audit bench bench-transport bench-peers bench-engine-peers bench-quality bench-faults bench-door clean

setup: $(STAMP)

# torch first and exactly: a looser range would fetch gigabytes of CUDA libraries.
$(STAMP): pyproject.toml .ci/constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c .ci/constraints.txt torch
	$(BIN)/pip install -c .ci/constraints.txt -e '.[dev]'
	touch $@

serve: setup
	@$(BIN)/rbee serve $(ARGS)

test: setup $(PROMETHEUS)/.installed
	$(BIN)/rbee pull
	$(BIN)/python -m pytest $(ARGS)

# For the tests of deploy/. A program of PATH is linked; else some 30 MB are fetched, once.
$(PROMETHEUS)/.installed: .ci/prometheus
	.ci/prometheus $(PROMETHEUS)
	touch $@

# About a minute, for the work in between: server, scheduling and the transport's binding, in this process.
test-fast: setup
	$(BIN)/python -m pytest -m 'not slow' tests/server tests/engine/scheduling tests/engine/test_engine_core.py \
		tests/transport tests/lint $(ARGS)

# Other examples of every property than `make test` takes, at random. One that fails becomes an @example.
test-properties: setup
	$(BIN)/rbee pull
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile=search $(ARGS)

# Outputs of the default model under the schemas of the tests and random ones, some minutes.
test-schemas: setup
	$(BIN)/rbee pull
	$(BIN)/python -m tests.engine.schemas_run $(ARGS)

# Searches that are worth their time after a change of native/: the mutations under every check (about an hour), the
# larger cases of the model check, and more rounds of fuzzing and stress.
test-native-long: setup
	$(BIN)/cmake -S native -B build/native -D RBEE_BUILD_TESTS=ON
	$(BIN)/cmake --build build/native --parallel 2 --target rbee_model_check rbee_core_stress rbee_transport_tests
	build/native/rbee_transport_tests
	build/native/rbee_model_check thorough
	build/native/rbee_core_stress 20000000
	$(BIN)/cmake -S native -B build/native-address -D RBEE_BUILD_TESTS=ON -D RBEE_SANITIZE=address,undefined
	$(BIN)/cmake --build build/native-address --parallel 2 --target rbee_transport_tests
	RBEE_FUZZ_ROUNDS=100000 build/native-address/rbee_transport_tests scribbled
	$(BIN)/python tests/transport/mutations.py $(ARGS)

# What anybody may send to the port: more of it than `make test` sends, of another seed, which is printed.
N    ?= 1000000
SEED ?= $(shell date +%s)

fuzz: setup
	RBEE_FUZZ_INPUTS=$(N) RBEE_FUZZ_SEED=$(SEED) $(BIN)/python -m pytest -s tests/faults/test_door_fuzz.py $(ARGS)

# Streams, faults and hours: ARGS="--hours 2". By hand, on a machine that has nothing else to do.
soak: setup
	$(BIN)/python benchmarks/soak.py $(ARGS)

# Unmodified clients against a real server; `ARGS="openai curl"` runs some. The first time needs a network.
COMPAT := build/compat

$(COMPAT)/venv/.installed: tests/compat/requirements.txt
$(COMPAT)/aiperf/.installed: tests/compat/requirements-aiperf.txt
$(COMPAT)/instructor/.installed: tests/compat/requirements-instructor.txt
$(COMPAT)/guidellm/.installed: tests/compat/requirements-guidellm.txt $(COMPAT)/guidellm/.torch
$(COMPAT)/%/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q --only-binary :all: -r $<
	touch $@

# guidellm needs it: first and exactly, as for $(STAMP).
$(COMPAT)/guidellm/.torch:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q -c .ci/constraints.txt torch
	touch $@

# What SGLang requires is CUDA, too: its benchmark gets what it imports, and then SGLang's own files.
$(COMPAT)/sglang/.imports: tests/compat/imports-sglang.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q --only-binary :all: -r $<
	touch $@

$(COMPAT)/sglang/.installed: tests/compat/requirements-sglang.txt $(COMPAT)/sglang/.imports
	$(@D)/bin/pip install -q --only-binary :all: --no-deps -r $<
	touch $@

$(COMPAT)/node_modules/.installed: tests/compat/package.json
	mkdir -p $(COMPAT)
	cp $< $(COMPAT)
	npm install --prefix $(COMPAT) --no-audit --no-fund --no-package-lock --ignore-scripts
	touch $@

compat: setup $(foreach name,venv instructor aiperf guidellm sglang node_modules,$(COMPAT)/$(name)/.installed)
	$(BIN)/rbee pull
	$(BIN)/python -m tests.compat $(ARGS)

# Lines and branches of rbee/ that the suite runs, in the processes that it starts too.
coverage: setup $(PROMETHEUS)/.installed
	$(BIN)/rbee pull
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/lint/import_circles.py
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

# What linters for security see, and the known holes of what is installed. The second needs a network with the index of
# packages.
audit: setup
	$(BIN)/pip install -q -c .ci/constraints.txt bandit pip-audit
	$(BIN)/bandit -q -c pyproject.toml -r rbee
	$(BIN)/pip-audit --skip-editable

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

# llama.cpp, compiled here: for AVX2, and for AVX-512 where the processor has it with VNNI. Not with its GGML_NATIVE, which
# would also take AMX: g++ 12 miscompiles _tile_loadconfig, and the result crashes at its first ldtilecfg. And not from
# pip's cache, which does not tell the two builds apart.
CPU := $(shell grep -m 1 '^flags' /proc/cpuinfo)
LLAMA_CPP := build/peers/llama-cpp
LLAMA_CPP_PEERS := $(LLAMA_CPP)-avx2 $(if $(filter avx512_vnni,$(CPU)),$(LLAMA_CPP)-avx512)
LLAMA_CPP_PYTHONS := $(addsuffix /bin/python,$(LLAMA_CPP_PEERS))
GGML_AVX2 := NATIVE=OFF SSE42=ON AVX=ON AVX2=ON BMI2=ON FMA=ON F16C=ON
GGML_AVX512 := $(GGML_AVX2) AVX512=ON AVX512_VNNI=ON $(if $(filter avx512vbmi,$(CPU)),AVX512_VBMI=ON) \
	$(if $(filter avx512_bf16,$(CPU)),AVX512_BF16=ON) $(if $(filter avx_vnni,$(CPU)),AVX_VNNI=ON)

$(LLAMA_CPP)-avx2/.installed: GGML := $(GGML_AVX2)
$(LLAMA_CPP)-avx512/.installed: GGML := $(GGML_AVX512)
$(LLAMA_CPP)-%/.installed:
	$(PYTHON) -m venv $(@D)
	CMAKE_ARGS='$(addprefix -DGGML_,$(GGML))' CMAKE_BUILD_PARALLEL_LEVEL=$$(nproc) $(@D)/bin/pip install -q -c .ci/constraints.txt \
		--no-cache-dir --no-binary llama-cpp-python llama-cpp-python numpy
	touch $@

# Wheels: ik_llama.cpp's is built for AVX2.
IK_LLAMA_CPP := build/peers/ik-llama-cpp
OPENVINO := build/peers/openvino

$(IK_LLAMA_CPP)/.installed: PACKAGES := ik-llama-cpp-python
$(OPENVINO)/.installed: PACKAGES := openvino-genai
$(IK_LLAMA_CPP)/.installed $(OPENVINO)/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q -c .ci/constraints.txt --only-binary :all: $(PACKAGES) numpy
	touch $@

LOGITS_PEERS := $(LLAMA_CPP_PEERS) $(IK_LLAMA_CPP)
ENGINE_PEERS := $(LOGITS_PEERS) $(OPENVINO)

bench-engine-peers: setup $(addsuffix /.installed,$(ENGINE_PEERS))
	$(BIN)/python benchmarks/bench_engine.py --vs $(addsuffix /bin/python,$(ENGINE_PEERS)) $(ARGS)

# OpenVINO GenAI shows no logits.
bench-quality: setup $(addsuffix /.installed,$(LOGITS_PEERS))
	$(BIN)/python benchmarks/bench_quality.py --vs $(addsuffix /bin/python,$(LOGITS_PEERS)) $(ARGS)

# The peer's server needs more than the peer.
$(LLAMA_CPP)-%/.server: $(LLAMA_CPP)-%/.installed
	$(@D)/bin/pip install -q -c .ci/constraints.txt 'llama-cpp-python[server]'
	touch $@

bench-faults: setup $(addsuffix /.server,$(LLAMA_CPP_PEERS))
	$(BIN)/python benchmarks/bench_faults.py --vs $(LLAMA_CPP_PYTHONS) $(ARGS)

# Both of uvicorn's parsers come with it.
bench-door: setup
	$(BIN)/rbee pull
	$(BIN)/python benchmarks/bench_door.py $(ARGS)

clean:
	rm -rf build $(VENV)
