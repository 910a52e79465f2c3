"""Supervised fine-tuning with a second loss, on diseases (LM-RRG, section 2.4), on TRL's SFTTrainer.

    trainer = DiseaseSFTTrainer(model=..., args=SFTConfig(...), train_dataset=dataset)

For a model whose backbone takes `disease_labels` and returns `disease_loss`, as LM-RRG's does. Beside TRL's columns
the data set has `disease_labels`: of each row 14 CheXpert states, -100 where one is unknown, or null where all are.
"""

import torch
from accelerate.utils import is_peft_model
from trl import SFTConfig, SFTTrainer

from recipes.files import InputError
from recipes.trainers.base import RecipeTrainer
from rewards.labels import CONDITIONS, CheXpertState

UNKNOWN = -100
KNOWN = {UNKNOWN, *map(int, CheXpertState)}
NO_FINDING = {UNKNOWN, int(CheXpertState.BLANK), int(CheXpertState.POSITIVE)}


class DiseaseCollator:
    """`collator`, and in its batch `disease_labels`, (n, 14); raises InputError on what are no CheXpert states."""

    def __init__(self, collator):
        self.collator = collator

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        labels = [row.get("disease_labels") or [UNKNOWN] * len(CONDITIONS) for row in rows]
        for states in labels:
            if len(states) != len(CONDITIONS) or not set(states) <= KNOWN or states[-1] not in NO_FINDING:
                raise InputError(
                    "disease_labels must be 14 CheXpert states (0 to 3, No Finding 0 or 1) or -100, not "
                    f"{list(states)}"
                )
        batch = self.collator([{name: row[name] for name in row if name != "disease_labels"} for row in rows])
        batch["disease_labels"] = torch.tensor(labels)
        return batch


class DiseaseSFTTrainer(RecipeTrainer, SFTTrainer):
    """SFTTrainer whose loss is L_report + `lambda_disease` x L_disease, both from the one pass that TRL makes.

    `lambda_disease` is the model's (config). L_disease is the mean over the known labels of the whole batch, as TRL's
    L_report is over its tokens: under any accumulation and in any processes. Logs `report_loss` and `disease_loss`.

    Example:

        rows = {"prompt": [...], "completion": [...], "images": [...], "disease_labels": [[0] * 13 + [1]]}
        model = LMRRGForConditionalGeneration.from_pretrained("outputs/lmrrg", lambda_disease=1.0)
        trainer = DiseaseSFTTrainer(model, SFTRecipeConfig("out"), Dataset.from_dict(rows))
    """

    def __init__(self, model, args: SFTConfig, train_dataset, **kwargs):
        super().__init__(model=model, args=args, train_dataset=train_dataset, **kwargs)
        base = self.model.get_base_model() if is_peft_model(self.model) else self.model
        self.lambda_disease = base.config.lambda_disease
        self._disease_loss, self._known_labels = None, None
        if self.lambda_disease:
            self.data_collator = DiseaseCollator(self.data_collator)
            base.base_model.register_forward_hook(self._after_backbone)
            self.model.register_forward_hook(self._after_model)

    def _after_backbone(self, module, args, output):
        if output.disease_loss is not None:
            self._disease_loss = output.disease_loss

    def _after_model(self, module, args, output):
        if self._disease_loss is not None and "log_probs" in output:
            output["loss"] = output["loss"] + 0.0 * self._disease_loss  # DDP looks there for the parameters in use

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if "disease_labels" not in self._signature_columns:
            self._signature_columns.append("disease_labels")

    def _get_num_items_in_batch(self, batch_samples, device):
        number = super()._get_num_items_in_batch(batch_samples, device)
        self._known_labels = None
        if self.lambda_disease and number is not None:
            count = sum(batch["disease_labels"].ne(UNKNOWN).sum() for batch in batch_samples).to(device)
            if self.args.average_tokens_across_devices and self.args.world_size > 1:
                count = self.accelerator.gather(count).sum()
            self._known_labels = count.clamp(min=1)
        return number

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """TRL's loss plus `lambda_disease` x `disease_loss`."""
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not self.lambda_disease:
            return result
        loss, *outputs = result if return_outputs else (result,)
        disease, steps = self._disease_loss, 1
        self._disease_loss = None
        if num_items_in_batch is not None and self._known_labels is not None:
            disease = disease * inputs["disease_labels"].ne(UNKNOWN).sum() / self._known_labels
            if self.args.average_tokens_across_devices:
                disease = disease * self.accelerator.num_processes
            steps = self.current_gradient_accumulation_steps  # parts of a sum, whose mean is logged
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in (("report_loss", loss), ("disease_loss", disease)):
            metrics[name].append(steps * self.accelerator.gather(value.detach()).mean().item())
        loss = loss + self.lambda_disease * disease
        return (loss, *outputs) if return_outputs else loss
