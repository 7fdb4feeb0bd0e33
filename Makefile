# `make up` runs everything, `make test` runs the tests. Every target except `versions` first installs what it
# needs into .venv.
CHECK_PYTHON := import ensurepip, sys, venv; raise SystemExit(not (3, 11) <= sys.version_info < (3, 15))
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3.14 python3; do \
	$$python -c '$(CHECK_PYTHON)' 2>/dev/null \
	&& echo $$python && break; done)
VENV := .venv
# In variables, because a comma would end an argument of `call`.
APPLICATION := .[embedded,ui]
DEVELOPMENT := .[celery,k8s,dev]
BIN := $(VENV)/bin
# Without bytecode files, each of the many processes would compile the package again.
export PYTHONDONTWRITEBYTECODE :=
# Runs the pip of the chosen Python, or, if that has none, the environment's own, which takes seconds to install.
define pip
	$(PYTHON) -m pip --python $(BIN)/python --quiet --disable-pip-version-check $(1) 2>/dev/null \
		|| { $(BIN)/python -m ensurepip >/dev/null && $(BIN)/python -m pip --quiet --disable-pip-version-check $(1); }
endef
# Installs the versions that constraints.txt pins. uv takes a fraction of pip's time; pip is used if uv fails, for
# example because there is no wheel of uv, or because the index needs settings that only pip has.
define install
	@UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$($(PYTHON) -m pip config get global.index-url 2>/dev/null)}}" \
		$(BIN)/python -m uv pip install --quiet --python $(BIN)/python -c constraints.txt $(1) 2>/dev/null \
		|| { $(call pip,install -c constraints.txt $(1)); }
endef

.PHONY: up down test pytest lint style types e2e cluster bench docs versions

up: $(VENV)/.installed
	@$(BIN)/affiliate-pipeline up $(ARGS)

down: $(VENV)/.installed
	@$(BIN)/affiliate-pipeline down

# Concurrently: pyright alone would leave all cores but one idle for a fifth of the time.
test: style
	@$(MAKE) --no-print-directory --jobs=2 types pytest

pytest: $(VENV)/.installed-dev
	$(BIN)/pytest -n auto $(ARGS)

lint: style types

style: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	$(BIN)/pyright

# Three workers for two cores, since most of these tests wait most of the time.
e2e: $(VENV)/.installed-dev
	$(BIN)/pytest -n $$($(BIN)/python -c 'import os; print(3 * len(os.sched_getaffinity(0)) // 2)') --dist loadscope \
		--timeout 1800 -m e2e $$(grep -rl 'mark\.e2e' --include='test_*.py' affiliate_pipeline_tests) $(ARGS)

# As root on Linux: three hosts in network namespaces. Without -n, since each test uses all cores for some minutes.
cluster: $(VENV)/.installed-dev
	$(BIN)/pytest -m '$(if $(SHORT),cluster and short,cluster)' --timeout 1800 affiliate_pipeline_tests/cluster $(ARGS)

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/.installed
	$(BIN)/python -m affiliate_pipeline.app.data_dictionary > docs/data_dictionary.md

# The tests with the lowest or, by default, the newest versions that pyproject.toml permits, in an environment of their own.
RESOLUTION ?= highest
VERSIONS := $(VENV)-$(RESOLUTION)/bin
versions:
	$(PYTHON) -m venv --clear $(VENV)-$(RESOLUTION)
	$(VERSIONS)/pip install --quiet --disable-pip-version-check uv
	$(VERSIONS)/uv pip install --quiet --python $(VERSIONS)/python --resolution $(RESOLUTION) -e '.[embedded,ui,celery,k8s,dev]'
	$(VERSIONS)/pytest -n auto $(ARGS)

# The scripts of a virtual environment contain its path, so it is created again after the folder was moved or copied.
MOVED := $(shell test ! -L $(VENV) && test -f $(BIN)/affiliate-pipeline \
	&& ! head -n 3 $(BIN)/affiliate-pipeline | grep -qF '$(CURDIR)/$(BIN)/' && echo moved)
ifdef MOVED
.PHONY: $(VENV)/.installed
endif

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -z '$(MOVED)' || { echo "This folder was moved or copied: $(VENV) is created again"; rm -rf $(VENV); }
	@test -x $(BIN)/python || $(PYTHON) -c '$(CHECK_PYTHON)' 2>/dev/null || { echo "affiliate_pipeline needs Python 3.11, 3.12, 3.13 or 3.14 with venv: install one, or pass its path: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Creating $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv --without-pip $(VENV); }
	@echo "Installing (a minute or two the first time)"
	@{ $(call pip,install -c constraints.txt --only-binary :all: uv); } 2>/dev/null || true
	$(call install,-e '$(APPLICATION)' pip)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(call install,-e '$(DEVELOPMENT)')
	@# LBank's own client, without its dependencies: it pins old versions of packages that are already installed.
	$(call install,--no-deps lbank-connector-python)
	@touch $@

# Without the test dependencies: pandera imports hypothesis if it is installed, which would distort the measurement.
$(VENV)/.installed-bench: $(VENV)/.installed
	$(call install,-e '.[bench]')
	@touch $@
