# `make quickstart` runs a small experiment, `make check` is for every change, `make test` is what CI runs and
# `make site` builds the documentation.
# Each makes .venv first, from constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart check test site style types fast lint clean

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

quickstart: .venv/.installed
	$(BIN)/spirl run tune_configs/quickstart.yaml

# Style, types and fast tests in about three minutes on two cores; mypy and the tests run at the same time.
check: .venv/.installed
	$(MAKE) --no-print-directory --jobs=2 --keep-going style types fast

# Two processes share the files of tests: most tests wait for Ray's processes, more than they compute.
test: style types
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The documentation as a site, in build/site; a warning stops it.
site: .venv/.installed
	$(BIN)/mkdocs build --strict --site-dir build/site

style: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed
	$(BIN)/mypy

fast: .venv/.installed
	$(BIN)/python -m pytest -q -m 'not slow and not interrupts and not cluster'

lint: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
