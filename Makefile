# make demo   trains a small KANsformer on scans of digits and predicts one
# make test   runs every test
# make lint   checks style and types
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test lint clean

demo: $(VENV)/demo-ready
	$(RUN) train.py --data-path digits --output weights/demo --overwrite
	$(RUN) examples/write_digit.py weights/demo/digit.png
	$(RUN) predict.py weights/demo/digit.png --weights weights/demo/best.safetensors --topk 3

test: $(VENV)/test-ready
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal

lint: $(VENV)/test-ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python 3.10 or newer is needed: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo-ready: requirements.txt | $(VENV)/bin/python
	$(RUN) -m pip install -r requirements.txt
	touch $@

$(VENV)/test-ready: requirements.txt requirements-dev.txt | $(VENV)/bin/python
	$(RUN) -m pip install -r requirements-dev.txt
	touch $@ $(VENV)/demo-ready
