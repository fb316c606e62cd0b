# Everything here runs on a fresh machine with Python 3.10+, a C++17 compiler and make: the virtual
# environment is made on first use. PYTHON=python3.12 chooses the interpreter, VENV=dir the place.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NATIVE := CMakeLists.txt csrc/CMakeLists.txt $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
SANITIZE ?= address,undefined
MUTANTS ?= OFF
# LOCK=.ci/lock.txt installs exactly the versions of that file, checked by their hashes.
LOCK ?=

.PHONY: help install demo gate docs test test-full lint lock lowest-test native-test readme python-test bench torch-test gpu-all gpu-test gpu-bench gpu-sanitize format clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | column -t -s '|'

install: $(VENV)/.installed  ## make the virtual environment and install the package in it

# Editable, so that the source tree is what runs, with the native modules beside it.
$(VENV)/.installed: pyproject.toml $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import pip, sys; sys.exit(tuple(map(int, pip.__version__.split(".")[:2])) < (23, 1))' || $(BIN)/python -m pip install --quiet --upgrade pip
	$(if $(LOCK),$(BIN)/python -m pip install --quiet --require-hashes -r $(LOCK))
	$(BIN)/python -m pip install --quiet 'scikit-build-core>=0.10' 'pybind11>=2.13' 'cmake>=3.22' 'ninja>=1.11'
	$(BIN)/python -m pip install --quiet --no-build-isolation --config-settings=build-dir=build/editable -e '.[dev]'
	touch $@

demo: install  ## locate photos of a synthetic city the model never saw; writes demo/
	$(BIN)/geoloc-fast demo --out demo

test: lint native-test python-test  ## what CI runs

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The native core without Python, under sanitizers.
native-test: install
	$(BIN)/cmake -S . -B build/native-$(SANITIZE) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DGEOLOC_FAST_PYTHON=OFF -DGEOLOC_FAST_CUDA=OFF \
		-DGEOLOC_FAST_TESTS=ON -DGEOLOC_FAST_MUTANTS=$(MUTANTS) -DCMAKE_BUILD_TYPE=RelWithDebInfo -DGEOLOC_FAST_SANITIZE=$(SANITIZE)
	$(BIN)/cmake --build build/native-$(SANITIZE)
	$(BIN)/ctest --test-dir build/native-$(SANITIZE) --output-on-failure --parallel $(shell nproc)

python-test: install
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive GEOLOC_FAST_REQUIRE=cpu $(BIN)/python -m pytest -q -n auto --dist worksteal -m "not slow"

test-full: test  ## adds the long grids, mutants of the kernels, the thread sanitizer, and the oldest and newest torch
	$(MAKE) native-test MUTANTS=ON
	$(MAKE) native-test SANITIZE=thread
	GEOLOC_FAST_REQUIRE=cpu $(BIN)/python -m pytest -q -m slow
	$(MAKE) torch-test TORCH=2.4.1 TORCHVISION=0.19.1 NUMPY='numpy<2.3'
	$(MAKE) torch-test TORCH= TORCHVISION= NUMPY=numpy

# The operators' tests with one version of torch (empty: the newest) in an environment of its own.
torch-test:
	$(PYTHON) -m venv build/venv-torch$(TORCH)
	build/venv-torch$(TORCH)/bin/python -m pip install --quiet torch$(addprefix ==,$(TORCH)) torchvision$(addprefix ==,$(TORCHVISION)) '$(NUMPY)' '.[all,test]'
	cd python_tests && GEOLOC_FAST_REQUIRE=cpu ../build/venv-torch$(TORCH)/bin/python -m pytest -q -m "not slow and not checkout" .

# Everything at the oldest version that pyproject.toml allows, on the oldest Python. No Triton there: it is torch's own.
lowest-test:
	$(PYTHON) -m venv build/venv-lowest
	build/venv-lowest/bin/python -m pip install --quiet uv
	build/venv-lowest/bin/uv pip compile --quiet --python build/venv-lowest/bin/python --resolution lowest-direct --extra all --extra test pyproject.toml -o build/lowest.txt
	build/venv-lowest/bin/uv pip install --quiet --python build/venv-lowest/bin/python -r build/lowest.txt
	build/venv-lowest/bin/python -m pip install --quiet --no-deps -C cmake.define.GEOLOC_FAST_CUDA=OFF .
	cd python_tests && GEOLOC_FAST_REQUIRE=cpu ../build/venv-lowest/bin/python -m pytest -q -m "not slow and not checkout" .

lock: install  ## write .ci/lock.txt anew: every version that CI installs, with hashes
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --python-version 3.10 --all-extras pyproject.toml -o .ci/lock.txt \
		--custom-compile-command 'make lock'

# PAIRS is a manifest of panoramas with their satellite images; FLOORS are models that must not be better.
PAIRS ?= pairs
FLOORS ?=
gate: install  ## may MODEL ship? On real pairs against floors that need no training and the model that ships
	$(BIN)/python -m geoloc_fast.evaluation.gate $(MODEL) --pairs $(PAIRS) $(addprefix --floor ,$(FLOORS))

docs: install  ## build the documentation into site/, offline and strict
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

readme: install  ## write what the README shows: its output, its picture, its figures
	$(BIN)/python bench/readme.py

bench: install  ## measure every operator against its peers (half an hour); renders docs/notes/benchmarks.md
	$(BIN)/python -m pip install --quiet faiss-cpu
	cd bench && ../$(BIN)/python run.py && ../$(BIN)/python report.py

# On a machine with a GPU, with the Python packages that are there; no network, no virtual environment.
gpu-all:  ## on a GPU: the three below, the most telling first, with a profile of the search kernels (12 minutes at most)
	$(PYTHON) bench/gpu.py all

gpu-test:  ## on a GPU: every operator's answers, on the CUDA and the Triton kernels (5 minutes at most)
	$(PYTHON) bench/gpu.py test

gpu-bench:  ## on a GPU: times against peers and the card's limits; writes bench/results/gpu_bench.md (5 minutes at most)
	$(PYTHON) bench/gpu.py bench

gpu-sanitize:  ## on a GPU: compute-sanitizer over small CUDA calls (5 minutes at most)
	$(PYTHON) bench/gpu.py sanitize

format: install  ## put sources into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

clean:  ## remove what was built here
	rm -rf build demo site $(VENV)
