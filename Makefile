# Every target makes its own virtual environment when there is none; Python 3.10 or later and a C compiler are enough.
#
#   make demo          build xtree and show what it does, with a picture in demo-output/
#   make test          build xtree and run all tests
#   make test-quick    build xtree and run the quick tests of each layer, in about a minute
#   make test-all      the same with every Python from 3.10 to 3.14 that is installed
#   make test-checked  the same tests against a build with bounds checks and C assertions
#   make asan          the tests of the core and of hostile files against a build with AddressSanitizer and UBSan
#   make tsan          tests marked threads against a build that ThreadSanitizer watches (gcc); any race fails
#   make fuzz          feed each parser what a fuzzer makes of real files; make fuzz FUZZ_SECONDS=60 for longer
#   make torture       crashes, faults, kills and damaged files by the ten thousand; counts what was tried
#   make bench         measure what store and trees cost on this machine, beside other engines; BENCH_ARGS="index --quick" for less
#   make soak          an hour of work, kills and reopening under check; make soak SOAK_ARGS='--minutes 5' for less
#   make lint          ruff, cython-lint and mypy alone
#   make docs          the reference, from the docstrings, in build/docs
#   make wheel         wheel and source distribution in dist/
#   make clean         remove environments and everything that was built

PYTHON ?= python3
VENV ?= .venv
CHECKED := $(VENV)-checked
ASAN := $(VENV)-asan
TSAN := $(VENV)-tsan
TSAN_SKIPPED := a_long_batch
TSAN_OPTIONS := halt_on_error=0 exitcode=0 report_thread_leaks=0 die_after_fork=0 history_size=4 \
  suppressions=$(CURDIR)/tests/tsan_suppressions.txt
PYTEST_ARGS ?= -n 2 --dist loadfile --max-worker-restart 0
QUICK_TESTS := algorithms api commit files pages project
BENCH_ARGS ?=
TORTURE_ARGS ?=
SOAK_ARGS ?= --minutes 60
FUZZ_SECONDS ?= 20

BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet
BUILD_REQUIREMENTS := 'setuptools>=77' 'cython>=3.1,<4'
COMPILED := pyproject.toml setup.py $(shell find xtree tools/probes -name '*.py[xd]' -o -name '*.h')

HINT = echo "The command is $(BIN)/xtree; source $(BIN)/activate puts it, and python with xtree, on the path."

.PHONY: help demo test test-quick test-all test-checked asan tsan fuzz torture bench soak lint docs wheel clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/installed
	$(BIN)/xtree demo
	@$(HINT)

test: $(VENV)/installed-test
	@echo "testing: some six minutes on two cores"
	$(BIN)/python -m pytest $(PYTEST_ARGS)
	@$(HINT)

test-quick: $(VENV)/installed-test
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m 'not slow and not torture' $(QUICK_TESTS:%=tests/%)

test-all:
	@found=; for version in 3.10 3.11 3.12 3.13 3.14; do \
	  if python$$version -c "" 2>/dev/null; then \
	    found="$$found $$version"; \
	    $(MAKE) test PYTHON=python$$version VENV=.venv-$$version || exit 1; \
	  fi; \
	done; echo "passed with Python$$found"

test-checked: $(CHECKED)/installed
	PYTHONSAFEPATH=1 $(CHECKED)/bin/pytest $(PYTEST_ARGS) --ignore tests/project/test_lint.py

# Leaks aren't looked for: they can't be told from what the interpreter keeps until its end.
SANITIZED := LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" PYTHONMALLOC=malloc PYTHONSAFEPATH=1 \
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=1024:detect_stack_use_after_return=1 \
  UBSAN_OPTIONS=print_stacktrace=1
ASAN_TESTS ?= tests/algorithms tests/pages tests/files tests/recovery tests/hostile tests/api/test_model.py

FUZZ_TARGETS ?= superblock manifest checkpoint log catalog directory

asan: $(ASAN)/installed
	$(SANITIZED) $(ASAN)/bin/python -m pytest $(PYTEST_ARGS) --hypothesis-profile=ci $(ASAN_TESTS)

