"""The base of every trainer here: what a run needs beside its method, as hooks of transformers' Trainer.

A script is its method, and ends as TRL's do:

    setup = SomeTrainer.prepare(args, training_args, model_args, samples=len(dataset), rows=rows, starts=[model])
    trainer = SomeTrainer(model=model, args=training_args, train_dataset=dataset, setup=setup)
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    trainer.push_to_hub()
"""

import inspect
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import TrainingArguments

from recipes.data.privacy import UNKNOWN
from recipes.data.samples import ImageReader, image_reader, prepare_images
from recipes.files import InputError
from recipes.hub.push import prepare_push, push_checkpoint, sources_of
from recipes.trainers.checkpoints import (
    STAGING,
    find_unsavable,
    limit_checkpoints,
    names_in_memory,
    needs_merging,
    save_merged,
)
from recipes.trainers.clinical_evaluation import ClinicalEvaluation
from recipes.trainers.collapse import StopOnCollapse
from recipes.trainers.config import check_run
from recipes.trainers.curves import Curves
from recipes.trainers.interrupt import SaveOnInterrupt, shield_workers
from recipes.trainers.run_summary import RunSummary
from recipes.trainers.setup import RunSetup, save_run
from recipes.trainers.training_log import TrainingLog


class RecipeTrainer:
    """Before a Trainer among a class's bases: what all runs of the recipes share. `setup` is what `prepare` returns.

    - `train` tells a mistake before the first step (`find_unsavable`), says what the run will do (`RunSummary`),
      writes run_config.json, and stops whole on Ctrl-C and on a policy's collapse. Its log is a table (`TrainingLog`)
      and a picture, curves.png in `output_dir` (`Curves`).
    - Checkpoints are whole whenever the run is killed. Trainer writes into `checkpoint-N` file by file; here a
      checkpoint gets that name once all processes have written their parts, and loses it before its files are deleted
      (`save_total_limit`). Not with `enable_jit_checkpoint`. Weights are in it by the names by which Trainer reads
      them back.
    - `save_model` replaces a folder's files one by one, each whole, and `push_to_hub` pushes what may be pushed.
    - Images of samples made by recipes/data/samples.py are scaled to the range of pixels of `processing_class`.

    Example:

        class MySFTTrainer(RecipeTrainer, SFTTrainer):
            pass

        trainer = MySFTTrainer(model="Qwen/Qwen2.5-VL-3B-Instruct", args=SFTRecipeConfig("out"), train_dataset=dataset)
        trainer.train()
        trainer.save_model("out")
    """

    _saving = False
    setup: RunSetup | None = None

    @staticmethod
    def prepare(
        *arguments,
        samples: int,
        rows: Dataset | dict[str, Dataset] | None = None,
        sources: Iterable[str] = (),
        starts: Iterable[str | None] = (),
        metrics: Iterable[str] = (),
        rewards: Iterable[Callable] = (),
    ) -> RunSetup:
        """What can be checked before a model is loaded is checked here, and the repository of a push is made.

        `arguments`: the dataclasses that the script was called with, one of them a TrainingArguments, for
        run_config.json. `samples`: the number of training samples. The data's sources are those of `rows`, named as
        `sources`, and of what the run starts from: `starts`, folders or Hub ids, and the checkpoint that it resumes.
        `metrics` and `rewards` are `check_run`'s. Raises InputError as `check_run` and `prepare_push`.
        """
        args = next(values for values in arguments if isinstance(values, TrainingArguments))
        check_run(args, samples, metrics, rewards)
        sources = sorted({*sources, *sources_of(rows, *starts, args.resume_from_checkpoint)})
        reasons = [values.public_because for values in arguments if hasattr(values, "public_because")]
        return RunSetup(arguments, sources, prepare_push(args, sources, next(iter(reasons), None)))

    def __init__(self, *args, setup: RunSetup | None = None, **kwargs):
        self.setup = setup
        call = inspect.signature(super().__init__).bind(*args, **kwargs)
        for name in ("train_dataset", "eval_dataset"):
            dataset, processor = call.arguments.get(name), call.arguments.get("processing_class")
            if processor and isinstance(dataset, Dataset) and isinstance(image_reader(dataset), ImageReader):
                call.arguments[name] = prepare_images({name: dataset}, processor)[name]
        super().__init__(*call.args, **call.kwargs)
        TrainingLog.install(self)
        self.add_callback(Curves())

    def init_hf_repo(self, token=None, private=None):
        """Trainer's, which its constructor calls where a push is asked for and `prepare` was not called.

        Then it is prepared here, of data that are not known: the repository is private.
        """
        repository = prepare_push(self.args, [UNKNOWN], None)
        self.setup = RunSetup((self.args,), [UNKNOWN], repository)
        super().init_hf_repo(token, private=True)

    def train(self, *args, **kwargs):
        """Trainer's, between checks and a summary before, and after it the end of a run that was stopped.

        Raises InputError before the first step where saving would fail or the GPU is too small, and SystemExit with a
        sentence where the run was interrupted, after a checkpoint, or its policy collapsed.
        """
        [sentence] = broadcast_object_list([find_unsavable(self) if self.is_world_process_zero() else None])
        if sentence:
            raise InputError(sentence)
        if self.setup:
            save_run(self.args.output_dir, *self.setup.arguments, sources=self.setup.sources)
        interrupt, collapse = SaveOnInterrupt(), None
        callbacks = [interrupt]
        if (window := getattr(self.args, "stop_on_collapse", None)) is not None:
            collapse = StopOnCollapse(self, window)
            callbacks.append(collapse)
        if getattr(self.args, "clinical_samples", 0):
            callbacks.append(ClinicalEvaluation(self))
        for callback in (*callbacks, RunSummary(self)):
            self.remove_callback(type(callback))  # of an earlier call
            self.add_callback(callback)
        try:
            output = super().train(*args, **kwargs)
        finally:
            interrupt.release()
        if collapse and collapse.sentence:
            sys.exit(collapse.sentence)
        if interrupt.interrupted:
            sys.exit(f"stopped at step {self.state.global_step}; continue with --resume_from_checkpoint latest")
        return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Trainer's; where a script calls it, the files in `output_dir` are old or new whenever it is killed.

        All is written elsewhere first and then renamed file by file; other files may be in the folder. Trainer's state
        is saved beside. An adapter with whole modules, which transformers does not read, is merged into its model.
        Raises InputError where no step was trained.
        """
        folder = Path(output_dir or self.args.output_dir)
        if not _internal_call and not self.state.global_step:
            raise InputError(f"no step was trained, so nothing is saved to {folder}: see the log above for the reason")
        with nullcontext(folder) if _internal_call else self._staged(folder) as place:
            if not _internal_call and needs_merging(self.accelerator.unwrap_model(self.model)):
                save_merged(self, place)
            else:
                super().save_model(str(place), _internal_call=True)
        if not _internal_call:
            self.save_state()

    @contextmanager
    def _staged(self, folder: Path) -> Iterator[Path]:
        """A folder to write to, whose files then replace those of `folder` one by one."""
        staging = folder / ".model.tmp"
        yield staging
        if self.is_world_process_zero():
            for file in sorted(path for path in staging.rglob("*") if path.is_file()):
                target = folder / file.relative_to(staging)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
            shutil.rmtree(staging)

    def push_to_hub(self) -> str | None:
        """Pushes the saved model in `output_dir` where the run asked for it (`push_to_hub`), and returns the URL.

        In place of Trainer's, which would upload pickles and logs: recipes/hub/push.py says what goes up, and that it
        is private. Raises InputError where nothing was prepared.
        """
        if self.setup is None:
            raise InputError("no push was prepared: set push_to_hub in the trainer's arguments")
        return push_checkpoint(self.setup.repository, self.args.output_dir) if self.setup.repository else None

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        # What samples are grouped by is no input of a model, and Trainer would drop it before it groups.
        if (
            self.args.train_sampling_strategy != "random"
            and self.args.length_column_name not in self._signature_columns
        ):
            self._signature_columns.append(self.args.length_column_name)

    def _get_dataloader(self, *args, **kwargs):
        return shield_workers(super()._get_dataloader(*args, **kwargs))

    def _get_output_dir(self, trial):
        run_dir = super()._get_output_dir(trial)
        return os.path.join(run_dir, STAGING) if self._saving else run_dir

    def _save_checkpoint(self, model, trial):
        run_dir, state = Path(self._get_output_dir(trial)), self.state
        staging, name = run_dir / STAGING, f"checkpoint-{state.global_step}"
        if self.is_local_process_zero():
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._saving, written = True, False
        try:
            with names_in_memory(self.model):
                super()._save_checkpoint(model, trial)
            written = True
        finally:
            self._saving = False
            if not written:
                shutil.rmtree(staging, ignore_errors=True)
        if state.best_model_checkpoint:
            state.best_model_checkpoint = str(run_dir / Path(state.best_model_checkpoint).name)
        if self.args.should_save:
            state.save_to_json(str(staging / name / "trainer_state.json"))
        self.accelerator.wait_for_everyone()
        with self.accelerator.main_process_first():  # the other nodes' find it only where they have disks of their own
            if self.is_local_process_zero() and (staging / name).is_dir():
                if (run_dir / name).is_dir():
                    os.replace(run_dir / name, staging / f"{name}.old")
                os.replace(staging / name, run_dir / name)
                if self.args.save_total_limit:
                    best = {Path(state.best_model_checkpoint)} if state.best_model_checkpoint else set()
                    limit_checkpoints(run_dir, self.args.save_total_limit, {run_dir / name} | best)
                shutil.rmtree(staging, ignore_errors=True)

    def _issue_warnings_after_load(self, load_result):
        super()._issue_warnings_after_load(load_result)
        weights, lacking = self.model.state_dict(), set(load_result.missing_keys)
        places = {weights[name].data_ptr() for name in weights.keys() - lacking}  # a tied weight is there by its twin
        lacking -= set(getattr(self.model, "_keys_to_ignore_on_save", None) or ())  # PPO's value head has its own file
        missing = sorted(name for name in lacking if weights[name].data_ptr() not in places)
        if missing:
            raise InputError(
                f"the checkpoint lacks {len(missing)} weights of the model, {missing[0]} first: it is of another one "
                "or of an earlier version of this project; train from the start"
            )

    def _finalize_training(self, *arguments):
        best = self.state.best_model_checkpoint
        if self.args.should_save and self.args.save_total_limit == 1 and best:
            limit_checkpoints(Path(best).parent, 1, {Path(best)})
        return super()._finalize_training(*arguments)
