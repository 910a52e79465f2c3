"""Reports written and scored at each evaluation of an SFT run: the best checkpoint is the best by its findings."""

import numpy as np
import torch
from accelerate.utils import gather_object, is_peft_model
from transformers import Trainer, TrainerCallback

from recipes.data.labels import load_labeler
from recipes.evaluation.generation import encode_prompts, report_settings
from recipes.evaluation.scores import score_completions
from recipes.files import InputError


class ClinicalEvaluation(TrainerCallback):
    """Adds `eval_clinical_f1` and `eval_mccs` to each evaluation: of reports written greedily for validation studies.

    The first is the micro-F1 of 13 findings, uncertain as positive; `metric_for_best_model: clinical_f1` keeps the
    best checkpoint by it. The first `args.clinical_samples` samples of the trainer's `eval_dataset` are used, shared
    by the processes, which each need the whole model. Raises InputError where they have no `prompt`, `images` or
    `report`.
    """

    def __init__(self, trainer: Trainer):
        samples, args = trainer.eval_dataset, trainer.args
        missing = {"prompt", "images", "report"} - set(getattr(samples, "column_names", None) or ())
        if missing:
            raise InputError(f"--clinical_samples needs validation samples with a column {min(missing)}")
        self.trainer, self.processor = trainer, trainer.processing_class
        self.max_new_tokens = args.clinical_max_new_tokens
        self.labeler = load_labeler(args.clinical_labeler)
        self.samples = samples.select(range(min(args.clinical_samples, len(samples))))
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
        scores = {"eval_clinical_f1": averages["micro"]["f1"], "eval_mccs": figures["mccs"]}
        self.trainer.log(dict(scores))
        metrics.update(scores)  # Trainer looks here for metric_for_best_model

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
