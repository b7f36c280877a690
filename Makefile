# Targets build or refresh the environment first, which takes a second when there is nothing to do.
export VENV ?= .venv
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)
# Where it is set, each of hundreds of processes compiles TensorFlow and Airflow anew: 6 s and 3 s.
unexport PYTHONDONTWRITEBYTECODE

# Processes of pytest, unless WORKERS says otherwise: unit tests compute, what is slow waits for servers, too.
UNIT_WORKERS := $(or $(WORKERS),2)
SLOW_WORKERS := $(or $(WORKERS),3)

# Tests of what runs where there is no Airflow: in processes that find none (tests/unit/conftest.py).
WITHOUT_AIRFLOW := tests/unit/contract tests/unit/runtime tests/unit/horovod_build

.PHONY: setup demo check lint types unit unit-cluster unit-airflow test images soak bench clean

setup: ## Build .venv; WITH=torch adds PyTorch, PYTHON=... chooses the interpreter.
	@scripts/setup.sh

demo: setup ## Train on two processes and score two days, in Airflow.
	@$(BIN)/python scripts/demo.py

check: ## Format, lint, types, import rules and unit tests, side by side: under a minute, and no Spark, TensorFlow or Horovod.
	@scripts/setup.sh --for check
	@$(MAKE) --no-print-directory --jobs --output-sync --keep-going unit lint types

lint:
	ruff format --check .
	ruff check .
	lint-imports --no-logo

types:
	mypy

unit: unit-cluster unit-airflow

unit-cluster:
	pytest --numprocesses=$(UNIT_WORKERS) --durations=20 $(WITHOUT_AIRFLOW)

unit-airflow:
	pytest --durations=20 tests/unit $(WITHOUT_AIRFLOW:%=--ignore=%)

test: setup check ## Everything: real Spark, real Horovod ranks, real Airflow.
	pytest --numprocesses=$(SLOW_WORKERS) --dist=loadfile --no-loadscope-reorder --durations=20 \
		tests/e2e tests/integration tests/contract

images: setup ## Build the container images without an engine and run out of them: root, 30 GB, half an hour.
	pytest tests/images -m images

soak: setup ## 200 kill -9 over publishing and scoring's swap; backfills of each kind of sink, some killed.
	pytest tests/soak tests/integration/test_delta_files.py -m soak -s

bench: setup ## Measure scoring and training; see bench/.
	$(BIN)/python bench/run.py

clean: ## Remove the environment and what the tools left behind.
	rm -rf $(VENV) .uv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	rm -rf spark-warehouse metastore_db derby.log artifacts
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
