"""Times how long a browser takes to open the report page of 3,000 studies.

    python tests/bench/report_page.py

The page holds 3,000 phantom studies of two views of 256 pixels, each with a grain of its own, and the reports of four
systems (tests/make_report_cases.py). Loading is from the start of the navigation until the first rows are drawn, in a
fresh headless Chromium each time, since a second visit finds compiled scripts and decoded pictures. The alternative,
drawing all 3,000 rows at once, is measured in the same page. Writes outputs/bench/report_page/results.json. A figure
is not a test: exits 0 whether or not the bars hold.
"""

import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from recipes.cli import report, run
from recipes.evaluation.report_page import write_report_page
from rewards.labelers import LexicalLabeler

sys.path.append(str(Path(__file__).resolve().parents[1]))
from make_report_cases import make_cases, make_metrics

STUDIES, LOADS = 3000, 5
SECONDS, MEGABYTES = 3, 40
SWITCHES = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-sync"
ALL_ROWS = """
const done = arguments[0], list = document.getElementById("list"), started = performance.now();
list.style.height = list.firstElementChild.style.height;
const look = () => document.querySelectorAll(".row").length === 3000
  ? requestAnimationFrame(() => setTimeout(() => done(performance.now() - started))) : setTimeout(look, 5);
look();
"""
SEARCH = """
const started = performance.now(), search = document.getElementById("search");
search.value = "effusion catheter";
document.getElementById("order").dispatchEvent(new Event("change"));
return performance.now() - started;
"""


def grained(picture: bytes, rng: np.random.Generator) -> Image.Image:
    """`picture` with a grain of its own, as no two X-rays are the same."""
    with Image.open(io.BytesIO(picture)) as image:
        values = np.asarray(image.convert("L")) + rng.normal(0, 5, image.size[::-1])
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def open_page(file: Path, folder: str) -> dict[str, float]:
    """Seconds until the page is ready, of the first search, and until all rows are drawn."""
    options = ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for switch in (*SWITCHES.split(), "disable-component-update", "disable-dev-shm-usage", "window-size=1440,900"):
        options.add_argument(f"--{switch}")
    options.add_argument(f"--user-data-dir={folder}")
    driver = Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        driver.set_script_timeout(120)
        driver.get(file.as_uri())
        ready = "return document.documentElement.dataset.ready"
        WebDriverWait(driver, 60, 0.02).until(lambda each: each.execute_script(ready))
        times = {"load": int(driver.execute_script(ready)) / 1000}
        times["first search"] = driver.execute_script(SEARCH) / 1000
        driver.execute_script("document.getElementById('clear').click()")
        time.sleep(0.5)
        times["all rows at once"] = driver.execute_async_script(ALL_ROWS) / 1000
        return times
    finally:
        driver.quit()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        cases = list(make_cases(STUDIES, size=256))
        file = Path(folder) / "report.html"
        started = time.perf_counter()
        rng = np.random.default_rng(0)
        shown = (each | {"images": [grained(picture, rng) for picture in each["images"]]} for each in cases)
        write_report_page(file, make_metrics(cases), shown, LexicalLabeler())
        writing, megabytes = time.perf_counter() - started, file.stat().st_size / 1e6
        loads = [open_page(file, f"{folder}/{i}") for i in range(LOADS)]
    medians = {name: statistics.median(each[name] for each in loads) for name in loads[0]}
    ratio = (medians["load"] + medians["all rows at once"]) / medians["load"]
    print(f"{STUDIES} studies: written in {writing:.1f} s, {megabytes:.1f} MB; medians of {LOADS} fresh browsers:")
    print("  ".join(f"{name} {seconds:.2f} s" for name, seconds in medians.items()))
    print(f"drawing all rows at the start would take {ratio:.1f} times as long as loading does")
    slowest = max(each["load"] for each in loads)
    checks = [
        {"name": "slowest load, seconds", "value": slowest, "bar": f"<= {SECONDS}", "holds": slowest <= SECONDS},
        {"name": "file, MB", "value": megabytes, "bar": f"<= {MEGABYTES}", "holds": megabytes <= MEGABYTES},
    ]
    report("outputs/bench/report_page", {"writing": writing, "loads": loads, "ratio": ratio}, checks)


if __name__ == "__main__":
    run(main)
