"""What the lab's rows cost beyond the base, and which of them a cheaper and better one beats."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from recipes.demos.lab_plan import SAMPLED, Plan, batch_of
from recipes.demos.mrgr1 import cost_of_training
from recipes.demos.page import read_history
from recipes.demos.stages import read_record

SCORES = ("severity", "radcliq_lite", "radgraph_lexical")  # clinical scores of the Pareto fronts


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The rows that no other one beats, by rising cost; `points`: row -> (cost, score).

    One beats another that costs no less and scores no more, and is not its equal.

        >>> pareto_front({"a": (1, 0.5), "b": (2, 0.4), "c": (3, 0.9)})
        ['a', 'c']
    """

    def is_beaten(point: tuple[float, float]) -> bool:
        return any(other != point and other[0] <= point[0] and other[1] >= point[1] for other in points.values())

    return sorted((row for row, point in points.items() if not is_beaten(point)), key=lambda row: points[row])


def fronts_of(matrix: dict, costs: Mapping[str, dict]) -> dict[str, list[str]]:
    """Clinical score -> the rows on its Pareto front against `cost_axis`."""
    axis, rows = cost_axis(costs), matrix["rows"]
    return {
        name: pareto_front(
            {row: (cost[axis], rows[row][name]["value"]) for row, cost in costs.items() if cost[axis] is not None}
        )
        for name in SCORES
        if name in matrix["judges"]
    }


def cost_axis(costs: Mapping[str, dict]) -> str:
    """The cost that rows are compared by: processor seconds where all rows have them."""
    has_all = all(cost["processor_seconds"] is not None for cost in costs.values())
    return "processor_seconds" if has_all else "seconds"


def measure_cost(folder: str, plan: Plan, seeds: list[int], rows: Iterable[str]) -> dict[str, dict[str, float | None]]:
    """Row -> what its trainings took beyond the base, means over seeds; None where nothing says it.

    `seconds` of training beside other jobs, `processor_seconds` of all its jobs but the reports it is judged by,
    `samples` that were trained on, `generated` and `read`: tokens written by the policy, and read in training.
    """
    record, costs = read_record(folder), {}
    for row in rows:
        runs = [_cost_of_seed(f"{folder}/seed{seed}", plan, row, record) for seed in seeds]
        costs[row] = {
            name: None if any(run[name] is None for run in runs) else float(np.mean([run[name] for run in runs]))
            for name in runs[0]
        }
    return costs


def row_seconds(record: Mapping[str, dict], home: str, row: str) -> float | None:
    """Processor seconds of the trainings of a row, by the record of the stages; None where they have not run here."""
    entries = [record.get(out) for out in (f"{home}/{row}", f"{home}/{row}_stage1", f"{home}/{row}_pairs.jsonl")]
    if entries[0] is None:
        return None
    return sum(entry["processor_seconds"] for entry in entries if entry)


def _cost_of_seed(home: str, plan: Plan, row: str, record: Mapping[str, dict]) -> dict[str, float | None]:
    settings = plan.rows[row]
    if not settings.algorithm:
        return dict.fromkeys(("seconds", "processor_seconds", "samples", "generated", "read"), 0.0)
    algorithm = plan.algorithms[settings.algorithm]
    last = len(algorithm.train)
    cost = {"seconds": 0.0, "processor_seconds": row_seconds(record, home, row), "samples": 0.0, "generated": 0.0}
    read: list[float | None] = []
    for number, text in enumerate(algorithm.train, 1):
        place = f"{home}/{row}" + f"_stage{number}" * (number < last)
        if not (Path(place) / "trainer_state.json").is_file():
            return dict.fromkeys([*cost, "read"])
        training, history = cost_of_training(place), read_history(place)
        samples = training["samples"] * algorithm.texts / batch_of(text, settings.options)[1]
        lengths = [entry["completions/mean_length"] for entry in history if "completions/mean_length" in entry]
        cost["samples"] += samples
        cost["seconds"] += training["seconds"]
        cost["generated"] += samples * float(np.mean(lengths)) if lengths else 0.0
        read.append(training["tokens"])
    if algorithm.pairs == SAMPLED:
        files = sorted(Path(home).glob("samples*.jsonl"))
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        cost["generated"] = float(sum(line.get("tokens", 0) for line in lines))
        if cost["processor_seconds"] is not None:
            jobs = [record[str(file)] for file in files if str(file) in record]
            cost["processor_seconds"] += sum(job["processor_seconds"] for job in jobs)
    return {**cost, "read": None if None in read else sum(read)}