fuzz: $(VENV)/installed-fuzz
	mkdir -p build/fuzz
	for target in $(FUZZ_TARGETS); do \
	  FUZZ_FINDINGS=build/fuzz $(BIN)/python tests/fuzz/fuzz.py $$target $(FUZZ_SECONDS) || exit 1; \
	done

# The interpreter isn't instrumented: the sanitizer knows what it does from its locks. Reports go to files, so that none
# is lost when a process of the tests ends. setarch -R keeps addresses from being random:
# otherwise older versions of the sanitizer find no place for themselves. The skipped tests take long there and have one
# thread. Only files with such tests are imported: polars, say, can't be under the sanitizer.
tsan: $(TSAN)/installed
	rm -rf build/tsan && mkdir -p build/tsan
	$(shell setarch -R true 2>/dev/null && echo setarch -R) env PYTHONSAFEPATH=1 \
	  LD_PRELOAD="$$($(CC) -print-file-name=libtsan.so)" TSAN_OPTIONS="$(TSAN_OPTIONS) log_path=$(CURDIR)/build/tsan/race" \
	  $(TSAN)/bin/pytest $(PYTEST_ARGS) --timeout 1200 -m 'threads and not torture' -k 'not $(TSAN_SKIPPED)' \
	  $(shell grep -rl 'mark\.threads' tests)
	@if ls build/tsan/race.* 2>/dev/null; then cat build/tsan/race.*; exit 1; else echo "no race"; fi

torture: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m torture $(TORTURE_ARGS)

bench: $(VENV)/installed-bench
	$(BIN)/python -m xtree.tools.bench $(BENCH_ARGS)

soak: $(VENV)/installed
	$(BIN)/python -m xtree.tools.soak $(SOAK_ARGS)

lint: $(VENV)/installed-test
	$(BIN)/ruff check
	PATH="$(abspath $(BIN)):$$PATH" cython-lint xtree tools/probes
	$(BIN)/mypy

docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx -E -W --keep-going docs/api build/docs
	@echo "open build/docs/index.html"

wheel: $(VENV)/installed-test
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf .venv .venv-* build dist demo-output *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find xtree tools tests examples \( -name '*.so' -o -name '*.pyd' -o -name __pycache__ \) -prune -exec rm -rf {} +

# The stamps: a target is made again when something it is made of is newer than its stamp. Only the modules that have
# changed are compiled again.

$(VENV)/made:
	@echo "making $(VENV), with what the build needs"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(BUILD_REQUIREMENTS)
	@touch $@

$(VENV)/built: $(VENV)/made $(COMPILED)
	@echo "compiling xtree: two minutes or more the first time, afterwards what has changed"
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

$(VENV)/installed: $(VENV)/built
	@echo "installing xtree in $(VENV), with the packages that it uses"
	$(PIP) install --no-build-isolation --editable .
	@touch $@

$(VENV)/installed-%: $(VENV)/installed
	@echo "installing what $* needs"
	$(PIP) install --no-build-isolation --editable '.[$*]'
	@touch $@

$(CHECKED)/installed: BIN := $(CHECKED)/bin
$(CHECKED)/installed: $(COMPILED) $(shell find xtree tools -name '*.py')
	test -d $(CHECKED) || $(PYTHON) -m venv $(CHECKED)
	$(PIP) install $(BUILD_REQUIREMENTS)
	XTREE_DEBUG=1 $(PIP) install --no-build-isolation '.[test]'
	@touch $@

$(ASAN)/installed: BIN := $(ASAN)/bin
$(ASAN)/installed: $(COMPILED) $(shell find xtree tools -name '*.py')
	test -d $(ASAN) || $(PYTHON) -m venv $(ASAN)
	$(PIP) install $(BUILD_REQUIREMENTS)
	XTREE_SANITIZE=address $(PIP) install --no-build-isolation '.[test]'
	@touch $@

$(TSAN)/installed: BIN := $(TSAN)/bin
$(TSAN)/installed: $(COMPILED) $(shell find xtree tools -name '*.py')
	test -d $(TSAN) || $(PYTHON) -m venv $(TSAN)
	$(PIP) install $(BUILD_REQUIREMENTS)
	XTREE_SANITIZE=thread $(PIP) install --no-build-isolation '.[test]'
	@touch $@
