# Each target makes .venv first where it is missing or older than what it is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Processes that test at once.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(os.cpu_count(), 8))')

# Seconds that `make fuzz` takes, about.
FUZZ_SECONDS ?= 600

PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Published weights that `make explain-demo` downloads, or a file of `python -m models.weights import`.
DEMO ?= hf:timm/tf_efficientnet_lite0.in1k

.PHONY: help setup train check test test-all fuzz lint docs bench studies report explain-demo clean

help:
	@echo "make setup     create .venv and install the project with the tested versions"
	@echo "make train     train configs/digits.py in runs/digits (about a minute)"
	@echo "make check     lint, and the unit tests that train no runs and start no processes (less than a minute)"
	@echo "make test      every kind of test, of relatives that share code a few (23 minutes on two cores); what CI runs"
	@echo "make test-all  all tests, compiled as users compile, for TPUs, and trackers (extras); CI_FULL=1 .ci/run"
	@echo "make fuzz      mutates each kind of file that is read, and counts crashes, hangs and silent changes ($(FUZZ_SECONDS) s)"
	@echo "make lint      ruff and pyright"
	@echo "make docs      build/docs: the pages and the API as one site (the extra docs); fails on a broken link"
	@echo "make bench     networks (one by batch), CIFAR, data, start-up beside PyTorch and timm (the extra bench); skipping"
	@echo "make studies   all studies at the smallest scale, in runs/studies; finished trials are not run again"
	@echo "make report    report/index.html, report/report.md, and what is generated in README.md and docs/ (minutes)"
	@echo "make explain-demo   explained/: what an ImageNet network ($(DEMO)) sees in two photographs"
	@echo "make clean     remove .venv and caches; runs/ stays"

$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed, this is %d.%d; try make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps jax2onnx
	@touch $@

setup: $(READY)

train: $(READY)
	$(BIN)/python -m train --config=configs/digits.py --workdir=runs/digits

check: lint
	$(PYTEST) -m "check and not full"

test: $(READY)
	$(PYTEST) --junitxml=runs/tests.xml \
	  -o junit_suite_name="$$(git describe --always --exclude='*' --dirty=+changes --abbrev=12 2>/dev/null)"

test-all: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[topology,wandb,mlflow]'
	XLA_FLAGS=--xla_backend_optimization_level=3 $(PYTEST) -m ""

fuzz: $(READY)
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.fuzz --seconds=$(FUZZ_SECONDS) --out=experiments/results

lint: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m pyright

docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m experiments.report.site --out=build/docs

bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m experiments.bench
	$(BIN)/python -m experiments.bench --cases=resnet20 --sweep=batch --quick
	$(BIN)/python -m experiments.bench.skipped

studies: $(READY)
	$(BIN)/python -m experiments.run all --scale=digits

report: $(READY)
	$(BIN)/python -m experiments.report --readme=README.md --docs=docs

explain-demo: $(READY)
	$(BIN)/python -m experiments.explain --workdir=$(DEMO) --out=explained \
	  --image="$$($(BIN)/python -c 'import sklearn, pathlib; print(pathlib.Path(sklearn.__file__).parent / "datasets/images")')" \
	  --method="grad_cam|guided_backprop|guided_grad_cam|occlusion"

clean:
	rm -rf $(VENV) build *.egg-info .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
