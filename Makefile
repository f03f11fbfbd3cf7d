# `make demo` and `make test` each do all the set-up, once.

PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile -c constraints.txt
# torch's threads spin while they wait, which costs more than they gain on a busy machine
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint clean

demo: $(VENV)/installed
	$(VENV)/bin/python examples/digits.py

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest -q

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV)

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

# Without Graphviz on the machine, drawing to PDF takes the copy inside pygraphviz, where there is a wheel of it.
$(VENV)/installed: setup.py constraints.txt | $(VENV)/bin/pip
	@echo "Installing morphnas into $(VENV), once ..."
	@$(PIP) -e '.[test]'
	@command -v dot >/dev/null || $(PIP) --only-binary pygraphviz -e '.[pdf]' || \
		echo "No Graphviz: graphs will be written as .dot only."
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@$(PIP) -e '.[dev]'
	@touch $@
