"""`python -m recipes`: what there is, a line each, in the order in which one needs it."""

from pathlib import Path

from recipes.usage import docstring_lines

GROUPS = {
    "To begin with": "demo setup_gpu",
    "Data": "build_phantom build_iu_xray build_mimic_cxr build_from_table build_public_set dataset_stats",
    "Data for LLM-RG4": "build_mimic_rg4 weigh_tokens",
    "Labelers and reward models": "convert_chexbert train_chexbert convert_radgraph convert_crepe train_crepe "
    "convert_discbert train_discbert",
    "Models to start from": "build_tiny convert_biomedclip convert_llmrg4 generate_region_descriptions",
    "Training": "sft_mrgr1 grpo_mrgr1 sft_llmrg4 rl_llmrg4 sft_lmrrg ppo_lmrrg rl build_preferences dpo ablations lab",
    "Generation": "generate app",
    "Evaluation": "evaluate reward_card certify",
    "Sharing": "push_checkpoint push_dataset",
}


def contents() -> str:
    """The scripts by group, each with the first line of its docstring."""
    blocks = []
    for title, names in GROUPS.items():
        lines = [
            f"  {name:<18}  {docstring_lines(Path(__file__).with_name(f'{name}.py'))[0]}" for name in names.split()
        ]
        blocks.append("\n".join([title, *lines]))
    return "\n\n".join(blocks)


if __name__ == "__main__":
    print(contents())
    print("\npython recipes/NAME.py --help says more; python -m recipes.NAME is the same.")
