"""From the arguments of recipes/evaluate.py to what is measured, and from what was measured to the page's cases."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from math import ceil
from pathlib import Path
from platform import python_version

from datasets import concatenate_datasets, disable_progress_bars

from recipes.data.labels import CHEXBERT
from recipes.data.schema import read_dataset
from recipes.evaluation.baselines import NEAREST, NORMAL_REPORT, TEMPLATE, encoded_images, nearest_reports
from recipes.evaluation.figures import HEADLINE, PRESETS, STAND_IN, describe
from recipes.evaluation.judges import check_sources, load_judges
from recipes.evaluation.prediction_files import Reading, odd_texts, read_predictions, split_id
from recipes.evaluation.references import Truth, read_truth, read_truth_file, scenario_folders
from recipes.evaluation.rexrank import board_truth, read_board
from recipes.evaluation.scores import Metrics, System, lengths
from recipes.files import InputError, read_commit
from recipes.rg4.pipeline import load_judge
from rewards.completions import parse_completion
from rewards.labels import CONDITIONS
from rewards.scenarios import SCENARIOS

PACKAGES = ("numpy", "scipy", "scikit-learn", "pycocoevalcap", "datasets", "torch", "transformers")
CACHE_SIZE = 32768  # texts of all systems: 768 numbers each take 100 MB
SHUFFLED = ".shuffled"  # behind a model's name: its control
PLACEHOLDER = "{scenario}"


def name_files(predictions: Sequence[str], shuffled: Sequence[str], reserved: Sequence[str]) -> dict[str, dict]:
    """name -> {file, kind, of} of --predictions and --shuffled, each NAME=FILE; NAME.shuffled is a control, too.

    Raises InputError on anything else, on a name that stands twice or is `reserved`, and on a control of no model.
    """
    files = {}
    pairs = [("--predictions", "", pair) for pair in predictions] + [("--shuffled", SHUFFLED, p) for p in shuffled]
    for argument, suffix, pair in pairs:
        name, equals, file = pair.partition("=")
        name += suffix if name else ""
        if not equals or not name or not file or name in files or name in reserved:
            raise InputError(f"{argument} takes NAME=FILE, each name once, and not {pair!r}")
        files[name] = {"file": file, "kind": "model", "of": None}
    for name, entry in files.items():
        model = name.removesuffix(SHUFFLED)
        if model != name and (model in files or SHUFFLED in name):
            if model not in files:
                raise InputError(f"{name} is a control, and --predictions has no {model}")
            entry |= {"kind": "control", "of": model}
    if not any(entry["kind"] == "model" for entry in files.values()):
        raise InputError("--predictions takes NAME=FILE, at least one")
    return files


def check_out(out: str) -> None:
    """Raises InputError where `out` is a file, or a folder that is no earlier result, before anything is computed."""
    if Path(out).is_file():
        raise InputError(f"--out {out} is a file; name a folder for metrics.json, the tables and the page")
    if Path(out).is_dir() and any(Path(out).iterdir()) and not (Path(out) / "metrics.json").is_file():
        raise InputError(f"--out {out} exists and is no earlier result of this command; name another folder")


def load_metrics(args, labeler: Callable) -> Metrics:
    """The published models that `args` (EvaluateArguments) names, and stand-ins for the others."""
    metrics = Metrics(labeler, args.margin, hall_mode=args.hall_mode, meteor=args.meteor != "no")
    if hasattr(labeler, "cache"):
        labeler.cache.size = CACHE_SIZE  # each text goes through a CheXbert once, for labels and for RadCliQ
    try:
        if args.radgraph:
            from rewards.radgraph import RadGraphParser  # needs torch, as do the next two

            metrics.radgraph = RadGraphParser(args.radgraph)
        if args.bertscore:
            from rewards.bertscore import BERTScore

            metrics.bertscore = BERTScore(args.bertscore)
        if args.semb or hasattr(labeler, "embed"):
            from rewards.chexbert import CheXbertLabeler
            from rewards.radcliq import make_semb_part

            embedder = CheXbertLabeler(CHEXBERT if args.semb == "chexbert" else args.semb) if args.semb else labeler
            metrics.semb = make_semb_part(embedder.embed, lite=False)
    except (OSError, ValueError) as error:
        raise InputError(f"--radgraph, --bertscore or --semb: {error}") from error
    _load_learned(args, metrics)
    if args.hall_judge:
        metrics.judge = load_judge(args.hall_judge)
    if args.meteor == "yes":
        from shutil import which

        if not which("java"):
            raise InputError("--meteor yes: there is no `java` on the PATH: install a Java runtime (8 or newer)")
    if args.resamples < 100:
        raise InputError(f"--resamples must be at least 100, not {args.resamples}")
    if not -1 < args.margin < 1:
        raise InputError(f"--margin must lie in (-1, 1), not {args.margin}")
    return metrics


def _load_learned(args, metrics: Metrics) -> None:
    """CREPE, RaTEScore and the judges that `args` names."""
    metrics.rexrank = args.preset == "rexrank"
    if bool(args.ratescore_ner) != bool(args.ratescore_encoder):
        raise InputError("RaTEScore needs both --ratescore_ner and --ratescore_encoder")
    try:
        if args.crepe:
            from rewards.crepe import Crepe  # needs torch, as does the next one

            metrics.crepe = Crepe(args.crepe)
        if args.ratescore_ner:
            from rewards.ratescore import RaTEScore

            metrics.ratescore = RaTEScore(args.ratescore_ner, args.ratescore_encoder)
    except (OSError, ValueError) as error:
        raise InputError(f"--crepe, --ratescore_ner or --ratescore_encoder: {error}") from error
    metrics.judges = load_judges(args, f"{args.out}.answers.sqlite")


def gather(args, files: dict[str, dict], labeler: Callable) -> tuple[Truth, dict[str, dict], list[str]]:
    """References, each system's completions (see `scores.measure_systems`) with the baselines first, and notes."""
    disable_progress_bars()  # they would break the tables
    truth = _read_truth(args, files, labeler)
    columns = [rows.unique("source") if "source" in rows.features else [None] for rows in truth.rows.values()]
    check_sources(args, {source for column in columns for source in column})
    ids, notes = dict(zip(truth.ids, truth.reports, strict=True)), list(truth.notes)
    reading = Reading.of(args.columns, args.encoding)
    entries = {
        name: entry | _read_system(entry["file"], ids, args.only_common, notes, reading)
        for name, entry in files.items()
    }
    common = set.intersection(*(set(entry["completions"]) for entry in entries.values()))
    if len(common) < len(ids):
        notes.append(f"{len(ids) - len(common)} of {len(ids)} studies are not in every file and are left out")
        if not common:
            raise InputError("--only_common: no study is in every file")
        truth = truth.select(common)
    studies = dict.fromkeys(split_id(study)[1] for study in truth.ids)
    if args.case is not None and args.case not in studies:
        raise InputError(f"--case: no study {args.case!r} is scored; {next(iter(studies))!r} is one, for instance")
    for entry in entries.values():
        entry["completions"] = {study: texts for study, texts in entry["completions"].items() if study in common}
    baselines = {TEMPLATE: {study: [NORMAL_REPORT] for study in truth.ids}}
    nearest, remarks = _nearest(args, truth)
    if nearest:
        baselines[NEAREST] = nearest
    notes += remarks
    for name, entry in entries.items():
        texts = (text for texts in entry["completions"].values() for text in texts)
        notes += odd_texts(name, [parse_completion(text).report for text in texts])
    baseline_entries = {name: {"completions": texts, "kind": "baseline"} for name, texts in baselines.items()}
    return truth, {**baseline_entries, **entries}, notes


