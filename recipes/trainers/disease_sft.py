"""Supervised fine-tuning with further losses (LM-RRG, section 2.4, and one of ours), on TRL's SFTTrainer.

    trainer = DiseaseSFTTrainer(model=..., args=SFTConfig(...), train_dataset=dataset)

For a model whose backbone takes `disease_labels` and returns `disease_loss`, as LM-RRG's does. Beside TRL's columns
the data set has `disease_labels`: of each row 14 CheXpert states, -100 where one is unknown, or null where all are.
With a `lambda_region` above 0 the backbone takes `region_cover` too and returns `region_loss`, and the data set has
`boxes`: of each row {region, x0, y0, x1, y1} in pixels of its one image, or null.
"""

from collections.abc import Callable, Sequence
from functools import partial

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


class RegionCollator:
    """`collator`, and in its batch `region_cover`, (n, K, N): what `cover` makes of a row's boxes and image size."""

    def __init__(self, collator, cover: Callable[[Sequence[dict], tuple[int, int]], torch.Tensor]):
        self.collator, self.cover = collator, cover

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        covers = [self.cover(row.get("boxes") or (), row["images"][0].size) for row in rows]  # now: TRL changes rows
        batch = self.collator([{name: row[name] for name in row if name != "boxes"} for row in rows])
        batch["region_cover"] = torch.stack(covers)
        return batch


# Of a batch, how many labels or boxes a loss is the mean of
COUNTS = {
    "disease_loss": lambda batch: batch["disease_labels"].ne(UNKNOWN).sum(),
    "region_loss": lambda batch: batch["region_cover"].amax(-1).gt(0).sum(),
}


class DiseaseSFTTrainer(RecipeTrainer, SFTTrainer):
    """SFTTrainer whose loss is L_report + `lambda_disease` x L_disease + `lambda_region` x L_region, from TRL's pass.

    Both weights are the model's (config), whose processor has `cover_patches` for the second. L_disease is the mean
    over the known labels of the whole batch, and L_region over its regions with boxes, as TRL's L_report is over its
    tokens: under any accumulation and in any processes. Logs `report_loss`, `disease_loss` and `region_loss`.

    Example:

        rows = {"prompt": [...], "completion": [...], "images": [...], "disease_labels": [[0] * 13 + [1]]}
        model = LMRRGForConditionalGeneration.from_pretrained("outputs/lmrrg", lambda_disease=1.0)
        trainer = DiseaseSFTTrainer(model, SFTRecipeConfig("out"), Dataset.from_dict(rows))
    """

    def __init__(self, model, args: SFTConfig, train_dataset, **kwargs):
        super().__init__(model=model, args=args, train_dataset=train_dataset, **kwargs)
        base = self.model.get_base_model() if is_peft_model(self.model) else self.model
        weights = {f"{name}_loss": getattr(base.config, f"lambda_{name}", 0.0) for name in ("disease", "region")}
        self.loss_weights = {name: weight for name, weight in weights.items() if weight}
        self._losses, self._counts = {}, None
        if "disease_loss" in self.loss_weights:
            self.data_collator = DiseaseCollator(self.data_collator)
        if "region_loss" in self.loss_weights:
            grid = {"region_names": base.config.region_names, "patch_size": base.config.vision_config.patch_size}
            cover = partial(self.processing_class.cover_patches, **grid)
            self.data_collator = RegionCollator(self.data_collator, cover)
        if self.loss_weights:
            base.base_model.register_forward_hook(self._after_backbone)
            self.model.register_forward_hook(self._after_model)

    def _after_backbone(self, module, args, output):
        losses = {name: output.get(name) for name in self.loss_weights}
        self._losses |= {name: loss for name, loss in losses.items() if loss is not None}

    def _after_model(self, module, args, output):
        if self._losses and "log_probs" in output:
            for loss in self._losses.values():
                output["loss"] = output["loss"] + 0.0 * loss  # DDP looks there for the parameters in use

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        columns = ("disease_labels", "boxes")
        self._signature_columns += [name for name in columns if name not in self._signature_columns]

    def _get_num_items_in_batch(self, batch_samples, device):
        number = super()._get_num_items_in_batch(batch_samples, device)
        self._counts = None
        if self.loss_weights and number is not None:
            counts = [sum(COUNTS[name](batch) for batch in batch_samples) for name in self.loss_weights]
            counts = torch.stack(counts).to(device)
            if self.args.average_tokens_across_devices and self.args.world_size > 1:
                counts = self.accelerator.gather(counts[None]).sum(0)
            self._counts = dict(zip(self.loss_weights, counts.clamp(min=1), strict=True))
        return number

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """TRL's loss plus each other loss times its weight."""
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not self.loss_weights:
            return result
        loss, *outputs = result if return_outputs else (result,)
        losses, self._losses = self._losses, {}
        total, parts, steps = loss, {"report_loss": loss}, 1
        for name, weight in self.loss_weights.items():
            part = losses[name]
            if num_items_in_batch is not None and self._counts is not None:
                part = part * COUNTS[name](inputs) / self._counts[name]
                if self.args.average_tokens_across_devices:
                    part = part * self.accelerator.num_processes
                steps = self.current_gradient_accumulation_steps  # parts of a sum, whose mean is logged
            total, parts[name] = total + weight * part, part
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in parts.items():
            metrics[name].append(steps * self.accelerator.gather(value.detach()).mean().item())
        return (total, *outputs) if return_outputs else total
