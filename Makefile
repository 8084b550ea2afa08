# Each target installs what it needs, at the versions of constraints.txt, into $(VENV).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
export HF_HUB_DISABLE_TELEMETRY := 1
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: demo test test-slow test-cluster gpu-check coverage lint docs schema dist bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/imagen-ray run configs/demo.yaml

# Two processes, since many tests wait for Ray to start. A file stays in one process, since its tests share fixtures; the
# longest files come first, so that none runs alone at the end.
LONGEST := tests/test_end_to_end.py tests/test_your_urls.py
OTHERS := $(filter-out $(LONGEST),$(wildcard tests/test_*.py)) $(filter-out %/helpers/ %/__pycache__/,$(wildcard tests/*/))
test: lint
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder $(LONGEST) $(OTHERS)

test-slow: $(VENV)/.installed-dev
	$(BIN)/pytest -m slow

# Hosts made of network namespaces, killed and cut off during a run. Needs root; the second file needs sshd and rsync.
# Part of test-slow too.
test-cluster: $(VENV)/.installed-dev
	$(BIN)/pytest -m slow tests/pipeline/execution/test_executor_lost_machines.py \
		tests/pipeline/runtime/test_ray_session_on_premise.py \
		tests/pipeline/stages/test_select_lost_machines.py

# `make bench` runs these; the others, and those that take a finished run, say in their docstrings how.
BENCHMARKS := startup download embed loader host_budget score data_scaling distances codec_training equality zero_memory adapter_memory trainer_overhead plan
bench: $(VENV)/.installed-dev
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/pip install --quiet --no-deps --upgrade --target .peers mosaicml-streaming brotli python-snappy cramjam zstd catalogue
	$(BIN)/pip install --quiet --no-deps --upgrade --target .peers/unets imagen-pytorch==2.1.0 diffusers==0.42.1 accelerate beartype ema-pytorch kornia kornia-rs pytorch-warmup sentencepiece
	PYTHONPATH=.peers/unets $(BIN)/python -m benchmarks.train_step
	for name in $(BENCHMARKS); do PYTHONPATH=.peers $(BIN)/python -m benchmarks.$$name || exit 1; done

# Everything on a GPU, in at most ten minutes; results, gpu_*, in benchmarks/results/.
gpu-check: $(VENV)/.installed
	$(BIN)/python -m benchmarks.gpu_check

# The tests of `make test`, slower: a table in the terminal, annotated sources in build/coverage.
coverage: $(VENV)/.installed-dev
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term --cov-report=html $(LONGEST) $(OTHERS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What `imagen-ray schema` prints, for the editors of configs/*.yaml. A test says when it is out of date.
schema: $(VENV)/.installed
	$(BIN)/imagen-ray schema > configs/schema.json.tmp && mv configs/schema.json.tmp configs/schema.json

# The site in site/: the pages of docs/, and an API reference read from the docstrings without importing the code.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dist: $(VENV)/.python
	rm -rf build/lib build/bdist.* dist
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info[:2] in ((3, 11), (3, 12)) else "imagen-ray needs Python 3.11 or 3.12: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

# Not runs/: what users trained lies there.
clean:
	rm -rf $(VENV) build dist site .peers .coverage .coverage.*
