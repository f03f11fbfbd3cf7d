# `make demo` and `make test` each do all the set-up, once.

PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile -c constraints.txt
# torch's threads spin while they wait, which costs more than they gain on a busy machine
export OMP_NUM_THREADS ?= 1
# where it is set, every process compiles thousands of modules anew, for seconds
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test lint docs lowest clean

demo: $(VENV)/installed
	$(VENV)/bin/python examples/digits.py

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest -q -n auto --maxprocesses 4

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/installed-dev
	$(VENV)/bin/pdoc --docformat numpy -o build/docs morphnas morphnas.estimators.base morphnas.graph morphnas.search morphnas.legacy

# The tests with the oldest versions that setup.py allows. On Linux the PyTorch among them is gigabytes of CUDA packages.
lowest:
	$(PYTHON) -m venv .lowest
	grep -o '"[a-z][a-z0-9-]*>=[0-9.]*"' setup.py | tr -d '"' | sed 's/>=/==/' > .lowest/constraints.txt
	.lowest/bin/python -m pip --disable-pip-version-check install --quiet --no-compile -c .lowest/constraints.txt -e '.[test]'
	.lowest/bin/python -m pytest -q

clean:
	rm -rf $(VENV) .lowest

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
