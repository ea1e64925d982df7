# make demo        the whole road on drawn pedestrians, ending in runs/demo/report.html
# make test        the test suite
# make test-cpus   its numerical tests with the kernels of other processors
# All set up .venv by themselves on a fresh clone.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
CONSTRAINTS = $$($(RUN) -c 'import sys; print("constraints-py310.txt" if sys.version_info < (3, 11) else "constraints.txt")')
PACKAGES := packages/reid-eval packages/reid-models packages/dgnet-gen

.PHONY: demo test test-cpus lint clean help

help:
	@sed -n '1,4s/^# //p' Makefile

demo: $(VENV)/.ready
	$(RUN) -m pipelines demo --out runs/demo

test: $(VENV)/.ready
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-cpus: $(VENV)/.ready
	$(RUN) -m tests.cpus

lint: $(VENV)/.ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# The environment is made again when a requirement changes. What is in it already (a CPU-only torch, say) is kept.
$(VENV)/.ready: pyproject.toml constraints.txt constraints-py310.txt $(PACKAGES:%=%/pyproject.toml)
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade "pip>=25.1"
	$(RUN) -m pip install --quiet -c $(CONSTRAINTS) --group dev $(PACKAGES:%=-e %)
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache dist
