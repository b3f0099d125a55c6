# make demo | test | lint | build | bench: each sets up .venv first, from constraints.txt.
# Stamps make a second run start in seconds; nothing is fetched twice.

PYTHON ?= $(firstword $(foreach v,3.11 3.12 3.13 3.14 3.10,$(shell command -v python$(v))) python3)
PIP_INSTALL ?= .venv/bin/python -m pip install --quiet --disable-pip-version-check
DEPS := .venv/deps.stamp
BUILT := .venv/build.stamp
NATIVE := $(shell find csrc -type f)

.PHONY: demo test lint build bench
demo: $(BUILT)
	.venv/bin/rome-fast demo

test: $(BUILT)
	.venv/bin/python -m pytest -q

lint: $(DEPS)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/clang-format --dry-run --Werror $(NATIVE)

build: $(BUILT)
	.venv/bin/python -m rome_fast.info

# One process a file, so that none heats, fragments or fills the caches of another's; each writes
# benchmarks/results/<NAME>.json. PEERS="--peer kmeng01=PATH" adds rows to the edits, and
# ROME_FAST_BENCH_TEXTS=FILE runs the collections.
BENCH := .venv/bin/python -m pytest -q -s
bench: $(BUILT)
	$(BENCH) benchmarks/bench_edit.py $(PEERS) --save-result edit-cpu
	$(BENCH) benchmarks/bench_ops.py --benchmark-only --save-result ops-cpu
	$(BENCH) benchmarks/bench_second_moment.py --benchmark-only --save-result second-moment-cpu
	$(BENCH) benchmarks/bench_collect.py --benchmark-only --save-result collect-cpu

$(DEPS): constraints.txt
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python >= 3.10 is needed"'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP_INSTALL) -r constraints.txt
	@touch $@

# Without build isolation the native library is compiled against the torch in .venv;
# where there is no compiler the same command installs the pure-Python package.
$(BUILT): $(DEPS) pyproject.toml setup.py $(NATIVE)
	$(PIP_INSTALL) --no-build-isolation --no-deps --editable .
	@touch $@
