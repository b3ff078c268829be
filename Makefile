# `make` alone lists what there is. Environments go to .venv, tools and caches to .build; nothing else is touched.

PYTHON ?= python3
UV_VERSION := 0.13.9
TOOLS := .build/tools/uv-$(UV_VERSION)

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo screenshots test test-airflow test-prefect test-floor test-airflow-floor test-prefect-floor test-airflow-next test-pythons coverage \
	.test-airflow-next test-deployment test-faults test-latency \
	simulate check check-style check-types check-imports check-words check-api check-workflows docs docs-serve environments format requirements clean

# What another environment, an orchestrator's settings or a developer's own key would change stays outside.
unexport $(filter AIRFLOW_% PREFECT_% NOUKAI_% PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV,$(.VARIABLES))
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE PYTHONSTARTUP PYTHONWARNINGS VIRTUAL_ENV CONDA_PREFIX

# The servers of a test are on this machine, whatever proxy leads out of it.
export no_proxy := 127.0.0.1,localhost,$(no_proxy),$(NO_PROXY)
export NO_PROXY := $(no_proxy)

# Whatever a tool would keep in the home folder is kept here.
BUILD := $(CURDIR)/.build
export AIRFLOW_HOME := $(BUILD)/airflow
export PREFECT_HOME := $(BUILD)/prefect
export XDG_CACHE_HOME := $(BUILD)/cache
export PIP_CACHE_DIR := $(BUILD)/pip-cache
export NPM_CONFIG_CACHE := $(BUILD)/npm
export PYTEST_DEBUG_TEMPROOT := $(BUILD)/pytest
export PIP_USER := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export NO_MKDOCS_2_WARNING := 1
export AIRFLOW__USAGE_DATA_COLLECTION__ENABLED := False

define say
@printf '\n== %s\n' "$(1)"
endef

# $(call suites,lanes): what a lane is, devtools/suites.py says.
suites = @mkdir -p .build/pytest; .build/tools/bin/python -m devtools.suites $(1)

# The engine runs beside either orchestrator.
SIMULATED = $(if $(filter prefect,$(PART)),prefect,airflow)

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r name what; do printf '%-22s %s\n' "$$name" "$$what"; done

demo: .venv/airflow/ready .venv/prefect/ready ## watch Noukai jobs run in Airflow and in Prefect, on a local Noukai
	@PYTHONPATH=. AIRFLOW_BIN="$(CURDIR)/.venv/airflow/bin" PREFECT_BIN="$(CURDIR)/.venv/prefect/bin" .venv/prefect/bin/python -m demo

screenshots: .venv/airflow/ready .venv/prefect/ready .venv/screenshots/ready ## take the pictures of the documentation; needs Chromium and chromedriver
	@PYTHONPATH=. AIRFLOW_BIN="$(CURDIR)/.venv/airflow/bin" PREFECT_BIN="$(CURDIR)/.venv/prefect/bin" .venv/screenshots/bin/python -m demo.screenshots

# With the oldest versions in the same run, their suites fill the time in which the others wait.
OLDEST = $(if $(filter all,$(VERSIONS)),airflow-floor prefect-floor)

test: $(patsubst %,.venv/%/ready,airflow prefect $(OLDEST)) ## run every test, with the newest Airflow and Prefect; VERSIONS=all: with the oldest as well
	$(call suites,airflow prefect $(OLDEST))

test-airflow: .venv/airflow/ready
	$(call suites,airflow)

test-prefect: .venv/prefect/ready
	$(call suites,prefect)

test-floor: .venv/airflow-floor/ready .venv/prefect-floor/ready ## run the orchestrators' tests with the oldest supported versions
	$(call suites,airflow-floor prefect-floor)

test-airflow-next: ## run Airflow's tests with its newest pre-release, where there is a Python 3.12 or 3.13
	@if .ci/newer-python >/dev/null; then $(MAKE) --no-print-directory .test-airflow-next; \
	else echo 'skipped: pre-releases of Airflow are tested with Python 3.12 or 3.13, and there is none here'; fi

