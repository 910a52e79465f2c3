"""Folders as after a demo's trainings: known reports, scored by recipes/evaluate.py, and the trainers' logs."""

import json
from pathlib import Path

from recipes import evaluate
from recipes.demos.figures import Demo


def write_reports(demo: Demo, folder: Path, texts: dict[str, list[str]], ids: list[str], log: list[dict]) -> None:
    """`texts`: system -> a completion of each study, the same for seeds 0 and 1."""
    for seed in (0, 1):
        for system, file in demo.files(str(folder), seed).items():
            lines = [{"study_id": i, "completion": text} for i, text in zip(ids, texts[system], strict=True)]
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_text("\n".join(map(json.dumps, lines)))
        for name in demo.systems.values():
            state = folder / f"seed{seed}" / name / "trainer_state.json"
            state.parent.mkdir(exist_ok=True)
            state.write_text(json.dumps({"log_history": log}))


def score(call, demo: Demo, folder: Path) -> None:
    """Runs the demo's own commands of the level of scores."""
    for job in demo.score_jobs(str(folder), [0, 1]):
        call(evaluate.main, *job.command[1:], "--resamples", 100)
