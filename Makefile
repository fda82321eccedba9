# Everything needs only python3 (3.10 or newer, with venv and pip) and make; the tests gcc too.
#   make demo    train on digits, a fifth of them with wrong labels: all against 10 %
#   make test    lint, type-check and run the tests, on all cores
#   make test-fast    the same without the slow tests
#   make docs    build the documentation into site/, warnings are errors
# More for the command itself: make demo ARGS="--epochs 50"
# Another interpreter: make test PYTHON=python3.12 VENV=.venv-3.12

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
# Threads only get in one another's way in a network as small as this one.
DEMO = --data digits-noisy --methods full full-short fresh-random borderline \
	--epochs 30 --lr 0.05 --seeds 0
PYTEST = $(BIN)/python -m pytest --numprocesses auto --dist loadgroup --durations 15

.PHONY: demo test test-fast lint docs clean

demo: $(VENV)/.examples
	OMP_NUM_THREADS=1 $(BIN)/python examples/train.py $(DEMO) $(ARGS)

test: lint
	$(PYTEST) $(ARGS)

test-fast: lint
	$(PYTEST) -m "not slow" $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# A stamp says what is installed; it goes stale when pyproject.toml changes.
$(VENV)/.made:
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

$(VENV)/.examples: pyproject.toml $(VENV)/.made
	$(BIN)/python -m pip install --editable ".[examples]"
	touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.made
	$(BIN)/python -m pip install --editable ".[test]"
	touch $@ $(VENV)/.examples

$(VENV)/.docs: pyproject.toml $(VENV)/.made
	$(BIN)/python -m pip install --editable ".[docs]"
	touch $@ $(VENV)/.examples

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
