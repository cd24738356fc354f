# `make reproduce`, `make test`, and `make paper` for every table from its source. They make .venv the first time.
PYTHON  ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PROFILE ?= quick
CORES   ?= all
GPUS    ?= 1
RUNS    ?= 1000000
SECONDS ?= 3600
COUNT   ?= 100000
DATA    ?= train
VALID   ?= valid
RUN     ?= runs
MINUTES ?= 11
# An index or folder of torch's CPU builds, to spare Linux the CUDA libraries: make TORCH_INDEX=...
TORCH_INDEX ?=
# What other machines have: torch's kernels for any x86-64, no AVX-512, no AMX; one thread, several
MACHINES := ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 \
	OMP_NUM_THREADS=1 OMP_NUM_THREADS=4
BIN     := .venv/bin
READY   := .venv/.ready-$(shell { cat requirements.lock; sed '/^\[tool.pytest/,$$d' pyproject.toml; } | cksum | cut -d' ' -f1)
FLOW    := .venv/.workflow-$(shell cksum < workflow/requirements.txt | cut -d' ' -f1)
DOCS    := .venv/.docs-$(shell cksum < docs/requirements.txt | cut -d' ' -f1)

.DEFAULT_GOAL := help
.PHONY: help reproduce paper test test-slow test-portable train-scalar fuzz fuzz-images lab explore site lint refresh clean
.DELETE_ON_ERROR:

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

reproduce: $(READY) ## Run every notebook and write results/quick/report.html (PROFILE=cpu: on Kodak)
	@$(BIN)/mcml reproduce --profile $(PROFILE) $(ARGS)

# Its own lock, in the Snakefile, ends with the process; snakemake's outlive a kill.
paper: $(FLOW) ## Remake every table: PROFILE=quick, released (shipped weights, Kodak), cpu or gpu (hours)
	@$(BIN)/snakemake --snakefile workflow/Snakefile --cores $(CORES) --resources gpu=$(GPUS) --nolock \
	  --rerun-incomplete --show-failed-logs --quiet rules --config profile=$(PROFILE) $(ARGS)

# One thread each: those of two processes on two cores wait for each other, ten times as long.
test: $(FLOW) $(DOCS) ## Run the whole test suite, notebooks included
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --check --quiet .
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 --dist loadscope -m "not slow" \
	  --nbval --nbval-current-env $(ARGS)

test-slow: $(FLOW) ## Run what is too long for every time
	@$(BIN)/python -m pytest -m slow $(ARGS)

test-portable: $(FLOW) $(DOCS) ## Run the tests as CPUs without AMX or AVX-512 would, and on 1 and 4 threads
	@log=$$(mktemp); for machine in $(MACHINES); do \
	  env $$machine $(BIN)/python -m pytest -n 2 --dist loadscope -m "not slow" -q $(or $(ARGS),tests) \
	    >$$log 2>&1 || { failed=1; cat $$log; }; \
	  printf '%-30s %s\n' $$machine "$$(tail -n 1 $$log)"; \
	done; rm $$log; exit $${failed:-0}

# Needs no .venv: on a bare machine with a GPU, python3 with torch, numpy, Pillow, safetensors, lightning.
SCALAR = $(or $(wildcard $(BIN)/python),python3) -m mcml train --quantizer scalar --profile gpu \
	--data $(DATA) --valid $(VALID) $(ARGS)
train-scalar: ## Train the released scalar models anew on a GPU (DATA=, VALID=, RUN=, MINUTES=)
	$(SCALAR) --variant fusion --run-dir $(RUN)/scalar_fusion --minutes $$(echo $(MINUTES) | awk '{print .77 * $$1}')
	$(SCALAR) --variant independent --from $(RUN)/scalar_fusion/model --train Cb,Cr --set stage.encoder_from=1 \
	  --set stage.prior_from=1 --set stage.rounding_from=0 --run-dir $(RUN)/scalar_independent \
	  --minutes $$(echo $(MINUTES) | awk '{print .23 * $$1}')

fuzz: $(READY) ## Feed the decoder a million damaged files (RUNS=, SECONDS=)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || \
	 $(BIN)/python -m pip install --disable-pip-version-check --quiet atheris==3.0.0
	@$(BIN)/python tests/fuzz_decode.py --runs $(RUNS) --seconds $(SECONDS) $(ARGS)

fuzz-images: $(READY) ## Feed the reader pictures of every format with changed headers (COUNT=, or ARGS=)
	@$(BIN)/python tests/fuzz_images.py --count $(COUNT) $(ARGS)

lab: $(READY) ## Open the notebooks in JupyterLab
	@$(BIN)/jupyter lab --notebook-dir=. notebooks/01_data_preparation.ipynb

site: $(DOCS) ## Render README, notebooks, documents, tables and API to docs/_build/html
	@rm -rf docs/_build docs/api
	@$(BIN)/python -m sphinx -q -W --keep-going -c docs -d docs/_build/doctrees . docs/_build/html
	@echo docs/_build/html/index.html

# Cells that are text to be read are left out; --no-browser and a port by ARGS.
explore: $(READY) ## Open the explorer: your photograph, any codec, a slider (ARGS=--no-browser)
	@$(BIN)/voila notebooks/00_try_it.ipynb --Voila.tornado_settings='{"websocket_max_message_size": 100000000}' \
	  --TagRemovePreprocessor.enabled=True \
	  --TagRemovePreprocessor.remove_cell_tags=article --TagRemovePreprocessor.remove_cell_tags=nbval-check-output $(ARGS)

lint: $(READY) ## Format and lint code and notebooks, write the notebooks' text anew
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .
	@$(BIN)/python tests/regenerate.py --text

refresh: $(READY) ## Execute the committed notebooks anew and rewrite golden files and README figures
	@$(BIN)/python tests/regenerate.py

clean: ## Remove results and the environment
	rm -rf .venv .snakemake results/quick results/cpu results/gpu results/remade data/cache docs/_build docs/api

# Made anew whenever the lock or the packages that pyproject names change, or a set-up was cut off.
$(READY):
	@test -n "$(PYTHON)" || { echo "mcml needs Python 3.11 or newer with venv and pip: install it, or say make PYTHON=/path/to/python3"; exit 1; }
	@echo "setting up .venv with $(PYTHON): about 2 GB, a minute or a few; log in .venv/setup.log"
	@$(PYTHON) -m venv --clear .venv
	@{ { test -z "$(TORCH_INDEX)" || $(BIN)/python -m pip install --disable-pip-version-check \
	       --find-links "$(TORCH_INDEX)" --extra-index-url "$(TORCH_INDEX)" $$(grep '^torch==' requirements.lock)+cpu ; } && \
	   $(BIN)/python -m pip install --disable-pip-version-check -r requirements.lock && \
	   $(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e . ; } \
	   > .venv/setup.log 2>&1 || { tail -n 15 .venv/setup.log; echo "set-up failed: see .venv/setup.log"; exit 1; }
	@touch $(READY)

$(FLOW): $(READY) workflow/requirements.txt
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps -r workflow/requirements.txt
	@touch $(FLOW)

$(DOCS): $(READY) docs/requirements.txt
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps -r docs/requirements.txt
	@touch $(DOCS)
