# A fresh machine needs make, Python 3.11-3.13 and a package registry; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup quickstart test-fast test test-lowest gpu-rehearsal check resolve docs docs-links tutorial format lock release clean

setup: $(STAMP)

# A run starts ten processes and more. Where Python may not write bytecode (PYTHONDONTWRITEBYTECODE, as in many images),
# each would compile Ray and torch anew, which takes 2-3 times as long as the imports themselves: so they are compiled here.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Python 3.11, 3.12 or 3.13 is needed; $(PYTHON) is $$($(PYTHON) --version). Set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $(STAMP)

quickstart: setup
	$(BIN)/vicc quickstart

# Tests that start no Ray. A file's tests stay together, as they share what is slow to make.
test-fast: setup
	$(BIN)/python -m pytest -m "not cluster" --numprocesses 2 --dist loadfile

# Tests that start Ray follow, one after another.
test: test-fast
	$(BIN)/python -m pytest -m cluster

# The fast tests with the lowest version of each package that pyproject.toml allows, in an environment of their own (7 GB).
LOWEST := .venv-lowest
LOWEST_STAMP := $(LOWEST)/.installed
$(LOWEST_STAMP): pyproject.toml | setup
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(BIN)/uv pip compile --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --no-deps --no-header --no-annotate \
		--extra faiss --extra mlflow --extra onnx --extra wandb -o $(LOWEST)/lowest.txt pyproject.toml
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --constraint $(LOWEST)/lowest.txt -e '.[dev]'
	@touch $(LOWEST_STAMP)

test-lowest: $(LOWEST_STAMP)
	$(LOWEST)/bin/python -m pytest -m "not cluster" --numprocesses 2 --dist loadfile

# The one command for a GPU machine (benchmarks/gpu_day.py), at tiny sizes on the CPU, with the older torch that such machines have.
gpu-rehearsal: setup
	test -x .venv-gpu/bin/python || $(PYTHON) -m venv .venv-gpu
	$(BIN)/uv pip install --quiet --python .venv-gpu/bin/python -r benchmarks/gpu-requirements.txt
	.venv-gpu/bin/python benchmarks/gpu_day.py --rehearse

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site; a warning is an error. It shows what `make tutorial` kept in the notebook. Pages of the reference are made from the code (docs/reference_pages.py).
docs: setup
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --jobs auto -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# The addresses that pages name answer (needs the network).
docs-links: setup
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b linkcheck docs docs/_build/linkcheck

# Runs the tutorial's notebook and keeps what it shows; the tests run it without keeping.
tutorial: setup
	$(BIN)/python docs/tutorial_outputs.py

# Whether the lock can be installed on every platform and Python of the README. Needs the package registry, no other machine.
resolve: setup
	.ci/resolve

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Pins every package for every supported Python and platform, by version and by what its files hold, without the registry's
# address. vicc_ray/versions.py has the highest tested versions of some, which a test compares with it.
lock: setup
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-header --no-annotate --upgrade \
		--generate-hashes -o requirements.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade \
		-o benchmarks/gpu-requirements.txt benchmarks/gpu-requirements.in

# Builds and checks wheel and source distribution, and tags the commit here; uploads nothing.
release: setup
	BIN=$(BIN) .ci/release

clean:
	rm -rf $(VENV) .venv-gpu $(LOWEST) runs dist docs/_build .mypy_cache .ruff_cache .pytest_cache