def _read_truth(args, files: dict[str, dict], labeler: Callable) -> Truth:
    """The references that `args` name; before that, InputError where a file of predictions is missing."""
    if args.dataset and args.references:
        raise InputError("--dataset and --references both name references: give one")
    if args.train_pool < 1:
        raise InputError(f"--train_pool must be at least 1, not {args.train_pool}")
    for entry in files.values():
        for file in _expand(entry["file"]).values():
            if not Path(file).is_file():
                raise InputError(f"there is no predictions file {file}")
    if args.dataset:
        return read_truth(args.dataset, args.split, labeler)
    file = args.references or next(iter(files.values()))["file"]
    board = read_board(file) if args.preset == "rexrank" and file.lower().endswith(".json") else None
    if board:
        return board_truth(file, board, labeler)
    return read_truth_file(file, labeler, Reading.of(args.columns, args.encoding), not args.references)


def _expand(file: str) -> dict[str | None, str]:
    """One file, or with {scenario} in its name one for each scenario that there is."""
    if PLACEHOLDER not in file:
        return {None: file}
    files = {scenario: file.replace(PLACEHOLDER, scenario) for scenario in SCENARIOS}
    paths = {scenario: path for scenario, path in files.items() if Path(path).is_file()}
    if not paths:
        raise InputError(f"there is no predictions file {files['sn']}, nor one of another scenario")
    return paths


