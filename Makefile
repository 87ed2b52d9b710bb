# The first target run on a fresh machine makes .venv and installs the pinned versions into it.
# Set-up is repeated only when pyproject.toml or constraints.txt changes.
#
# The adapters under integrations/ are tested as the wheels that users get: `make adapters` builds
# and installs them, and is repeated when one of their sources changes.
#
#   make demo PYTHON=python3.12        choose the interpreter (for the first run, or after clean)
#   make test ARGS="-k scheduler -x"   pass arguments to pytest
#   make test PARALLEL=                in one process

PYTHON ?= python3
ARGS ?=
# A file's tests stay in one process, which makes their checkpoints and engines once.
PARALLEL ?= -n auto --maxprocesses 4 --dist loadfile
FAST := not slow and not model
# What importing LiteLLM takes beside the rest; all of its dependencies would be many more.
LITELLM := litellm fastuuid importlib-metadata lazy-importer h2 hpack hyperframe
# DSPy, for what the documentation shows of it; it stands on LiteLLM.
DSPY := dspy cachetools diskcache gepa json-repair

WHEEL_TESTS := tests/test_imports.py tests/test_errors.py tests/test_examples.py tests/engine \
	tests/scheduler tests/server tests/cli tests/behaviour/models/test_real_model.py

BIN := .venv/bin
READY := .venv/.ready
ADAPTERS := .venv/.adapters
# Another environment, on top of .venv's packages, in which Millpond is the built wheel.
WHEEL := .venv-wheel
# OpenAI's client for Node and axe-core, which the server is tested with where there is an npm.
NODE := tests/server/node
NODE_CLIENT := $(if $(shell command -v npm 2>/dev/null),$(NODE)/node_modules/.package-lock.json)
# Folders too, so that a deleted file counts as a change.
ADAPTER_SOURCES := $(shell find integrations -mindepth 2 \
	\( -name tests -o -name __pycache__ -o -name '.*' \) -prune -o -print)
PURELIB := 'import sysconfig; print(sysconfig.get_path("purelib"))'
PIP := $(BIN)/python -m pip --disable-pip-version-check
PIP_INSTALL := $(PIP) install --quiet -c constraints.txt

