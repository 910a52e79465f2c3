"""Plans: what the demos and the ablations run, as levels of jobs for `recipes.demos.stages.Stages`.

The jobs of a level do not need each other, but those of the levels before it.
"""

from collections.abc import Iterator

from recipes.demos.stages import Job

Levels = Iterator[list[Job]]


def make_job(name: str, out: str, words: str, last: str = "", to: str = "out", **options: str | int) -> Job:
    """The job of the command `words`, then `options`, then `--out` (or `to`), then the words `last`.

    An option's value may be a path with spaces; the words may not have any.
    """
    pairs = {**options, to: out}
    values = [word for option, value in pairs.items() for word in (f"--{option}", str(value))]
    return Job(name, out, [*words.split(), *values, *last.split()])


def train(name: str, out: str, words: str, model: str, data: str, last: str = "") -> Job:
    """The job of a training script from `model` on `data`; `words`: its name in recipes/ and its first arguments.

    Without `accelerate launch`: for one process on a CPU it would only wait beside it, with .4 GB.
    """
    return make_job(name, out, f"recipes/{words}", last, to="output_dir", model_name_or_path=model, dataset=data)


def write_reports(name: str, file: str, words: str, model: str, data: str, shuffled: bool = False) -> Job:
    """The job that writes a model's reports of the test split; `shuffled`: for the images of other studies."""
    words = f"recipes/generate.py {words}" + " --shuffle_images true" * shuffled
    return make_job(name, file, words, model=model, dataset=data)


def report_file(model: str, shuffled: bool = False) -> str:
    """Where the reports of the model in folder `model` stand: beside it."""
    return f"{model}{'_shuffled' * shuffled}.jsonl"


def side_by_side(plans: list[Levels]) -> Levels:
    """The plans of several seeds as one, whose levels hold the jobs of the same level of all seeds."""
    for levels in zip(*plans, strict=True):
        yield [job for jobs in levels for job in jobs]