def _read_system(file: str, ids: dict, only_common: bool, notes: list[str], reading: Reading) -> dict[str, dict]:
    """The completions of a file, or of a file for each scenario, and their costs."""
    completions, costs = {}, {}
    for scenario, path in _expand(file).items():
        scenario_ids = {study: text for study, text in ids.items() if scenario in (None, split_id(study)[0])}
        if scenario_ids:
            completions |= _read(path, scenario_ids, scenario, only_common, notes, costs, reading)
    return {"completions": completions, "costs": costs}


def _read(
    file: str, ids: dict, scenario: str | None, only_common: bool, notes: list[str], costs: dict, reading: Reading
) -> dict[str, list[str]]:
    if scenario is None:
        return read_predictions(file, ids, only_common=only_common, notes=notes, costs=costs, reading=reading)
    bare = {split_id(study)[1]: study for study in ids}
    prices: dict[str, list] = {}
    completions = read_predictions(file, bare, only_common=only_common, notes=notes, costs=prices, reading=reading)
    costs |= {bare[study]: cost for study, cost in prices.items()}
    return {bare[study]: texts for study, texts in completions.items()}


def _nearest(args, truth: Truth) -> tuple[dict[str, list[str]] | None, list[str]]:
    """The baseline of the most similar training image, or why there is none."""
    absent = f"the baseline {NEAREST!r} is left out: "
    if not args.dataset or args.split == "train":
        return None, [absent + ("no data set is named" if not args.dataset else "the training split itself is scored")]
    pools, scenarios, total = [], [], 0
    for prefix, folder in scenario_folders(args.dataset).items():
        splits = read_dataset(folder, ("report",), bare=True)
        train = splits.get("train")
        if train is None or "images" not in train.column_names:
            continue
        train = train.select([row for row, report in enumerate(train["report"]) if (report or "").strip()])
        total += len(train)
        step = max(1, ceil(len(train) * len(truth.rows) / args.train_pool))
        pools.append(train.select(range(0, len(train), step)).select_columns(["report", "images"]))
        column = train["scenario"][::step] if "scenario" in train.column_names else [None] * len(pools[-1])
        scenarios += [value or prefix[:-1] or None for value in column]
    tests = [truth.rows[prefix].select([row]) for prefix, row in truth.places[:1]]
    if not pools or "images" not in tests[0].column_names:
        return None, [absent + "the data set has no training split with images"]
    test = concatenate_datasets(
        [
            truth.rows[prefix].select_columns("images").select([row for part, row in truth.places if part == prefix])
            for prefix in truth.rows
        ]
    )
    order = [
        study
        for prefix in truth.rows
        for study, place in zip(truth.ids, truth.places, strict=True)
        if place[0] == prefix
    ]
    scenario_of = dict(zip(truth.ids, truth.scenarios, strict=True))
    reports = nearest_reports(test, concatenate_datasets(pools), [scenario_of[study] for study in order], scenarios)
    if reports is None:
        return None, [absent + "some studies have no image"]
    taken = sum(map(len, pools))
    notes = [f"{NEAREST}: sought among {taken} of {total} training studies, evenly taken"] if taken < total else []
    return {study: [report] for study, report in zip(order, reports, strict=True)}, notes


def reference_figures(truth: Truth, metrics: Metrics) -> dict:
    """What the references themselves have: lengths, and their own hallucination rate by the same judge."""
    result = {"lengths": lengths(truth.reports, truth.ids), "scenarios": dict(Counter(filter(None, truth.scenarios)))}
    if metrics.judge:
        try:
            from rewards.discbert import hall_flags  # imports torch, which the rest of this file works without

            flags = hall_flags(truth.reports, truth.scenarios, metrics.hall_mode, metrics.judge)
        except ValueError as error:
            raise InputError(f"--hall_judge: {error}; --hall_mode any needs no scenario") from error
        result["hall"] = float(flags.mean())
        groups = {name: flags[[scenario == name for scenario in truth.scenarios]] for name in SCENARIOS}
        result["hall_by_scenario"] = {name: float(group.mean()) for name, group in groups.items() if len(group)}
    return result


