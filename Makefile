# Each target makes or refreshes .venv by itself. PYTHON picks the interpreter (3.11 to 3.13).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo dist docs test run-tests test-all test-matrix test-arm64 coverage mutation check bench clean
.DEFAULT_GOAL := test

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"edgetl needs Python 3.11 to 3.13, this is {v[0]}.{v[1]}: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@echo "installing edgetl and its developer tools (torch included: a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[all]" --group dev
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true # pip compiles on one core; files for other Pythons fail
	@touch $@

demo: $(VENV)/.ready
	$(BIN)/edgetl demo --out demo --overwrite

check: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The checks use the time in which the tests wait. A failed check fails the target.
test: $(VENV)/.ready
	$(MAKE) --no-print-directory --jobs 2 --output-sync=target check run-tests

run-tests: $(VENV)/.ready
	$(BIN)/python -m tests

test-all: check
	$(BIN)/python -m tests -m ""

# Lines and branches of edgetl/ that the tests execute, in child processes too. Fails below 90 %.
coverage: $(VENV)/.ready
	rm -rf .coverage
	$(BIN)/coverage run -m tests
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under=90

# Mutation score of the modules in [tool.mutmut], and the mutants that no test notices. Fails below 95 % in a module.
mutation: $(VENV)/.ready
	$(BIN)/python -m tests.mutation

# The lowest and the newest versions of every dependency, on each Python: half an hour and 20 GB.
test-matrix: $(VENV)/.ready
	$(BIN)/python -m tests.matrix

# Predictions of an arm64 device in qemu's emulation, compared with this host. Needs Debian, qemu-user-static and network access.
test-arm64: $(VENV)/.ready
	$(BIN)/python -m tests.arm64
	$(BIN)/python -m pytest -s -m slow tests/end_to_end/test_arm64.py

# The documentation site: docs/_build/html/index.html opens in a browser without a server.
docs: $(VENV)/.ready
	$(BIN)/python docs/_ext/manifest_schema.py
	$(BIN)/python docs/_ext/generated.py
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

# dist/ gets the wheel and the sdist. Both are checked, and the wheel is installed into a fresh environment.
dist: $(VENV)/.ready
	$(BIN)/python packaging/build_dist.py

# Suites of bench/suites. The result is saved in .benchmarks/, for `pytest-benchmark compare`.
bench: $(VENV)/.ready
	$(BIN)/python -m pytest bench/suites --benchmark-autosave --benchmark-columns=min,median,iqr,rounds
	$(BIN)/python -m bench.growth

clean:
	rm -rf $(VENV) .arm64 demo runs dist build docs/_build .coverage mutants .mypy_cache .ruff_cache .pytest_cache .hypothesis
