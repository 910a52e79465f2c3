"""LLM-RG4's four scenarios and four categories: what a report says that the input of its scenario cannot show.

The tables stand here and not beside the data pipeline because the rate in `rewards.discbert` needs them and `rewards`
never imports `recipes`; and not beside the rate, because that needs torch, which a builder of text does not.
"""

CATEGORIES = ("prior_comparison", "prior_procedure", "view", "communication")
COLUMNS = ("PC", "PP", "View", "Comm")  # what the paper's Table 1 calls them
SCENARIOS = ("sn", "sw", "mn", "mw")  # single/multi view, no/with longitudinal (the previous report)
# What the input of a scenario supports (LLM-RG4, "Problem formulation"; where that is silent, A-29):
# procedures and communications never, comparisons with the previous report, views where there is more than one.
ALLOWED = {"sn": (), "sw": ("prior_comparison",), "mn": ("view",), "mw": ("prior_comparison", "view")}
FORBIDDEN = {
    scenario: tuple(category for category in CATEGORIES if category not in allowed)
    for scenario, allowed in ALLOWED.items()
}
