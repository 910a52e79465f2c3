"""Where data come from and under which licence: one table, which builders, guards and cards read."""

from typing import NamedTuple


class Source(NamedTuple):
    """`name` and `license` are what the rows have as `source` and `license`, `hub` what the head of a card has."""

    name: str
    license: str
    hub: dict[str, str]


CREDENTIALED = "PhysioNet Credentialed Health Data License 1.5.0"
CREDENTIALED_HUB = {"license": "other", "license_name": "physionet-credentialed-health-data-license-1.5.0"}

PHANTOM = Source("phantom", "CC0-1.0", {"license": "cc0-1.0"})
OPENI = Source("openi", "CC BY-NC-ND 4.0", {"license": "cc-by-nc-nd-4.0"})
MIMIC = Source("mimic-cxr", CREDENTIALED, CREDENTIALED_HUB)
MIMIC_RG4 = Source("mimic-rg4", CREDENTIALED, CREDENTIALED_HUB)
REXGRADIENT = Source(
    "rexgradient-160k",
    "ReXGradient-160K Non-Commercial Data Access and Use Agreement",
    {"license": "other", "license_name": "rexgradient-non-commercial"},
)
CHEXPERT_PLUS = Source(
    "chexpert-plus",
    "Stanford AIMI research use agreement",
    {"license": "other", "license_name": "stanford-aimi-research-use"},
)
PADCHEST_GR = Source(
    "padchest-gr", "BIMCV research use agreement", {"license": "other", "license_name": "bimcv-research-use"}
)
SOURCES = {
    source.name: source for source in (PHANTOM, OPENI, MIMIC, MIMIC_RG4, REXGRADIENT, CHEXPERT_PLUS, PADCHEST_GR)
}
