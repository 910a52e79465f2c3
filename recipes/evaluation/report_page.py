"""The page of recipes/evaluate.py: one HTML file with scores, their intervals, errors, and every report to read.

The file asks nothing of any server: style, script, pictures and data are in it, and its Content-Security-Policy lets
nothing else run or load. Texts reach it as JSON and are put on the screen as text only, so that markup in a report
stays what it is: characters.
"""

import base64
import hashlib
import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator
from PIL import Image

from recipes.data.images import in_eight_bits
from recipes.evaluation.agreement import PRESENT, WORDS, group_agreement, group_mentions
from recipes.files import replacing
from recipes.templates import html_environment
from rewards.completions import parse_completion
from rewards.labelers import LexicalLabeler
from rewards.labels import CONDITIONS, CheXpertState
from rewards.mccs import mccs
from rewards.scenarios import SCENARIOS

LIMIT = 40_000_000  # bytes of the file
SIDES = (512, 384, 288, 224, 160, 144, 128, 112, 96, 80, 64)  # pixels of a picture's longer side
QUALITY = 72  # of a JPEG
SHOWN = 20_000  # characters of one text; how many more there are is told
CARDS, PANELS = 8, 6  # figures that are in sight; the others are folded away
BLOCK = 100  # pictures that are read at once
REST = 2_000_000  # bytes that are kept for what is neither a picture nor a case: the tables of figures
KINDS = ("match", "near", "mismatch", "extra", "unsaid")  # of a mark; "missing" is what no mark can show
LEGEND = {
    "match": "as in the reference",
    "near": "as in the reference, but certain in one and possible in the other",
    "mismatch": "denied in one, present or possible in the other",
    "extra": "present or possible here, not mentioned in the reference",
    "missing": "present or possible in the reference, not mentioned here",
    "unsaid": "denied here, not mentioned in the reference",
}


def mark_kind(group: Sequence[tuple[int, int, int, int]], reference: Sequence[int]) -> str:
    """One of KINDS for mentions that share a mark: `group_agreement`, told apart by certainty and what is denied."""
    kind = group_agreement(group, reference)
    if kind == "contradicts":
        return "mismatch"
    if kind == "agrees":
        pairs = [(state, reference[condition]) for _, _, condition, state in group if reference[condition]]
        return "match" if all(state == target for state, target in pairs) else "near"
    return "extra" if any(state in PRESENT for _, _, _, state in group) else "unsaid"


def encode_jpeg(image: bytes | Image.Image, side: int) -> bytes:
    """`image` (encoded, or of PIL) as a grey JPEG whose longer side is at most `side` pixels."""
    with Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image.copy() as picture:
        picture.draft("L", (side, side))  # a large JPEG is decoded at a fraction of its size
        picture = in_eight_bits(picture).convert("L")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=QUALITY, optimize=True)
    return out.getvalue()


