"""Reports written and scored at each evaluation of an SFT run: the best checkpoint is the best by its findings."""

from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate.utils import gather_object, is_peft_model
from datasets import Dataset
from transformers import Trainer, TrainerCallback

from recipes.data.labels import load_labeler
from recipes.data.samples import to_samples
from recipes.evaluation.generation import encode_prompts, report_settings
from recipes.evaluation.scores import score_completions
from recipes.files import InputError
from recipes.trainers.checkpoints import weights_are_split


@dataclass
class ClinicalArguments:
    clinical_samples: int = field(
        default=0,
        metadata={"help": "Reports to write at each evaluation; metric_for_best_model can be clinical_f1 or mccs."},
    )
    clinical_labeler: str = field(default="lexical", metadata={"help": "What reads them: lexical, chexbert:MODEL."})
    clinical_max_new_tokens: int = field(default=256, metadata={"help": "Their length at most."})

    @property
    def metrics(self) -> tuple[str, ...]:
        """What ClinicalEvaluation adds to an evaluation, without `eval_`."""
        return ("clinical_f1", "mccs") if self.clinical_samples else ()


class ClinicalEvaluation(TrainerCallback):
    """Adds `eval_clinical_f1` and `eval_mccs` to each evaluation: of reports written greedily for validation studies.

    The first is the micro-F1 of 13 findings, uncertain as positive; `metric_for_best_model: clinical_f1` keeps the
    best checkpoint by it. `rows` are of the schema; the first `clinical_samples` are used, shared by the processes.
    Raises InputError without an eval_strategy, and where the weights are in parts (FSDP, ZeRO-3), since then no
    process can write alone.
    """

    def __init__(self, trainer: Trainer, arguments: ClinicalArguments, rows: Dataset, prompt: str, views: str):
        if weights_are_split(trainer.args):
            raise InputError(
                "--clinical_samples needs the whole model in each process: take accelerate_configs/multi_gpu.yaml, "
                "zero1.yaml or zero2.yaml, or leave it out and score checkpoints with generate.py and evaluate.py"
            )
        if trainer.args.eval_strategy == "no":
            raise InputError("--clinical_samples writes reports at each evaluation: set eval_strategy and eval_steps")
        self.trainer, self.processor = trainer, trainer.processing_class
        self.max_new_tokens = arguments.clinical_max_new_tokens
        self.labeler = load_labeler(arguments.clinical_labeler)
        rows = rows.select(range(min(arguments.clinical_samples, len(rows))))
        self.samples = to_samples(rows, prompt, views, keep=("report",))
        self.reference = np.asarray(self.labeler(self.samples["report"]))

    @torch.no_grad()
    def on_evaluate(self, args, state, control, metrics, **kwargs):
        numbers, written = range(args.process_index, len(self.samples), args.world_size), []
        for start in range(0, len(numbers), args.per_device_eval_batch_size):
            batch = numbers[start : start + args.per_device_eval_batch_size]
            written += zip(batch, self._write(self.samples[list(batch)]), strict=True)
        completions = dict(gather_object(written))
        texts = [completions[number] for number in range(len(self.samples))]
        figures = score_completions(texts, self.reference, self.labeler, margin=0.2)
        averages = figures["clinical_efficacy"]["13 labels, uncertain as positive"]
        found = {"eval_clinical_f1": averages["micro"]["f1"], "eval_mccs": figures["mccs"]}
        self.trainer.log(dict(found))
        metrics.update(found)  # Trainer looks here for metric_for_best_model

    def _write(self, batch: dict) -> list[str]:
        """The completion of each sample of `batch`."""
        tokenizer = self.processor.tokenizer
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        prompts = [message[0]["content"] for message in batch["prompt"]]
        side, tokenizer.padding_side = tokenizer.padding_side, "left"
        try:
            inputs = encode_prompts(self.processor, batch["images"], prompts, return_tensors="pt", padding=True)
        finally:
            tokenizer.padding_side = side
        inputs = inputs.to(model.device)
        core = model.get_base_model() if is_peft_model(model) else model
        training, settings = model.training, core.generation_config
        core.generation_config = report_settings(core, tokenizer, max_new_tokens=self.max_new_tokens)
        try:  # the checkpoint's own settings are saved with it, so they come back
            tokens = model.eval().generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        finally:
            core.generation_config = settings
            model.train(training)
        return self.processor.batch_decode(tokens, skip_special_tokens=True)
