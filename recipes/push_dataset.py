"""Pushes a built data set to the Hub, private, in one commit, with its card.

    python recipes/push_dataset.py --dataset outputs/data/phantom --repo NAME/phantom
    python recipes/push_dataset.py --dataset outputs/data/rg4 --repo NAME/mimic-rg4               # its four scenarios
    python recipes/push_dataset.py --dataset outputs/data/rg4_weighed --repo NAME/mimic-rg4 \
        --judgements outputs/data/rg4/provenance.parquet

The repository gets a config for each scenario that the folder holds (sn, sw, mn, mw; one config for any other data
set); `tlw`, the reports whose key sentences recipes/weigh_tokens.py marked; and `discbert`, the judged reports of
--judgements or of the folder's provenance.parquet. `load_dataset("NAME/mimic-rg4", "sn")` reads one, and so does
`--dataset NAME/mimic-rg4:sn` in a recipe.

MIMIC-CXR's data, and data of unknown source, are public only with `--public_because`; Open-i's reports never, since
their licence allows no changed copies. recipes/sharing.md says more.
"""

from dataclasses import dataclass, field

from recipes.cli import parse, run
from recipes.data.privacy import WHY_PUBLIC
from recipes.hub.dataset import push_dataset


@dataclass
class PushArguments:
    dataset: str = field(metadata={"help": "Folder of a built data set, or of one for each scenario."})
    repo: str = field(metadata={"help": "Repository of the Hub, NAME/x; made where there is none."})
    judgements: str | None = field(
        default=None,
        metadata={"help": "File of judged reports, provenance.parquet or CSV, as train_discbert.py reads them."},
    )
    public_because: str | None = field(default=None, metadata={"help": WHY_PUBLIC})


def main() -> None:
    (args,) = parse(PushArguments)
    push_dataset(args.dataset, args.repo, args.public_because, args.judgements)


if __name__ == "__main__":
    run(main)