class Cases:
    """Collects cases as `write_report_page` takes them; `rows`, `texts` and `images` are what the script reads."""

    def __init__(self, systems: Sequence[str], kinds: Sequence[str], side: int):
        self.systems, self.kinds, self.side = list(systems), list(kinds), side
        self.texts: dict[str, int] = {}
        self.rows: list[dict] = []
        self.images: list[bytes] = []
        self.place_of: dict[bytes, int] = {}  # digest of an encoded picture -> its place; scenarios share pictures

    def number(self, text: str | None) -> int:
        """The place of `text` among the texts, each of which is kept once; -1 for None and for an empty one."""
        return self.texts.setdefault(text, len(self.texts)) if text else -1

    def picture(self, image: bytes | Image.Image) -> int:
        """The place of `image` among the pictures."""
        digest = hashlib.sha256(image).digest() if isinstance(image, bytes) else b""
        if digest not in self.place_of:
            self.images.append(encode_jpeg(image, self.side))
            if not digest:
                return len(self.images) - 1
            self.place_of[digest] = len(self.images) - 1
        return self.place_of[digest]

    def add(self, case: dict) -> None:
        """Adds one case; its reports are marked by `mark` at the end, when all texts are known."""
        reports = []
        for system in self.systems:
            completion = case["completions"].get(system)
            if completion is None:
                reports.append(None)
                continue
            parsed = parse_completion(completion)
            states = case.get("states", {}).get(system)
            errors = [
                [
                    self.kinds.index(error["kind"]),
                    CONDITIONS.index(error["label"]),
                    self.number(error.get("generated")),
                    self.number(error.get("reference")),
                ]
                for error in case.get("errors", {}).get(system, ())
            ]
            reports.append([self.number(parsed.report), self.number(parsed.think), states, [], None, errors])
        self.rows.append(
            {
                "id": str(case["study_id"]),
                "group": str(case.get("group") or case["study_id"]),
                "scenario": case.get("scenario") or "",
                "labels": [int(state) for state in case["labels"]],
                "reference": self.number(case["reference"]),
                "prior": self.number(case.get("prior_report")),
                "indication": self.number(case.get("indication")),
                "images": [self.picture(image) for image in case["images"]],
                "reports": reports,
            }
        )

    def label(self, labeler: Callable, margin: float) -> None:
        """Fills in the states that a case came without, and each report's MCCS against its reference."""
        listed = list(self.texts)
        reports = [(row, report) for row in self.rows for report in row["reports"] if report]
        unknown = sorted({report[0] for _, report in reports if report[2] is None})
        labels = dict(
            zip(unknown, np.asarray(labeler([listed[i] if i >= 0 else "" for i in unknown])).tolist(), strict=True)
        )
        for _, report in reports:
            report[2] = [int(state) for state in (labels[report[0]] if report[2] is None else report[2])]
        if reports:
            scores = mccs(
                np.array([report[2] for _, report in reports]), np.array([row["labels"] for row, _ in reports]), margin
            )
            for (_, report), score in zip(reports, scores.tolist(), strict=True):
                report[4] = round(score, 3)

    def mark(self, labeler: Callable) -> None:
        """Marks the findings in reports and references: [start, length, kind, condition, state, condition, ...].

        The LexicalLabeler tells where each is said and how. Another labeler tells only how a whole report stands to a
        finding; then the places are those that the rules find, and the state is the labeler's.
        """
        has_mentions = hasattr(labeler, "mentions")
        mentions_of = (labeler if has_mentions else LexicalLabeler()).mentions
        listed, mentions_by_text = list(self.texts), {}

        def marks(number: int, states: list[int], reference: list[int]) -> list[list[int]]:
            if number not in mentions_by_text:
                mentions_by_text[number] = mentions_of(listed[number][:SHOWN]) if number >= 0 else []
            mentions = mentions_by_text[number]
            if not has_mentions:
                mentions = [(start, end, i, states[i]) for start, end, i, _ in mentions if states[i]]
            return [
                [
                    group[0][0],
                    max(end for _, end, _, _ in group) - group[0][0],
                    KINDS.index(mark_kind(group, reference)),
                    *(int(value) for _, _, condition, state in group for value in (condition, state)),
                ]
                for group in group_mentions(mentions)
            ]

        for row in self.rows:
            row["marks"] = marks(row["reference"], row["labels"], row["labels"])
            for report in filter(None, row["reports"]):
                report[3] = marks(report[0], report[2], row["labels"])

    def blocks(self, used: int) -> list[Markup]:
        """The pictures as JSON lists of base64, BLOCK in each, made smaller until the file is no larger than LIMIT."""
        for side in (self.side, *(side for side in SIDES if side < self.side)):
            if side < self.side:
                self.images, self.side = [encode_jpeg(image, side) for image in self.images], side
            if used + sum(4 * math.ceil(len(image) / 3) + 3 for image in self.images) + 10_000 <= LIMIT:
                break
        encoded = [base64.b64encode(image).decode() for image in self.images]
        return [
            htmlsafe_json_dumps(encoded[i : i + BLOCK], separators=(",", ":")) for i in range(0, len(encoded), BLOCK)
        ]