# On Linux PyPI's torch is the CUDA build, with gigabytes of NVIDIA's libraries; where there is no
# driver of NVIDIA's, pip looks for PyTorch's CPU build too, which it prefers.
TORCH := --no-deps torch $(if $(filter Linux,$(shell uname)),$(if $(shell command -v nvidia-smi),,\
	--retries 1 --extra-index-url https://download.pytorch.org/whl/cpu))

# For the tests of the server's pages, where there is a browser for it to drive.
BROWSER := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
BROWSER_DRIVER := $(if $(BROWSER),playwright)

.PHONY: help setup adapters demo test test-rest test-all test-processors test-wheel \
	test-install bench bench-adapters docs distributions lint typecheck format check clean

help:
	@echo "make demo       embed and search the standard library's documentation"
	@echo "make test       the fast tests: what needs no model and no process of its own"
	@echo "make test-all   every test, the adapters' included"
	@echo "make test-wheel tests against the built wheel"
	@echo "make test-install  every documented install line, each in an environment of its own"
	@echo "make docs       build the documentation's site into build/docs/site"
	@echo "make distributions  build what is published and check it as PyPI does"
	@echo "make test-processors  the tests of vectors, as several other processors would run them"
	@echo "make bench      measure Millpond beside its peers; ARGS=--quick for minutes"
	@echo "make bench-adapters  the LangChain and LlamaIndex adapters beside the incumbents"
	@echo "make check      lint, typecheck and test"
	@echo "make lint       check style and formatting; 'make format' repairs them"
	@echo "make typecheck  check types"
	@echo "make setup      only make .venv; 'make clean' removes it and every build output"

setup: $(READY)

# torch comes first and by itself: its pinned version settles which build everything else gets.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Millpond needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ". Choose another: make PYTHON=python3.12")'
	@echo "Setting up .venv; torch is large, so this takes some minutes the first time."
	@$(PYTHON) -m venv .venv
	@echo "  torch"
	@$(PIP_INSTALL) $(TORCH)
	@echo "  millpond and what it is tested with"
	@$(PIP_INSTALL) hatchling hatch-fancy-pypi-readme editables
	@$(PIP_INSTALL) --no-build-isolation -e '.[test,dev,docs]'
	@$(PIP_INSTALL) --no-deps infinity-client langchain-huggingface $(LITELLM) $(DSPY) \
		llama-index-embeddings-text-embeddings-inference llama-index-utils-huggingface
	@$(if $(BROWSER_DRIVER),$(PIP_INSTALL) $(BROWSER_DRIVER))
	@touch $(READY)

adapters: $(ADAPTERS)

$(ADAPTERS): $(READY) $(ADAPTER_SOURCES)
	@rm -rf dist/adapters
	@$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist/adapters ./integrations/*/
	@$(PIP) install --quiet --no-deps --force-reinstall dist/adapters/*.whl
	@touch $(ADAPTERS)

$(NODE)/node_modules/.package-lock.json: $(NODE)/package.json $(NODE)/package-lock.json
	@cd $(NODE) && npm ci --silent --no-audit --no-fund --fetch-retries=1 --fetch-retry-mintimeout=1000 \
		|| echo "npm could not install what the server is tested with; those tests are skipped."
	@test ! -e $@ || touch $@

# The model comes from an installed package, so nothing is asked of the network.
demo test test-rest test-processors test-wheel bench bench-adapters: export HF_HUB_OFFLINE = 1
test-rest: export ANONYMIZED_TELEMETRY = False
test-rest: export LANGSMITH_TRACING = false
test-rest: export HAYSTACK_TELEMETRY_ENABLED = False

demo: setup
	@$(BIN)/python examples/docstrings.py

test: setup
	@$(BIN)/python -m pytest tests $(PARALLEL) -m "$(FAST)" $(ARGS)

# What `make test` leaves out, and the adapters.
test-rest: adapters $(NODE_CLIENT)
	@$(BIN)/python -m pytest $(PARALLEL) -m "slow or model or adapters" $(ARGS)

test-all: test test-rest

# The environment sees .venv's packages but not its editable install, so src is not on the path.
test-wheel: setup
	@rm -rf $(WHEEL) dist/wheel
	@$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist/wheel .
	@$(BIN)/python -m venv --without-pip $(WHEEL)
	@$(PIP) --python $(WHEEL)/bin/python install --quiet --no-deps dist/wheel/*.whl
	@$(BIN)/python -c $(PURELIB) > "$$($(WHEEL)/bin/python -c $(PURELIB))/dependencies.pth"
	@$(WHEEL)/bin/python -c 'import millpond; assert "$(WHEEL)" in millpond.__file__, millpond.__file__'
	@$(WHEEL)/bin/python -m pytest $(WHEEL_TESTS) $(PARALLEL) -m "not slow" $(ARGS)

test-processors: setup
	@$(BIN)/python tests/processors.py $(ARGS)

# The peers have virtual environments of their own, under .venv-bench.
bench:
	@$(PYTHON) -m benchmarks.peers.environments
	@.venv-bench/common/bin/python -m benchmarks.cpu.run $(ARGS)

bench-adapters:
	@$(PYTHON) -m benchmarks.peers.environments common
	@.venv-bench/common/bin/python -m benchmarks.cpu.adapters $(ARGS)

# Any warning, such as a link to nothing, fails it.
docs: setup
	@$(BIN)/python docs/site/stage.py build/docs
	@cd build/docs && ../../$(BIN)/zensical build --clean --strict

# VERSION=1.2.3, a release's tag, has to be the version of everything that is built.
distributions: setup
	@rm -rf dist/release
	@for folder in . integrations/*/; do (cd $$folder && $(CURDIR)/$(BIN)/python -m hatchling build \
		-d $(CURDIR)/dist/release >/dev/null) || exit 1; done
	@$(BIN)/twine check --strict dist/release/*
	@test -z "$(VERSION)" || for file in dist/release/*; do case $$file in \
		*-$(VERSION)-*.whl | *-$(VERSION).tar.gz) ;; *) echo "$$file is not $(VERSION)" >&2; exit 1 ;; esac; done

test-install:
	@$(PYTHON) tests/documentation/install_lines.py $(ARGS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

typecheck: setup
	@$(BIN)/mypy

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

check: lint typecheck test

clean:
	rm -rf .venv .venv-bench $(WHEEL) $(NODE)/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find src tests examples benchmarks integrations -type d -name __pycache__ -exec rm -rf {} +
