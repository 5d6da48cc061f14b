# Every target sets the machine up first (requirements/setup.sh); that is at once where it was done before.
# `make check` before a commit, `make test` before a push.

PYTHON = "$$(requirements/setup.sh --dev)"
BENCHMARKS = $(shell grep -l __main__ benchmarks/*.py)
IN_OTHER_PROCESSES = tests/test_quickstart.py tests/test_packaged.py
FAST = -m "not engine and not process and not compat"

.PHONY: setup test without-engine with-engine check format compat torture bench fuzz lock clean lint types fast

setup:
	@requirements/setup.sh --dev >/dev/null

# Two at a time: what waits in one leaves the cores to the other.
test: setup
	@$(MAKE) --no-print-directory --jobs 2 --keep-going --output-sync=target without-engine with-engine

without-engine:
	$(PYTHON) -m pytest -m "not engine and not compat"
	$(PYTHON) -m pytest -m "engine and not compat" $(IN_OTHER_PROCESSES)

with-engine:
	$(PYTHON) -m pytest -m "engine and not compat" --durations 15 $(IN_OTHER_PROCESSES:%=--ignore %)

check: setup
	@$(MAKE) --no-print-directory --jobs 2 --keep-going --output-sync=target lint types fast

lint:
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m ruff check

types:
	$(PYTHON) -m mypy --strict

fast:
	$(PYTHON) -m pytest -q $(FAST)

format: setup
	$(PYTHON) -m ruff format
	$(PYTHON) -m ruff check --fix

compat: setup
	$(PYTHON) tests/compat/run.py $(ARGS)

# Hundreds of kills and crashes; docs/reliability.md says what they show and how long that takes.
torture: setup
	$(PYTHON) tests/torture/run.py $(ARGS)

# Every script of benchmarks/ prints its tables; benchmarks/README.md says how long that takes.
bench: setup
	@failed=0; for script in $(BENCHMARKS); do \
		printf '\n== %s ==\n' "$$script"; $(PYTHON) "$$script" || failed=1; \
	done; exit $$failed

# tests/fuzz/targets.py, 20 s each; ARGS="--seconds 300 journal" fuzzes one for longer. Findings lie in tests/fuzz/found/.
fuzz: setup
	@test -d .cache/fuzz/atheris || $(PYTHON) -m pip install --quiet --no-deps --target .cache/fuzz atheris==3.0.0
	PYTHONPATH=.:.cache/fuzz nice -n 19 $(PYTHON) tests/fuzz/run.py $(ARGS)

lock:
	requirements/lock.sh

# What can be made again; never runs/.
clean:
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
