"""The phantom's sites: what recipes/build_phantom.py draws and writes with, by the value of its --site."""

from collections.abc import Callable
from typing import NamedTuple

from recipes.data import phantom, phantom_site_b, phantom_site_b_reports


class Site(NamedTuple):
    """One site's functions, each with the arguments of the function of that name in recipes/data/phantom.py."""

    sample_states: Callable
    render: Callable
    region_boxes: Callable
    write_report: Callable
    write_impression: Callable
    write_request: Callable
    contact_sheet: Callable


SITES = {
    "a": Site(
        phantom.sample_states,
        phantom.render,
        phantom.region_boxes,
        phantom.write_report,
        phantom.write_impression,
        phantom.write_request,
        phantom.contact_sheet,
    ),
    "b": Site(
        phantom_site_b.sample_states,
        phantom_site_b.render,
        phantom_site_b.region_boxes,
        phantom_site_b_reports.write_report,
        phantom_site_b_reports.write_impression,
        phantom_site_b_reports.write_request,
        phantom_site_b.contact_sheet,
    ),
}
