"""How many tokens the prompts of LLM-RG4's scenarios have."""

import json
from pathlib import Path

from datasets import Dataset
from pyarrow.compute import list_value_length
from trl.data_utils import prepare_multimodal_messages

from modeling import LLMRG4Processor
from recipes.files import replacing
from rewards.scenarios import SCENARIOS


def count_tokens(
    samples: Dataset, processor: LLMRG4Processor, folder: str | Path | None = None
) -> dict[str, dict[str, float]]:
    """Prints and returns how many tokens the prompts of each scenario have; no image is read for it.

    Per scenario: `samples` in the data set, `visual` tokens and tokens of the whole `prompt`, means and largest.
    ATF's visual tokens do not depend on the scenario, those of interleaved do (A-36). `folder`: where
    they are kept too, in input_tokens.json.
    """
    counts = {}
    scenarios = samples["scenario"]
    prompts = samples.select_columns("prompt").with_format(None)
    views = list_value_length(samples.with_format("arrow")[:]["images"]).to_pylist()
    for scenario in SCENARIOS:
        rows = [i for i, name in enumerate(scenarios) if name == scenario]
        if not rows:
            continue
        visual, prompt = [], []
        for start in range(0, len(rows), 1000):
            texts = []
            for i in rows[start : start + 1000]:
                messages = prepare_multimodal_messages(prompts[i]["prompt"], images=[None] * views[i])
                text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
                texts.append(processor.write_out(text, views[i])[0])
            ids = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
            visual += [row.count(processor.image_token_id) for row in ids]
            prompt += map(len, ids)
        counts[scenario] = {
            "samples": len(rows),
            "visual": sum(visual) / len(visual),
            "visual, largest": max(visual),
            "prompt": sum(prompt) / len(prompt),
            "prompt, largest": max(prompt),
        }
        print(f"{scenario}: {len(rows)} samples; visual tokens {counts[scenario]['visual']:.0f}; prompt tokens "
              f"{counts[scenario]['prompt']:.0f}, {max(prompt)} at most")  # fmt: skip
    if folder is not None:
        with replacing(Path(folder) / "input_tokens.json") as file:
            file.write_text(json.dumps(counts, indent=1) + "\n")
    return counts
