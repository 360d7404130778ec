# Every target does its own set-up in $(VENV) on a machine with Python 3.10+ (venv and headers), a C++20 compiler and make.
#
#   make demo      the whole scheme on real images, encrypted
#   make test      the tests
#   make bench     timings on this machine            make checks   all that CI runs
#   make bench-lattice   the lattice scheme on whole networks
#   make soak      load and hostile input against the HTTP service
#   make accuracy  every shipped model on its whole test set, and encrypted images; accuracy-full encrypts all
#   make audit     attacks on the scheme, compared with the committed table
#   make pip-audit known vulnerabilities of the pinned dependencies
#   make bench-gpu timings on a CUDA device; with VENV= PYTHON=python3 it uses that Python as it is
#
# TORCH picks the torch requirement (default: the CPU build, or the CUDA build where nvidia-smi works), TORCH_INDEX the
# package index it comes from. Targets that judge something write build/reports/NAME.json.

SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
TORCH ?= auto
TORCH_INDEX ?=
TORCH_CPU := torch==2.13.0+cpu
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
TORCH_CUDA := torch>=2.11,<2.14

BIN := $(abspath $(VENV))/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet
REPORTS := build/reports
COMMA := ,
CSRC := $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)
CXX_FORMATTED := $(shell git ls-files --cached --others --exclude-standard 'csrc/**.cpp' 'csrc/**.h' 'csrc/**.cu' 'csrc/**.cuh' 'csrc/*.cpp' 'csrc/*.h' 2>/dev/null)

# $(call judged,NAME,COMMAND): run COMMAND and write build/reports/NAME.json {name, ok, seconds}.
judged = mkdir -p $(REPORTS); start=$$(date +%s); if $(2); then ok=true; else ok=false; fi; \
	printf '{"name": "%s", "ok": %s, "seconds": %s}\n' $(1) $$ok $$(($$(date +%s) - start)) > $(REPORTS)/$(1).json; $$ok

.PHONY: demo test bench bench-gpu bench-lattice accuracy accuracy-full audit pip-audit soak checks
.PHONY: lint format-check format types ctest simt cuda-check setup clean
.DEFAULT_GOAL := demo

setup: $(VENV)/.ready

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "mcfhe needs Python 3.10 or newer; choose one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "this Python has no venv; on Debian or Ubuntu: apt-get install python3-venv python3-dev" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || \
		{ echo "this Python has no headers; on Debian or Ubuntu: apt-get install python3-venv python3-dev" >&2; exit 1; }
	@command -v $${CXX:-c++} > /dev/null || \
		{ echo "no C++ compiler; on Debian or Ubuntu: apt-get install g++" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) "setuptools>=77" wheel "ninja>=1.11"
ifneq ($(TORCH),auto)
	$(PIP) "$(TORCH)" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
else
	if nvidia-smi > /dev/null 2>&1; then $(PIP) "$(TORCH_CUDA)"; \
	else $(PIP) "$(TORCH_CPU)" 2> /dev/null || $(PIP) "$(TORCH_CPU)" --index-url $(TORCH_CPU_INDEX); fi
endif
	@touch $@

# The tests of the web page drive a Chromium that is there already; where there is none, they are skipped.
CHROMIUM := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)

$(VENV)/.ready: $(VENV)/.python setup.py pyproject.toml $(CSRC)
	$(PIP) --no-build-isolation --editable ".[$(if $(CHROMIUM),dev$(COMMA)browser,dev)]"
	@touch $@

demo: setup
	$(BIN)/mcfhe demo --report $(REPORTS)/demo.json

test: setup
	MCFHE_REPORT=$(REPORTS)/test.json $(PY) -m pytest

bench: setup
	mkdir -p $(REPORTS)
	$(PY) -m pytest benchmarks --benchmark-enable --benchmark-disable-gc --benchmark-json=$(REPORTS)/pytest-benchmark.json --benchmark-columns=median,iqr,rounds

# Without a venv, MCFHE_WITH_CUDA=1 makes a build that cannot have CUDA kernels fail.
bench-gpu: $(if $(VENV),setup)
	$(if $(VENV),,MCFHE_WITH_CUDA=1 $(PYTHON) setup.py build_ext --inplace)
	$(if $(VENV),$(PY),$(PYTHON)) -m benchmarks.gpu

bench-lattice: setup
	$(PY) -m benchmarks.lattice

soak: setup
	$(PY) -m benchmarks.service

# The data sets' folder is MCFHE_TEST_DATA; one that is missing is an error unless MCFHE_ALLOW_MISSING_DATA=1.
accuracy: setup
	$(PY) -m benchmarks.accuracy

accuracy-full: setup
	$(PY) -m benchmarks.accuracy --full

audit: setup
	$(PY) -m benchmarks.audit

# Known vulnerabilities of the pinned packages; where no database answers it says so and does not fail.
pip-audit: setup
	$(PY) -m benchmarks.known_vulnerabilities

lint: setup
	@$(call judged,lint,$(BIN)/ruff check .)

format-check: setup
	@$(call judged,format,$(BIN)/ruff format --check . && $(BIN)/clang-format --dry-run --Werror $(CXX_FORMATTED))

format: setup
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FORMATTED)

types: setup
	@$(call judged,types,$(BIN)/mypy)

ctest: setup
	@$(call judged,ctest,$(BIN)/cmake -S . -B build/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(BIN)/ninja > /dev/null \
		&& $(BIN)/cmake --build build/cmake && $(BIN)/ctest --test-dir build/cmake --output-on-failure)

simt: setup
	$(PY) csrc/testing/simt/run.py --report $(REPORTS)/simt.json

cuda-check: setup
	$(PY) csrc/testing/cuda_check.py --report $(REPORTS)/cuda-check.json

checks: lint format-check types ctest simt cuda-check test

clean:
	rm -rf build mcfhe/*.so *.egg-info $(VENV)/.ready