.test-airflow-next: .venv/airflow-next/ready
	$(call suites,airflow-next)

# The checks of one Python after the other; what this machine does not have, the workflow tests.
test-pythons: ## run the core's, the emulator's and Prefect's tests on each newer Python of this machine
	@for version in 3.12 3.13 3.14; do \
		if python=$$(.ci/newer-python $$version); then echo "Python $$version: $$python"; \
			$(MAKE) --no-print-directory .venv/prefect-$$version/ready && \
			.build/tools/bin/python -m devtools.suites prefect-$$version || exit 1; \
		else echo "Python $$version: not found"; fi; \
	done

# The suites that need no live orchestrator; what only the live ones reach counts as missed.
coverage: .venv/airflow/ready .venv/prefect/ready ## measure which lines and branches the unit tests reach, and fail below 95 % of the branches of a package
	@rm -rf .build/coverage && mkdir -p .build/coverage
	@for environment in airflow prefect; do \
		.ci/uv pip install -q --require-hashes --no-deps --python .venv/$$environment/bin/python -r requirements/coverage.txt; done
	$(call suites,coverage-airflow coverage-prefect)
	.venv/prefect/bin/python -m coverage combine -q
	.venv/prefect/bin/python -m coverage report
	@.venv/prefect/bin/python -m coverage json -q -o .build/coverage/report.json
	@.build/tools/bin/python -m devtools.branches .build/coverage/report.json

test-faults: .venv/airflow/ready .venv/prefect/ready ## run thousands of jobs while a fifth of all requests meet a fault
	$(call suites,faults)

test-latency: .venv/airflow/ready .venv/prefect/ready ## run the tests without a live orchestrator in random order and with random pauses; LATENCY_SEED=…
	$(call suites,latency)

test-deployment: .venv/airflow-deployment/ready ## run hundreds of jobs under faults on Celery, Redis and PostgreSQL, and kill the processes
	$(call suites,deployment)

simulate: .venv/$(SIMULATED)/ready ## search a million schedules for a broken promise; PART=engine, batches, airflow, airflow_batches or prefect; SCHEDULES=…, SEED=…, PROCESSES=…
	@PYTHONPATH=. .venv/$(SIMULATED)/bin/python -m tests.simulation --part $(or $(PART),engine) \
		--schedules $(or $(SCHEDULES),1000000) $(if $(SEED),--seed $(SEED)) $(if $(PROCESSES),--processes $(PROCESSES))

environments: .venv/airflow/ready .venv/prefect/ready .venv/airflow-floor/ready .venv/prefect-floor/ready ## build all that the tests need

check: check-style check-types check-imports check-words check-api check-workflows docs ## lint, format, types, who may import whom, the words, the public API, the workflows, and the documentation

check-style: .venv/airflow/ready
	$(call say,style)
	.venv/airflow/bin/ruff check
	.venv/airflow/bin/ruff format --check

check-types: .venv/airflow/ready .venv/prefect/ready
	$(call say,types beside Airflow)
	.venv/airflow/bin/mypy --cache-dir .build/mypy-airflow core/noukai_core noukai_airflow noukai_orchestration
	.venv/airflow/bin/pyright --pythonpath .venv/airflow/bin/python core/noukai_core noukai_airflow noukai_orchestration
	$(call say,types beside Prefect)
	.venv/prefect/bin/mypy --cache-dir .build/mypy-prefect core/noukai_core noukai_prefect
	.venv/prefect/bin/pyright --pythonpath .venv/prefect/bin/python core/noukai_core noukai_prefect

check-imports: .venv/airflow/ready
	$(call say,imports)
	.venv/airflow/bin/lint-imports --no-cache

check-words: .venv/airflow/ready .venv/docs/ready
	$(call say,words)
	.venv/airflow/bin/python -m devtools.words
	.venv/docs/bin/codespell

# The public names of the packages, compared with those of the last release.
check-api: .venv/docs/ready
	$(call say,public API)
	@.ci/check-api

