# Every target builds or refreshes the environment first, which takes a second when there is nothing to do.
export VENV ?= .venv
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)

.PHONY: setup demo check test images soak bench clean

setup: ## Build .venv; WITH=torch adds PyTorch, PYTHON=... chooses the interpreter.
	@scripts/setup.sh

demo: setup ## Train on two processes and score two days, in Airflow.
	@$(BIN)/python scripts/demo.py

check: setup ## Format, lint, types, import rules and unit tests: under a minute.
	ruff format --check .
	ruff check .
	mypy
	lint-imports --no-logo
	pytest tests/unit

test: check ## Everything: real Spark, real Horovod ranks, real Airflow.
	pytest tests/contract tests/integration tests/e2e

images: setup ## Build the container images without an engine and run out of them: root, 30 GB, half an hour.
	pytest tests/images -m images

soak: setup ## 200 kill -9 over publishing and scoring's swap, on a folder and on an object store.
	pytest tests/soak -m soak -s

bench: setup ## Measure scoring and training; see bench/.
	$(BIN)/python bench/run.py

clean: ## Remove the environment and what the tools left behind.
	rm -rf $(VENV) .uv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	rm -rf spark-warehouse metastore_db derby.log artifacts
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
