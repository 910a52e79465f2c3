"""Ctrl-C that loses nothing: the step in progress ends, a checkpoint is written, training stops."""

import signal

import torch
from transformers import TrainerCallback


class SaveOnInterrupt(TrainerCallback):
    """On SIGINT or SIGTERM saves a checkpoint after the current step and stops; `interrupted` tells the script.

    Every process agrees on the step, so that no rank waits for another. A second Ctrl-C interrupts at once; a SIGTERM
    never does, since torchrun answers a Ctrl-C, which its processes get too, by sending them one.
    """

    interrupted = False

    def _catch(self, signum, frame):
        if self.interrupted and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.interrupted = True
        print("\nstopping after this step; a checkpoint will be written (again to stop at once)", flush=True)

    def on_train_begin(self, args, state, control, **kwargs):
        self._previous = {number: signal.signal(number, self._catch) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_step_end(self, args, state, control, **kwargs):
        if args.world_size > 1:
            flag = torch.tensor(float(self.interrupted), device=args.device)
            torch.distributed.all_reduce(flag)
            self.interrupted = bool(flag)
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
