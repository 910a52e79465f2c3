"""Statistics of built data sets, as LLM-RG4's Table 1, on screen, as PNG and as one page.

    python recipes/dataset_stats.py --datasets outputs/data/mimic_cxr outputs/data/rg4
    python recipes/dataset_stats.py --datasets outputs/data/openi --judge discbert:outputs/discbert --out outputs/stats

A folder of recipes/build_mimic_rg4.py stands for its four data sets. `--out` then holds index.html, the plots and
statistics.json. The paper's own rows stand beside ours, marked as the paper's: they come from another judge.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from recipes.cli import parse, run
from recipes.data.schema import check_values, read_dataset
from recipes.files import InputError, replacing
from recipes.rg4.pipeline import load_judge
from recipes.rg4.statistics_page import PAPER, measure, write_page
from rewards.scenarios import COLUMNS, SCENARIOS


@dataclass
class StatisticsArguments:
    datasets: list[str] = field(
        default_factory=list, metadata={"help": "Built data sets to measure, or folders of scenarios."}
    )
    judge: str = field(
        default="rule", metadata={"help": "Judge of the reports: rule, discbert:MODEL or rule+discbert:MODEL."}
    )
    out: str = field(default="outputs/statistics", metadata={"help": "Folder for the page and the figures."})


def main() -> None:
    (args,) = parse(StatisticsArguments)
    if not args.datasets:
        raise InputError("--datasets names the data sets to measure, such as outputs/data/openi")
    judge, out = load_judge(args.judge), Path(args.out)

    # Figures
    measurements = []
    needed = ("subject_id", "findings", "impression", "report", "scenario", "labels", "views", "source")
    for name in args.datasets:
        scenarios = [f"{name}/{scenario}" for scenario in SCENARIOS if (Path(name) / scenario).is_dir()]
        for folder in scenarios or [name]:
            data = str(Path(folder).relative_to(Path(name).parent))
            for split, rows in read_dataset(folder, needed).items():
                check_values(rows, ("labels",), f"split {split} of {folder}")
                measurements.append(measure(data, split, rows, judge))

    # Table
    table = Table("data", "split", "scenario", "reports", *(f"{column} %" for column in COLUMNS), "hall. %")
    for row in [row for entry in measurements for row in entry["categories"]] + PAPER:
        shares = [f"{row[column]:.2f}" for column in COLUMNS] + [f"{row['hall']:.2f}" if "hall" in row else ""]
        table.add_row(row["data"], row["split"], row.get("scenario", "sn"), str(row["reports"]), *shares)
    Console(width=120).print(table)
    for entry in measurements:
        words = entry["lengths"]["report"]
        print(
            f"{entry['data']} {entry['split']}: {entry['rows']} reports of {entry['subjects']} subjects, "
            f"{words['mean']:.1f} words on average (longest {words['longest']}); images by view {entry['views']}"
        )

    # Page
    out.mkdir(parents=True, exist_ok=True)
    write_page(measurements, judge.name, out)
    figures = [{key: value for key, value in entry.items() if key != "words"} for entry in measurements]
    with replacing(out / "statistics.json") as file:
        file.write_text(json.dumps({"judge": judge.name, "found": figures, "paper": PAPER}, indent=2) + "\n")
    print(f"{out}/index.html shows it all; judge {judge.name}; the paper's rows were judged by the paper's DiscBERT")


if __name__ == "__main__":
    run(main)
