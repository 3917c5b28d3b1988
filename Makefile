# Everything runs in .venv, which is made once and brought up to date when what it was made from changes.
#
#   make demo [CORPUS=text.txt]   trains language models on real text, beside torch.nn; writes demo.html
#   make test [ARGS="-k doctor"]  the whole test suite, two files at a time; ARGS go to pytest
#   make doctor                   what is installed, which kernels run where, and why
#   make lint                     ruff and clang-format, checking only; `make format` writes
#   make build                    .venv with the package and its native library, nothing more
#   make clean                    removes everything that make made
#
# PYTHON=python3.12      the interpreter for .venv (Python >= 3.10)
# TORCH=torch==2.13.0    the torch that is installed; any >= 2.11 works
# TRITON=triton==3.7.1   the triton made for it
# FUSEDRNN_CUDA=...      and the other variables of setup.py

PYTHON ?= python3
TORCH ?= torch==2.13.0
TRITON ?= triton==3.7.1
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install -qq
ENVIRONMENT := $(VENV)/.with-$(subst =,_,$(TORCH)-$(TRITON))
INSTALLED := $(VENV)/.installed
TESTABLE := $(VENV)/.testable

.PHONY: demo test doctor lint format build clean help
.DELETE_ON_ERROR:

demo: build
	$(PY) -m benchmarks.demo $(if $(CORPUS),--corpus "$(CORPUS)")

# Most of the suite's time is one thread's. Two processes with two threads each on two cores must not wait
# for each other by spinning.
test: $(TESTABLE)
	OMP_WAIT_POLICY=passive $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

doctor: build
	$(PY) -m fusedrnn

CXX_FILES = $(shell find csrc benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
lint: build
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES)

format: build
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

build: $(INSTALLED)

# Editable: the library lies beside the Python files, so what runs in this directory is what was built.
$(INSTALLED): $(ENVIRONMENT) setup.py CMakeLists.txt $(shell find csrc -type f)
	@echo "Building the native library (a few minutes on two cores the first time) ..."
	@$(PIP) --no-build-isolation -e ".[test,dev]"
	@test -t 1 || cat fusedrnn/_build.txt  # to a terminal the build has said it itself
	@touch $@

# The modules with which the tests reach single C++ units: from the same objects.
$(TESTABLE): $(INSTALLED)
	@FUSEDRNN_TESTING=1 $(PY) setup.py -q build_ext --inplace
	@touch $@

$(ENVIRONMENT): pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { echo "fusedrnn: there is no $(PYTHON); install Python >= 3.10 or name one: make PYTHON=/path/to/python3"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { echo "fusedrnn: Python >= 3.10 is needed, and $(PYTHON) is $$("$(PYTHON)" -V 2>/dev/null || echo broken): make PYTHON=/path/to/python3"; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { echo "fusedrnn: $(PYTHON) cannot make virtual environments; install its venv module (Debian, Ubuntu: apt-get install python3-venv)"; exit 1; }
	@echo "Making $(VENV) with $(TORCH) (once) ..."
	@test -x $(PY) || "$(PYTHON)" -m venv $(VENV)
	@$(PIP) "$(TORCH)" "$(TRITON)" "setuptools>=77" cmake ninja
	@rm -f $(VENV)/.with-* && touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info fusedrnn/*.so fusedrnn/_build.txt .pytest_cache .ruff_cache .demo demo.html

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile
