# Everything from a bare machine with Python 3.11 or newer:
#   make demo   simulate, train, reconstruct, evaluate, report (runs/demo/)
#   make test   the test suite
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOCK := constraints.txt
pinned = $(shell grep -i '^$(1)==' $(LOCK))

.PHONY: install demo test lint types format lock clean
install: $(VENV)/.ready

# torch goes first: whatever build of the pinned version this machine offers is then kept by everything after it;
# fastmri, an oracle of the tests, goes last and alone: its dependencies ask for torchvision, which nothing here uses
$(VENV)/.ready: pyproject.toml $(LOCK)
	$(PYTHON) -c 'import sys; sys.exit("sciml-monarch needs Python 3.11 or newer, not " + sys.version.split()[0] + "; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade $(call pinned,pip)
	$(BIN)/python -m pip install --quiet $(call pinned,torch) -c $(LOCK)
	$(BIN)/python -m pip install --quiet $(call pinned,hatchling) $(call pinned,editables) -c $(LOCK)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[mri]' --group dev -c $(LOCK)
	$(BIN)/python -m pip install --quiet --no-deps $(call pinned,fastmri)
	touch $@

demo: install
	$(BIN)/sciml-monarch demo --out runs/demo --overwrite

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# after a change of dependencies: the newest versions that fit pyproject.toml, in a fresh environment
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --upgrade pip
	.venv-lock/bin/python -m pip install --quiet $(call pinned,torch) hatchling editables
	.venv-lock/bin/python -m pip install --quiet --no-build-isolation --editable '.[mri]' --group dev
	.venv-lock/bin/python -m pip install --quiet --no-deps fastmri
	.venv-lock/bin/python -m pip freeze --all --exclude-editable | sed 's/+[a-z0-9.]*$$//; / @ /d' | sort -f > $(LOCK)
	rm -rf .venv-lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis runs/demo
