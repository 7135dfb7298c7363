# Targets that need .venv make it if it is missing or older than what it is made from.
# PYTHON chooses the interpreter (3.11 or newer): make test PYTHON=python3.12

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV := .venv
INSTALLED := $(VENV)/.installed
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
# Stored outputs are those of ioi-mini on a CPU, without progress bars.
REFERENCE := COURSE_MODEL=ioi-mini COURSE_DEVICE=cpu TQDM_DISABLE=1
# The tests share the cores out: one thread in each worker, one worker for each core.
TEST_ENVIRONMENT := $(REFERENCE) OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONDONTWRITEBYTECODE=1
# Matplotlib lists the fonts once for each user; if that is slow it says so inside a notebook.
LIST_FONTS := $(VENV)/bin/python -c "import matplotlib.font_manager"
# Jupyter refuses to run as root unless told to; in containers one often is.
ALLOW_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: help lab test refresh bench publish lint colab-check gpt2-check reference oldest newest

help:
	@echo "make lab          open the course in JupyterLab"
	@echo "make test         run every notebook and every other test"
	@echo "make refresh      run the notebooks and store their outputs (for those who change them)"
	@echo "make bench        time the sweeps on a model of GPT-2 small's shape (some minutes)"
	@echo "make lint         check style"
	@echo "make publish      set the address of your copy: make publish REPO=https://github.com/OWNER/NAME"
	@echo "make reference    compare the real GPT-2 small with published figures (online)"
	@echo "make gpt2-check   run every notebook on a model of GPT-2 small's shape"
	@echo "make colab-check  run every notebook alone, in an environment like Colab's (online)"
	@echo "make oldest       run everything with the oldest allowed versions (online); make newest"

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make ... PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: -c $(CONSTRAINTS) -e ".[test]"
	@touch $@

lab: $(INSTALLED)
	$(VENV)/bin/jupyter lab $(ALLOW_ROOT) --LabApp.default_url=/lab/tree/notebooks/01_ioi_setup.ipynb

test: $(INSTALLED)
	$(LIST_FONTS)
	$(TEST_ENVIRONMENT) $(VENV)/bin/python -m pytest -n auto -p no:cacheprovider

refresh: $(INSTALLED)
	$(LIST_FONTS)
	$(REFERENCE) $(VENV)/bin/jupyter nbconvert --to notebook --execute --inplace \
	    --ExecutePreprocessor.record_timing=False \
	    --ExecutePreprocessor.store_widget_state=False $(NOTEBOOKS)
	$(REFERENCE) $(VENV)/bin/python -m helpers.picture --figure data/handover.png

bench: $(INSTALLED)
	$(VENV)/bin/python tests/bench.py

colab-check:
	$(PYTHON) tests/colab_check.py .venv-colab

gpt2-check: $(INSTALLED)
	$(LIST_FONTS)
	$(VENV)/bin/python tests/gpt2_check.py artifacts/gpt2

reference: $(INSTALLED)
	$(VENV)/bin/python tests/gpt2_reference.py

oldest newest:
	$(PYTHON) tests/version_check.py $@ .venv-$@

publish:
	$(PYTHON) -m helpers.publish "$(REPO)"

lint: $(INSTALLED)
	$(VENV)/bin/ruff check --no-cache .
	$(VENV)/bin/ruff format --no-cache --check helpers tests