# What a workflow could leak, or let others run; nothing is asked of the network.
check-workflows: .venv/docs/ready
	$(call say,workflows)
	.venv/docs/bin/zizmor --quiet --offline .github

docs: .venv/docs/ready ## build the documentation into .build/site
	$(call say,documentation)
	PYTHONPATH=. .venv/docs/bin/mkdocs build --quiet

docs-serve: .venv/docs/ready ## show the documentation on http://127.0.0.1:8000, and build it again after each change
	PYTHONPATH=. .venv/docs/bin/mkdocs serve

format: .venv/airflow/ready ## put the code into its format
	.venv/airflow/bin/ruff check --fix
	.venv/airflow/bin/ruff format

compile = .ci/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
	--extra emulator --group test pyproject.toml

requirements: $(TOOLS) ## compile the pinned requirements again; UPGRADE=1 takes the newest of everything
	$(compile) $(if $(UPGRADE),--upgrade) --extra airflow --extra openlineage -o requirements/airflow.txt
	$(compile) $(if $(UPGRADE),--upgrade) --extra airflow --extra openlineage requirements/airflow-floor.in -o requirements/airflow-floor.txt
	$(subst 3.11,3.12,$(compile)) $(if $(UPGRADE),--upgrade) --extra airflow --extra openlineage requirements/airflow-next.in -o requirements/airflow-next.txt
	$(compile) $(if $(UPGRADE),--upgrade) --extra airflow requirements/airflow-deployment.in -o requirements/airflow-deployment.txt
	$(compile) $(if $(UPGRADE),--upgrade) --extra airflow requirements/airflow-peers.in -o requirements/airflow-peers.txt
	$(compile) $(if $(UPGRADE),--upgrade) --extra prefect requirements/prefect.in -o requirements/prefect.txt
	$(compile) $(if $(UPGRADE),--upgrade) --extra prefect requirements/prefect-floor.in -o requirements/prefect-floor.txt
	$(compile) $(if $(UPGRADE),--upgrade) --extra prefect requirements/prefect-peers.in -o requirements/prefect-peers.txt
	$(subst --extra emulator --group test pyproject.toml,,$(compile)) $(if $(UPGRADE),--upgrade) requirements/docs.in -o requirements/docs.txt
	$(subst --extra emulator --group test pyproject.toml,,$(compile)) $(if $(UPGRADE),--upgrade) requirements/coverage.in -o requirements/coverage.txt
	$(compile) $(if $(UPGRADE),--upgrade) requirements/screenshots.in -o requirements/screenshots.txt

clean: ## remove every environment, cache and build
	rm -rf .venv .build dist

# Pre-releases are tested with a newer Python.
.venv/airflow-next/ready: ENVIRONMENT_PYTHON = $(shell .ci/newer-python)

define build
$(call say,building $(@D))
@.ci/uv venv -q --clear --python $(or $(ENVIRONMENT_PYTHON),.build/tools/bin/python) $(@D)
@.ci/uv pip install -q --no-deps --require-hashes --compile-bytecode --python $(@D)/bin/python -r $<
@.ci/uv pip install -q --no-deps --no-build-isolation --python $(@D)/bin/python -e .
@touch $@
endef

.venv/%/ready: requirements/%.txt pyproject.toml | $(TOOLS)
	$(build)

.venv/prefect-3.%/ready: ENVIRONMENT_PYTHON = $(shell .ci/newer-python 3.$*)
.venv/prefect-3.%/ready: requirements/prefect.txt pyproject.toml | $(TOOLS)
	$(build)

# Some Debian Pythons come without ensurepip; their pip can fill the environment from outside.
$(TOOLS):
	$(call say,fetching uv $(UV_VERSION))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed. Name one: make PYTHON=/path/to/python3.11'; exit 1; }
	@$(PYTHON) -m venv --clear .build/tools || \
		{ $(PYTHON) -m venv --clear --without-pip .build/tools && $(PYTHON) -m pip --python .build/tools/bin/python install -q pip; }
	@.build/tools/bin/python -m pip install -q uv==$(UV_VERSION)
	@touch $@
