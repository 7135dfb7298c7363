# Every target makes .venv itself if it is missing or older than what it is made from.
# PYTHON chooses the interpreter (3.11 or newer): make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
# The tests share the cores out: one thread in each worker, one worker for each core.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONDONTWRITEBYTECODE=1

.PHONY: help lab test refresh lint

help:
	@echo "make lab      open the course in JupyterLab"
	@echo "make test     run every notebook and every other test"
	@echo "make refresh  run the notebooks and store their outputs (for those who change them)"
	@echo "make lint     check style"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make ... PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@

lab: $(INSTALLED)
	$(VENV)/bin/jupyter lab notebooks/01_ioi_setup.ipynb

test: $(INSTALLED)
	$(TEST_ENVIRONMENT) $(VENV)/bin/python -m pytest -n auto -p no:cacheprovider

refresh: $(INSTALLED)
	COURSE_MODEL=ioi-mini $(VENV)/bin/jupyter nbconvert --to notebook --execute --inplace \
	    --ExecutePreprocessor.record_timing=False \
	    --ExecutePreprocessor.store_widget_state=False $(NOTEBOOKS)
	$(VENV)/bin/python -m helpers.picture ioi-mini --figure data/handover.png

lint: $(INSTALLED)
	$(VENV)/bin/ruff check --no-cache .
	$(VENV)/bin/ruff format --no-cache --check helpers tests