def describe_run(args, metrics: Metrics, truth: Truth, systems: dict[str, System], notes: list[str]) -> dict:
    """The blocks of metrics.json that say how the figures were made."""
    names = dict.fromkeys(
        name for system in systems.values() for part in system.parts for name in part.figures(part.statistics[:1])
    )
    names = [name for name in names if not name.startswith("label/")]
    sources = {
        source for rows in truth.rows.values() if "source" in rows.column_names for source in rows.unique("source")
    }
    versions = {"python": python_version(), **{name: version(name) for name in PACKAGES}}
    if "meteor" in names:
        java = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False)
        versions["java"] = (java.stderr or java.stdout).strip().split("\n")[0]
    if "meteor_lite" in names:
        versions["nltk"] = version("nltk")
    presets = {
        name: {**preset, "figures": [figure for figure in preset["figures"] if figure in names],
               "absent": [figure for figure in preset["figures"] if figure not in names and STAND_IN not in figure]}
        for name, preset in PRESETS.items()
    }  # fmt: skip
    part = metrics.bertscore.name if metrics.bertscore else "words in common"
    return {
        "schema": 1,
        "protocol": {
            "preset": args.preset,
            "presets": presets,
            "headline": [name for name in HEADLINE if name in names],
            "per_label_uncertain": "positive",
            "resamples": args.resamples,
            "seed": args.seed,
            "unit": "study",
            "margin": args.margin,
            "references": "dataset" if args.dataset else "file",
            "original_references": args.original_references,
            "tokens": "lower case, punctuation apart (rewards.bleu.tokenize)",
            "radgraph": args.radgraph or "lexical graphs",
            "bertscore": part,
            "semb": args.semb or (metrics.labeler.name if metrics.semb else "labels in common"),
            "hall_judge": metrics.judge.name if metrics.judge else None,
            "hall_mode": args.hall_mode if metrics.judge else None,
            "crepe": metrics.crepe.name if metrics.crepe else None,
            "ratescore": args.ratescore_ner,
            "judges": f"{', '.join(metrics.judges.names)} by {args.llm}" if metrics.judges else None,
        },
        "figures": {name: describe(name) for name in names},
        "labeler": metrics.labeler.name,
        "versions": versions,
        "commit": read_commit() or None,
        "command": " ".join(sys.argv[1:]),
        "dataset": args.dataset,
        "split": args.split if args.dataset else None,
        "source": ", ".join(sorted(filter(None, sources))) or None,
        "studies": len(set(truth.studies.tolist())),
        "samples": len(truth.ids),
        "notes": notes,
        "labels": list(CONDITIONS),
    }


def case_rows(truth: Truth, systems: dict[str, System], study_id: str | None = None) -> Iterator[dict]:
    """One case per study and scenario, as recipes/evaluation/report_page.py takes it; of several samples the first.

    `study_id`: of this study only.
    """
    rows = {
        prefix: encoded_images(table) if "images" in table.column_names else table
        for prefix, table in truth.rows.items()
    }
    first: dict[str, dict[int, int]] = {name: {} for name in systems}
    for name, system in systems.items():
        for sample, row in enumerate(system.rows):
            first[name].setdefault(int(row), sample)
    numbers = range(len(truth.ids))
    if study_id is not None:
        numbers = [number for number in numbers if split_id(truth.ids[number])[1] == study_id]
    for number in numbers:
        study = truth.ids[number]
        prefix, place = truth.places[number] if truth.places else ("", 0)
        row = rows[prefix][place] if rows else {}
        samples = {name: (systems[name], first[name][number]) for name in systems}
        yield {
            "study_id": study,
            "group": split_id(study)[1],
            "scenario": truth.scenarios[number],
            "images": [image["bytes"] for image in row.get("images") or [] if image["bytes"]],
            "reference": truth.reports[number],
            "prior_report": row.get("prior_report"),
            "indication": row.get("indication"),
            "labels": truth.states[number].tolist(),
            "completions": {name: system.completions[sample] for name, (system, sample) in samples.items()},
            "states": {name: system.states[sample].tolist() for name, (system, sample) in samples.items()},
            "errors": {name: system.errors[sample] for name, (system, sample) in samples.items()},
        }
