"""Stops a run whose policy has come to write one and the same report for every study."""

from collections import Counter, deque

from transformers import TrainerCallback
from trl import GRPOTrainer

from rewards.completions import parse_completion

SHARE = 0.95  # of the reports seen last: above what any chest X-ray data has in its commonest report


def commonest(reports: list[str]) -> tuple[str, float]:
    """The report that is there most often, whatever its case and spacing, and its share of all, 0 to 1."""
    ((report, count),) = Counter(" ".join(report.lower().split()) for report in reports).most_common(1)
    return report, count / len(reports)


class StopOnCollapse(TrainerCallback):
    """Logs `reports/commonest_share` and ends training once one report is 95 % of the last `window` ones.

    A reward that a fixed template satisfies well enough, or a step too large, ends in a policy that writes that
    template whatever it sees; its groups have no spread, so that it stays so. `window` counts completions, those of
    all processes; 0: log the share in each step, never stop. `sentence` says what happened, or is None.
    """

    sentence: str | None = None

    def __init__(self, trainer: GRPOTrainer, window: int):
        self.trainer, self.window = trainer, window
        self.reports: deque[str] = deque(maxlen=window)
        self._tokens = 0

    def on_step_end(self, args, state, control, **kwargs):
        if state.num_input_tokens_seen == self._tokens:  # a step on completions that were seen before
            return
        self._tokens = state.num_input_tokens_seen
        new = [parse_completion(completion).report for completion in self.trainer._logs["completion"]]
        self.reports.extend(new)
        report, share = commonest(list(self.reports) or new)
        self.trainer._metrics["train"]["reports/commonest_share"].append(share)
        if self.window and len(self.reports) == self.window and share >= SHARE:
            self.sentence = (
                f"stopped at step {state.global_step}: {share:.0%} of the last {self.window} reports are the same "
                f"text, {report[:120]!r}. Go back to a checkpoint before that with a lower learning_rate, a higher "
                "beta or another reward; --stop_on_collapse 0 trains on"
            )
            control.should_training_stop = True