def draw_axis(values: Iterable[float | None], zero: bool = False) -> dict:
    """An axis that holds `values` (and 0 where `zero`): `low`, `high` and the `ticks` between them."""
    numbers = [value for value in values if value is not None] + [0.0] * zero or [0.0]
    low, high = min(numbers), max(numbers)
    spread = (high - low) or abs(high) or 1.0
    low, high = low - 0.06 * spread, high + 0.06 * spread
    ticks = [float(tick) for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    return {"low": low, "high": high, "ticks": ticks}


def place(value: float, axis: dict) -> str:
    """Where `value` lies on `axis`, in per cent of its length."""
    return f"{100 * (value - axis['low']) / (axis['high'] - axis['low']):.2f}%"


def interval_panels(metrics: dict) -> list[dict]:
    """The forest plot: for each headline figure its systems' intervals, then the differences between systems."""
    panels = []
    for figure in metrics["protocol"]["headline"]:
        rows = [
            {"name": name, "kind": system["kind"], **system["figures"][figure]}
            for name, system in metrics["systems"].items()
            if figure in system["figures"]
        ]
        differences = [
            {
                "name": f"{row['system']} − {row['minus']}",
                "value": row["difference"],
                "low": row["low"],
                "high": row["high"],
                "p": row["p_holm"],
            }
            for row in metrics["differences"]
            if row["figure"] == figure
        ]
        ends = ("value", "low", "high")
        panels.append(
            {
                "figure": figure,
                "rows": rows,
                "axis": draw_axis(row[end] for row in rows for end in ends),
                "differences": differences,
                "difference_axis": draw_axis((row[end] for row in differences for end in ends), zero=True),
            }
        )
    return [panel for panel in panels if panel["rows"]]


def best_systems(metrics: dict) -> dict[str, set[str]]:
    """Figure -> the models with its best value, where more than one model stands to be compared."""
    models = {name: system["figures"] for name, system in metrics["systems"].items() if system["kind"] == "model"}
    best = {}
    for figure, about in metrics["figures"].items():
        values = {name: figures[figure]["value"] for name, figures in models.items() if figure in figures}
        if len(values) > 1 and about["better"]:
            top = (max if about["better"] == "higher" else min)(values.values())
            best[figure] = {name for name, value in values.items() if value == top}
    return best


def write_report_page(
    file: str | Path, metrics: dict, cases: Iterable[dict], labeler: Callable, group: str | None = None
) -> None:
    """Writes the self-contained page, at most 40 MB: pictures get smaller, the more cases there are.

    `metrics`: what evaluate.py writes to metrics.json (recipes/scoring.md explains it). `cases`: one dict per
    study and scenario with `study_id`, `group` (the same for one study under several scenarios), `scenario`, `images`
    (encoded bytes or PIL), `reference`, `prior_report`, `indication`, `labels` (14 CheXpert states of the reference),
    `completions` (system -> text), and, both optional, `states` (system -> 14 states) and `errors` (system -> dicts
    with `label`, `kind`, and the sentences `generated` and `reference`, or None). `labeler`: n texts to states
    (n, 14), the one of `metrics`. A text of more than 20,000 characters is cut on the page and says so. `group`: that
    of the only study, whose `cases` are then all on the page at once, without the figures of the others.
    """
    order = ("model", "control", "baseline")
    systems = dict(sorted(metrics["systems"].items(), key=lambda item: order.index(item[1]["kind"])))
    metrics = {**metrics, "systems": systems}
    kinds = list(
        dict.fromkeys(kind for system in systems.values() for row in system["errors"].values() for kind in row)
    )
    studies = 1 if group is not None else max(metrics["studies"], 1)
    room = 0.8 * LIMIT / (studies * 1.5 * 0.2 * 4 / 3)  # pixels: 1.5 pictures a study, 0.2 bytes
    side = next((side for side in SIDES if side**2 <= room), SIDES[-1])
    collected = Cases(systems, kinds, side)
    for case in cases:
        collected.add(case)
    collected.label(labeler, metrics["protocol"]["margin"])
    collected.mark(labeler)

    data = {
        "conditions": CONDITIONS,
        "systems": [{"name": name, "kind": system["kind"]} for name, system in systems.items()],
        "errors": kinds,
        "kinds": KINDS,
        "legend": LEGEND,
        "words": [WORDS[state] for state in CheXpertState],
        "scenarios": [name for name in SCENARIOS if any(row["scenario"] == name for row in collected.rows)],
        "block": BLOCK,
        "alone": group is not None,
        "texts": [text if len(text) <= SHOWN else [text[:SHOWN], len(text) - SHOWN] for text in collected.texts],
        "cases": collected.rows,
    }
    folder = Path(__file__).parent
    environment = html_environment(Path(__file__).parent)
    environment.filters["place"] = place
    style, script = (Markup((folder / name).read_text()) for name in ("report.css", "report.js"))
    hashes = {
        name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for name, text in (("style", style), ("script", script))
    }
    packed = htmlsafe_json_dumps(data, separators=(",", ":"))
    page = environment.get_template("report.html.jinja").render(
        metrics=metrics,
        cases=len(collected.rows),
        errors=kinds,
        panels=interval_panels(metrics),
        in_sight={"cards": CARDS, "panels": PANELS},
        alone=group,
        best=best_systems(metrics),
        compared=[name for name in systems if any(name in row["ours"] for row in metrics["paper"])],
        legend=LEGEND,
        supports={
            label: row[label]["support"]
            for label in metrics["labels"]
            for row in [system["per_label"] for system in systems.values() if label in system["per_label"]][:1]
        },
        own_mentions=hasattr(labeler, "mentions"),
        style=style,
        script=script,
        hashes=hashes,
        data=packed,
        blocks=collected.blocks(len(packed) + REST),
    )
    with replacing(file) as temporary:
        temporary.write_text(page, encoding="utf-8")
