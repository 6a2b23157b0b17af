# `make demo` and `make test` are all that a newcomer needs: each sets up .venv first where it is not there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Workers of the tests. Each takes the next test when it is done, and a file's tests stay together as far as that allows.
WORKERS ?= 2
SHARED := -n $(WORKERS) --dist worksteal

.PHONY: demo test lab notebooks check lint slow peers newest plan

demo: $(VENV)/ready
	$(BIN)/python -m lora_jax demo

test: $(VENV)/ready
	$(BIN)/python -m pytest $(SHARED)

lab: $(VENV)/ready
	$(BIN)/jupyter lab --notebook-dir=notebooks

notebooks: $(VENV)/ready
	$(BIN)/python tools/run_notebooks.py

check: lint test slow notebooks peers newest

lint: $(VENV)/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Programs that run for minutes are compiled as users compile them; what measures time has the machine to itself.
slow: $(VENV)/ready
	XLA_FLAGS= $(BIN)/python -m pytest $(SHARED) -m "slow and not alone"
	XLA_FLAGS= $(BIN)/python -m pytest -m alone

# The live comparisons with transformers and peft, in an environment that has them too.
peers: .venv-peers/ready
	.venv-peers/bin/python -m pytest $(SHARED) tests/test_parity_transformers.py tests/files/test_peft.py \
		tests/files/test_huggingface.py tests/files/test_smollm2.py tests/files/test_tokenizer.py \
		tests/files/test_chat_template.py tests/text/test_parity_tokenizers.py

# The unit tests on the newest Python and JAX, where a newer Python is present.
NEWEST := $(shell tools/newest_python.sh)
newest:
ifeq ($(NEWEST),)
	@echo "no Python newer than 3.11 here: the unit tests ran on $(PYTHON) alone"
else
	$(MAKE) test PYTHON=$(NEWEST) VENV=.venv-newest
endif

$(VENV)/ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "lora_jax needs Python 3.11 or newer: make PYTHON=python3.12 ..." && exit 1)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

.venv-peers/ready: requirements.txt requirements-peers.txt pyproject.toml
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-peers.txt
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# XLA's compilers for hardware that is not there, in an environment of their own: see docs/memory.md.
plan: .venv-plan/ready
	JAX_PLATFORMS=cpu .venv-plan/bin/python -m pytest tests/memory/test_compiler.py tests/memory/test_buffers.py

.venv-plan/ready: requirements.txt requirements-plan.txt pyproject.toml
	$(PYTHON) -m venv .venv-plan
	.venv-plan/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-plan.txt
	.venv-plan/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@
