"""Ctrl-C that loses nothing: the step in progress ends, a checkpoint is written, training stops."""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback


class SaveOnInterrupt(TrainerCallback):
    """On SIGINT or SIGTERM saves a checkpoint after the current step and stops; then `interrupted` is true.

    Every process agrees on the step, so that no rank waits for another. A second Ctrl-C interrupts at once; a SIGTERM
    never does, since torchrun answers a Ctrl-C, which its processes get too, by sending them one. Python takes signals
    in its main thread alone: a trainer in another one goes on.
    """

    interrupted = False

    def __init__(self):
        self._previous = {}  # handlers by signal

    def _catch(self, signum, frame):
        if self.interrupted and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.interrupted = True
        print("\nstopping after this step; a checkpoint will be written (again to stop at once)", flush=True)

    def on_train_begin(self, args, state, control, **kwargs):
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._catch) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_step_end(self, args, state, control, **kwargs):
        if args.world_size > 1:
            flag = torch.tensor(float(self.interrupted), device=args.device)
            torch.distributed.all_reduce(flag)
            self.interrupted = bool(flag)
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        self.release()

    def release(self) -> None:
        """Gives the signals back to the handlers that they had before training; also after an error in it."""
        while self._previous:
            signal.signal(*self._previous.popitem())


@dataclass
class WorkerStart:
    """The start of a data loader's worker: from there on it leaves Ctrl-C and SIGTERM to its parent.

    A terminal and Slurm send them to every process of a run, and a worker that ended would take its parent along in
    the middle of a step. A SIGTERM of the parent itself still ends it. `initializer` is called at the end.
    """

    initializer: Callable[[int], None] | None = None

    def __call__(self, number: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # in this thread and in those that it will start
        threading.Thread(target=self._listen, args=(os.getppid(),), daemon=True).start()
        if self.initializer:
            self.initializer(number)

    @staticmethod
    def _listen(parent: int) -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)


def shield_workers(loader: DataLoader) -> DataLoader:
    """`loader`, accelerate's or torch's, whose workers begin with `WorkerStart`."""
    inner = getattr(loader, "base_dataloader", loader)
    if inner.num_workers and hasattr(signal, "sigwaitinfo"):  # macOS has none
        inner.worker_init_fn = WorkerStart(inner.worker_init_fn)
    return loader
