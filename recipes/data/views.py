"""Views of a chest X-ray: what sources call them, their order in a study, and the scenario that they make."""

import re

FRONTAL = ("PA", "AP", "FRONTAL", "PA ", "AP ")  # "PA ": "PA LLD", "PA RLD"
LATERAL = ("LATERAL", "LL", "XTABLE LATERAL")
UNKNOWN = "UNKNOWN"
NO_CHEST = ("KUB", "AP (KUB)", "COSTAL", "EXCLUDE")  # of the abdomen, of the ribs, and what PadChest marks as useless
_ALIASES = {
    "POSTEROANTERIOR": "PA", "ANTEROPOSTERIOR": "AP", "AP HORIZONTAL": "AP", "ERECT": "FRONTAL", "SUPINE": "FRONTAL",
    "UPRIGHT": "FRONTAL", "PORTABLE": "AP", "LAT": "LATERAL", "L": "LATERAL", "LEFT LATERAL": "LATERAL",
    "RIGHT LATERAL": "LATERAL", "RL": "LATERAL", "LATERO LATERAL": "LATERAL",
    **dict.fromkeys(("", "OTHER", "N/A", "NA", "NONE", "NAN", "UNK", "UNKNOWN"), UNKNOWN),
}  # fmt: skip
_IN_NAME = re.compile(r"(?<![a-z])(?:(pa)|(ap)|(frontal|front)|(lateral|lat))(?![a-z])", re.IGNORECASE)


def view_name(text: str | None) -> str:
    """The view as the schema has it: "PA", "AP", "FRONTAL", "LATERAL", "LL", another in capitals, or "UNKNOWN".

    >>> view_name("postero-anterior"), view_name("AP_horizontal"), view_name(None)
    ('PA', 'AP', 'UNKNOWN')
    """
    name = " ".join(re.sub(r"[_-]+", " ", str(text or "")).upper().split())
    joined = name.replace("POSTERO ANTERIOR", "POSTEROANTERIOR").replace("ANTERO POSTERIOR", "ANTEROPOSTERIOR")
    return _ALIASES.get(joined, joined)


def view_in_name(file_name: str) -> str:
    """The view that the name of a file says ("view1_frontal.jpg", "1001_pa.png"), else "UNKNOWN"."""
    matches = list(_IN_NAME.finditer(re.sub(r"[_\d]", " ", file_name)))
    if not matches:
        return UNKNOWN
    return ("PA", "AP", "FRONTAL", "LATERAL")[matches[-1].lastindex - 1]


def rank_view(view: str) -> int:
    """Position of a view in a study: PA, AP, other frontal ones, LATERAL, LL, other lateral ones, the rest."""
    order = (*FRONTAL, *LATERAL)
    if view in order:
        return order.index(view)
    if view[:3] in order:
        return order.index(view[:3])
    return len(order) - 1 if "LATERAL" in view else len(order)


def is_frontal(view: str) -> bool:
    """Whether `rank_view` counts a view as frontal."""
    return rank_view(view) < len(FRONTAL)


def is_lateral(view: str) -> bool:
    """Whether `rank_view` counts a view as lateral."""
    return len(FRONTAL) <= rank_view(view) < len(FRONTAL) + len(LATERAL)


def order_views(images: list[tuple], most: int) -> tuple[tuple, ...]:
    """(image, view) pairs with frontal views first; of more than `most` (0: all) a frontal, a lateral, then others."""
    images = sorted(images, key=lambda image: (rank_view(image[1]), image[0]))
    if 0 < most < len(images):
        first = [next((image for image in images if kind(image[1])), None) for kind in (is_frontal, is_lateral)]
        ranked = [image for image in first if image] + [image for image in images if image not in first]
        images = [image for image in images if image in ranked[:most]]
    return tuple(images)


def scenario_of(views: list[str], prior: str | None) -> str | None:
    """sn, sw, mn or mw: s/m without/with a lateral view beside the frontal one, n/w without/with a prior report.

    None without a frontal view: the four scenarios of LLM-RG4 all have one.
    """
    if not any(map(is_frontal, views)):
        return None
    return ("m" if any(map(is_lateral, views)) else "s") + ("w" if prior else "n")
