# Two commands do everything: `make demo` and `make test`. Both make .venv first if it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := results/demo

.PHONY: demo test format checkpoints clean

demo: $(VENV)/.installed
	$(BIN)/python main.py --fgr_lamb 0 --out $(DEMO)/baseline --overwrite
	$(BIN)/python main.py --fgr_lamb 300 --out $(DEMO)/flow_gradient --overwrite
	$(BIN)/python evaluate.py --checkpoint $(DEMO)/baseline $(DEMO)/flow_gradient \
		--attack pgd stadv --budgets $(DEMO_BUDGETS) --out $(DEMO)

DEMO_BUDGETS := pgd=4/255,8/255,16/255,24/255,32/255,48/255 stadv=0.05,0.1,0.15,0.2,0.3,0.4

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The two small networks that checkpoints/ ships.
checkpoints: $(VENV)/.installed
	$(BIN)/python main.py --fgr_lamb 0 --out checkpoints/digits_baseline --overwrite --device cpu
	$(BIN)/python main.py --fgr_lamb 300 --out checkpoints/digits_fgr300 --overwrite --device cpu
	rm -f checkpoints/digits_*/last.safetensors checkpoints/digits_*/resume.pt

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/.installed
