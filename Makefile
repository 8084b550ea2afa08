# Each target sets up what it needs from pins; none needs another to have been run.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
export HF_HUB_DISABLE_TELEMETRY := 1
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: demo test test-slow test-cluster lint bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/imagen-ray run configs/demo.yaml

# Two processes: much of it waits for Ray to start. A file stays in one, since its tests share what was started; the
# longest come first, lest the last one is waited for.
LONGEST := tests/test_end_to_end.py tests/test_your_urls.py
OTHERS := $(filter-out $(LONGEST),$(wildcard tests/test_*.py)) tests/dataprep tests/eval tests/pipeline tests/train
test: lint
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder $(LONGEST) $(OTHERS)

test-slow: $(VENV)/.installed-dev
	$(BIN)/pytest -m slow

# Hosts of network namespaces: needs root (and for the one that Ray's launcher sets up, sshd and rsync). Machines are
# killed and cut off under a run. Part of test-slow as well.
test-cluster: $(VENV)/.installed-dev
	$(BIN)/pytest -m slow tests/pipeline/test_lost_machines.py tests/pipeline/test_on_premise.py

# Those that need no finished run; `python -m benchmarks.NAME runs/demo` with demo, sampling and cluster takes one.
BENCHMARKS := download embed loader score data_scaling distances codec_training equality zero_memory trainer_overhead plan
bench: $(VENV)/.installed-dev
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/pip install --quiet --no-deps --upgrade --target .peers mosaicml-streaming brotli python-snappy cramjam zstd catalogue
	$(BIN)/pip install --quiet --no-deps --upgrade --target .peers/unets imagen-pytorch==2.1.0 diffusers==0.42.1 accelerate beartype ema-pytorch kornia kornia-rs pytorch-warmup sentencepiece
	PYTHONPATH=.peers/unets $(BIN)/python -m benchmarks.train_step
	for name in $(BENCHMARKS); do PYTHONPATH=.peers $(BIN)/python -m benchmarks.$$name || exit 1; done

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

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

clean:
	rm -rf $(VENV) runs
