"""PPO in one file: a language model learns to answer in ten words. Any reward with TRL's signature will do.

accelerate launch recipes/examples/ppo_text.py --output_dir outputs/ppo_text
python recipes/examples/ppo_text.py --model_name_or_path FOLDER --use_cpu --bf16 false --max_steps 20
"""

from recipes.cli import parse_run, run  # before peft, whose import recipes/__init__.py quiets

# isort: split
from datasets import Dataset
from trl import ModelConfig, get_peft_config

from recipes.files import InputError
from recipes.trainers.ppo import PPOConfig, PPOTrainer

TOPICS = ["the heart", "the lungs", "the ribs", "the spine", "a pleural effusion", "a pneumothorax", "an X-ray"]


def ten_words_reward(completions: list, **kwargs) -> list[float]:
    """1 for an answer of ten words, less by a tenth for each word more or fewer, and at least 0."""
    counts = [len(completion[0]["content"].split()) for completion in completions]
    return [max(0.0, 1 - abs(count - 10) / 10) for count in counts]


def main() -> None:
    args, model_args = parse_run(PPOConfig, ModelConfig)
    if args.push_to_hub or args.log_completions_hub_repo:
        raise InputError("an example puts nothing on the Hub: leave --push_to_hub and --log_completions_hub_repo out")
    prompts = [[{"role": "user", "content": f"What is {topic}? Answer in one sentence."}] for topic in TOPICS]
    trainer = PPOTrainer(
        model=model_args.model_name_or_path or "Qwen/Qwen2.5-0.5B-Instruct",
        reward_funcs=ten_words_reward,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": prompts * 8}),
        peft_config=get_peft_config(model_args),  # --use_peft: LoRA; the reference is the model without it
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    run(main)
