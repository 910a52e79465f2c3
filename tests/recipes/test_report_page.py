"""The report page: what it marks, that it is safe and small, and how it works in a real browser."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from make_report_cases import KINDS, make_cases, make_metrics
from PIL import Image

from recipes.evaluation import report_page
from recipes.evaluation.report_page import KINDS as MARKS
from recipes.evaluation.report_page import encode_jpeg, mark_kind, write_report_page
from rewards.completions import parse_completion
from rewards.labelers import LexicalLabeler
from rewards.labels import CONDITIONS, CheXpertState
from rewards.mccs import mccs

BLANK, POSITIVE, NEGATIVE, UNCERTAIN = CheXpertState
EDEMA, EFFUSION = CONDITIONS.index("Edema"), CONDITIONS.index("Pleural Effusion")
ORDER = ["grpo", "sft", "grpo.shuffled", "fixed normal report"]  # models, controls, baselines
NASTY = "</script><script>window.hacked = 1</script><!-- <img src=x onerror='window.hacked = 2'> & \u2028 edema"


def states(**named: int) -> list[int]:
    out = [int(BLANK)] * 14
    for name, state in named.items():
        out[{"edema": EDEMA, "effusion": EFFUSION}[name]] = int(state)
    return out


def picture(side: int = 24, noise: int | None = None) -> bytes:
    values = (
        np.full((side, side), 90) if noise is None else np.random.default_rng(noise).integers(0, 256, (side, side))
    )
    out = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def case(study: str, reference: str, reports: dict[str, str], **changed) -> dict:
    labeler = LexicalLabeler()
    labels = labeler([reference])[0].tolist()
    return {
        "study_id": study,
        "group": study,
        "scenario": None,
        "images": [picture()],
        "reference": reference,
        "prior_report": None,
        "indication": None,
        "labels": labels,
        "completions": reports,
        "states": {
            name: labeler([parse_completion(completion).report])[0].tolist() for name, completion in reports.items()
        },
        "errors": {name: [] for name in reports},
    } | changed


def all_systems(text: str) -> dict[str, str]:
    return dict.fromkeys(ORDER, text)


class Page(HTMLParser):
    """The tags of a page, and the text of its scripts and style."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.texts, self.within = [], {}, None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.within = dict(attrs).get("id", tag)
            self.texts[self.within] = ""

    def handle_endtag(self, tag):
        self.within = None if tag in ("script", "style") else self.within

    def handle_data(self, data):
        if self.within:
            self.texts[self.within] += data


@pytest.mark.parametrize(
    ("said", "reference", "kind"),
    [
        ([(EDEMA, POSITIVE)], states(edema=POSITIVE), "match"),
        ([(EDEMA, NEGATIVE)], states(edema=NEGATIVE), "match"),
        ([(EDEMA, UNCERTAIN)], states(edema=POSITIVE), "near"),  # present in both, certain in one
        ([(EDEMA, NEGATIVE)], states(edema=UNCERTAIN), "mismatch"),
        ([(EDEMA, POSITIVE)], states(), "extra"),
        ([(EDEMA, UNCERTAIN)], states(), "extra"),
        ([(EDEMA, NEGATIVE)], states(), "unsaid"),  # nobody claims a finding
        ([(EDEMA, POSITIVE), (EFFUSION, POSITIVE)], states(edema=POSITIVE, effusion=NEGATIVE), "mismatch"),
        ([(EDEMA, POSITIVE), (EFFUSION, POSITIVE)], states(edema=POSITIVE), "match"),  # one mark, half of it said
    ],
)
def test_mark_kind(said, reference, kind):
    assert mark_kind([(0, 5, condition, state) for condition, state in said], reference) == kind


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("encoded", [True, False])
def test_pictures_become_small_grey_jpegs(mode, encoded):
    image = Image.new(mode, (300, 200))
    if encoded:
        out = io.BytesIO()
        image.save(out, "PNG")
        image = out.getvalue()
    with Image.open(io.BytesIO(encode_jpeg(image, 150))) as jpeg:
        assert (jpeg.format, jpeg.mode, jpeg.size) == ("JPEG", "L", (150, 100))
    with Image.open(io.BytesIO(encode_jpeg(image, 999))) as jpeg:
        assert jpeg.size == (300, 200)  # nothing is blown up


def written(tmp_path, cases: list[dict], labeler=None, **changed) -> str:
    write_report_page(tmp_path / "r.html", make_metrics(cases) | changed, iter(cases), labeler or LexicalLabeler())
    return (tmp_path / "r.html").read_text()


def test_the_page_is_safe_and_asks_nobody(tmp_path):
    cases = [case(NASTY, NASTY, all_systems(f"<report>{NASTY}</report>"), prior_report=NASTY, indication=NASTY)]
    html = written(tmp_path, cases, notes=[NASTY], dataset=NASTY)
    page = Page(html)
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert [each.get("id") for each in scripts] == ["data", "images-0", None]
    assert all(each.get("type") == "application/json" for each in scripts[:2])
    assert NASTY in json.loads(page.texts["data"])["texts"]
    assert "<!--" not in html and html.count("</script>") == 3
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in ("src", "href", "action", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    policy = next(each["content"] for _, each in page.tags if each.get("http-equiv") == "Content-Security-Policy")
    assert "unsafe" not in policy and "http" not in policy and policy.startswith("default-src 'none'")
    for name in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.texts[name].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy  # only what we wrote runs
    assert not re.search(r"url\(|@import", page.texts["style"])


def test_marks_and_scores(tmp_path):
    cases = [case("s", "There is edema. No effusion.", all_systems("No edema. No effusion.") | {"grpo": "Edema."})]
    data = json.loads(Page(written(tmp_path, cases)).texts["data"])
    (row,) = data["cases"]
    shown = dict(zip([each["name"] for each in data["systems"]], row["reports"], strict=True))

    def marks(name: str) -> list[tuple[str, str]]:
        report = shown[name]
        return [(data["texts"][report[0]][s : s + n], MARKS[kind]) for s, n, kind, *_ in report[3]]

    assert marks("grpo") == [("Edema", "match")]
    assert marks("sft") == [("edema", "mismatch"), ("effusion", "match")]
    # reference (edema 1, effusion -1): "Edema." has a cosine of 1 / sqrt(2), the other one of 0
    assert shown["grpo"][4] == pytest.approx((0.5**0.5 - 0.2) / 0.8, abs=1e-3)
    assert shown["sft"][4] == 0


def test_texts_and_pictures_are_kept_once(tmp_path):
    cases = [case(f"s{i}", "There is edema.", all_systems("No edema.")) for i in range(5)]
    page = Page(written(tmp_path, cases))
    assert sorted(json.loads(page.texts["data"])["texts"]) == ["No edema.", "There is edema."]
    assert len(json.loads(page.texts["images-0"])) == 1


def test_another_labeler_decides_the_states_and_rules_the_places(tmp_path):
    class Contrary:
        """Finds an edema in every report, and nothing else."""

        def __call__(self, texts):
            return np.tile(states(edema=POSITIVE), (len(texts), 1))

    cases = [case("s", "Edema.", all_systems("No edema. No effusion."), states={}, labels=states(edema=POSITIVE))]
    metrics = make_metrics([case("s", "Edema.", all_systems("No edema."))])
    write_report_page(tmp_path / "r.html", metrics, cases, Contrary())
    html = (tmp_path / "r.html").read_text()
    (row,) = json.loads(Page(html).texts["data"])["cases"]
    assert row["reports"][0][2] == states(edema=POSITIVE)
    assert [MARKS[kind] for _, _, kind, *_ in row["reports"][0][3]] == ["match"]  # and no mark for the effusion
    assert "located by the LexicalLabeler" in html


@pytest.mark.parametrize("limit", [200_000, 400_000])
def test_pictures_shrink_until_the_file_fits(tmp_path, monkeypatch, limit):
    cases = [case(f"s{i}", "Edema.", all_systems("Edema."), images=[picture(300, i)]) for i in range(40)]
    whole = len(written(tmp_path, cases))
    monkeypatch.setattr(report_page, "LIMIT", whole - limit)
    monkeypatch.setattr(report_page, "REST", 200_000)
    assert len(written(tmp_path, cases)) <= whole - limit


def test_nothing_is_left_where_it_fails(tmp_path):
    with pytest.raises(KeyError, match="completions"):
        write_report_page(
            tmp_path / "r.html", make_metrics([case("s", "x", all_systems("x"))]), [{}], LexicalLabeler()
        )
    assert not list(tmp_path.iterdir())


def test_a_page_without_models_images_or_figures(tmp_path):
    cases = [case("s", "", all_systems("")), case("t", "Edema.", {"grpo": "x"}, images=[])]
    for each in cases:
        each["states"] = {}
    metrics = make_metrics([case("s", "x", all_systems("x"))])
    metrics["systems"] = {"grpo": metrics["systems"]["grpo"] | {"kind": "baseline"}}
    empty = {"image_reliance": {}, "differences": [], "notes": [], "dataset": None, "split": None}
    write_report_page(tmp_path / "r.html", metrics | empty, cases, LexicalLabeler())
    assert [row["images"] for row in json.loads(Page((tmp_path / "r.html").read_text()).texts["data"])["cases"]] == [
        [0],
        [],
    ]


def test_papers_rows_stand_beside_the_systems_that_have_them(tmp_path):
    row = {"paper": "MRG-R1", "table": "Table I", "row": "MRG-R1", "data": "IU X-Ray", "setting": None, "column": "f1"}
    row |= {"published": 0.5188, "source": "own", "figure": "ce/14/positive/micro/f1", "comparable": False}
    row |= {"ours": {"sft": {"value": 0.25, "low": 0.2, "high": 0.3}}, "why_not": ["its data are <others>"]}
    html = written(tmp_path, [case("s", "Edema.", all_systems("Edema."))], paper=[row])
    table = html[html.index("Beside the papers") : html.index("All 3 figures")]
    assert re.findall(r"<th>([^<]*)</th>", table)[-3:] == ["our figure", "sft", "comparable"]
    assert "micro-F1 14</td>" in table and "0.519" in table and "0.250<small>0.200 to 0.300" in table
    assert "no: its data are &lt;others&gt;" in table


################
# In a browser
################


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of 30 studies under two scenarios, and its cases."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    cases = list(make_cases(30, ("sn", "mw"), size=64))
    write_report_page(file, make_metrics(cases), cases, LexicalLabeler())
    return file, cases


class Reader:
    """What one does with a page."""

    def __init__(self, driver, file):
        self.driver = driver
        driver.get("about:blank")
        driver.get_log("browser"), driver.get_log("performance")
        driver.get(file.as_uri())
        self.run("document.documentElement.style.scrollBehavior = 'auto'")

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def texts(self, selector: str) -> list[str]:
        return self.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)

    def wait(self, script: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 10, 0.05).until(lambda driver: self.run(f"return {script}"))

    def keys(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def choose(self, name: str, value) -> None:
        script = "const e = document.getElementById(arguments[0]); e.value = arguments[1]; "
        self.run(script + "e.dispatchEvent(new Event('change'))", name, str(value))

    def click(self, selector: str) -> None:
        self.run("document.querySelector(arguments[0]).click()", selector)

    def shown(self) -> int:
        return int(re.match(r"[\d,]+", self.text("#count"))[0].replace(",", ""))

    def focused(self) -> str:
        return self.run("return document.activeElement.id")

    def reading(self) -> bool:
        return self.run("return document.getElementById('case').open")


@pytest.fixture
def reader(browser, pages):
    reader = Reader(browser, pages[0])
    yield reader
    severe = [entry["message"] for entry in browser.get_log("browser")]
    assert severe == []  # no test may leave anything on the console


def test_it_loads_and_asks_for_nothing_else(reader, pages):
    assert int(reader.run("return document.documentElement.dataset.ready")) >= 0
    events = [json.loads(entry["message"])["message"] for entry in reader.driver.get_log("performance")]
    asked = [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]
    asked = [url for url in asked if not url.startswith("data:")]
    assert asked == [pages[0].as_uri()]
    assert reader.text("#count") == "60 cases"
    assert reader.texts(".card:first-child .system") == ORDER
    assert len(reader.texts(".card")) == 3 and len(reader.texts("#heat tbody.f1 tr")) == 14


@pytest.mark.parametrize("finding", ["Cardiomegaly", "Lung Opacity", "No Finding", "Consolidation"])
def test_filter_by_finding(reader, pages, finding):
    place = CONDITIONS.index(finding)
    expected = sum(case["labels"][place] in (POSITIVE, UNCERTAIN) for case in pages[1])
    reader.choose("finding", place)
    assert reader.shown() == expected
    reader.click("#clear")
    reader.wait("document.getElementById('count').textContent === '60 cases'")


@pytest.mark.parametrize("kind", KINDS[:4])
def test_filter_by_error(reader, pages, kind):
    def having(systems, label=None) -> int:
        errors = [[each for name in systems for each in case["errors"][name]] for case in pages[1]]
        return sum(any(e["kind"] == kind and label in (None, e["label"]) for e in found) for found in errors)

    reader.choose("kind", KINDS.index(kind))
    assert reader.shown() == having(("grpo", "sft"))  # all models
    reader.choose("system", ORDER.index("grpo.shuffled"))
    assert reader.shown() == having(("grpo.shuffled",))
    reader.choose("finding", CONDITIONS.index("Cardiomegaly"))
    assert reader.shown() == having(("grpo.shuffled",), "Cardiomegaly")


def test_filter_by_no_error_and_scenario(reader, pages):
    reader.choose("kind", "none")
    clean = [case for case in pages[1] if not case["errors"]["grpo"] and not case["errors"]["sft"]]
    assert reader.shown() == len(clean)
    reader.choose("scenario", "mw")
    assert reader.shown() == sum(case["scenario"] == "mw" for case in clean)


def test_a_number_in_the_error_table_leads_to_its_cases(reader, pages):
    kind, label = "hallucination", None
    counts = {}
    for each in pages[1]:
        for error in each["errors"]["sft"]:
            if error["kind"] == kind:
                counts.setdefault(error["label"], set()).add((each["study_id"], each["scenario"]))
    label = max(counts, key=lambda name: len(counts[name]))
    reader.click(f'button[data-finding="{label}"][data-kind="{kind}"][data-system="1"]')
    assert reader.shown() == len(counts[label])
    assert reader.focused() == "list"


def test_search(reader, pages):
    reader.keys("/")
    assert reader.focused() == "search"
    reader.keys("CATHETER")
    reader.wait("document.getElementById('count').textContent.includes('of')")
    read = [
        " ".join([*each["completions"].values(), each["reference"], each["prior_report"] or ""]) for each in pages[1]
    ]
    assert reader.shown() == sum("catheter" in text.lower() for text in read)
    from selenium.webdriver.common.keys import Keys

    reader.keys(Keys.ESCAPE)
    assert reader.text("#count") == "60 cases"
    reader.keys("no such words")
    reader.wait("document.getElementById('count').textContent.startsWith('0 of')")
    assert reader.texts(".list .empty") == ["No case fits. Clear a filter."]


@pytest.mark.parametrize(("order", "pick"), [("low", min), ("high", max)])
def test_order_by_score(reader, pages, order, pick):
    reader.choose("system", 1)
    reader.choose("order", order)
    labels, own = ([case["labels"] for case in pages[1]], [case["states"]["sft"] for case in pages[1]])
    best = pick(mccs(np.array(own), np.array(labels), 0.2))
    assert reader.texts("#row-0 .cell.chosen b") == [f"{best:.2f}"]


def test_keyboard(reader):
    from selenium.webdriver.common.keys import Keys

    reader.keys("j", "j", "j", "k")
    assert reader.focused() == "list"
    at = reader.run("return document.getElementById('list').getAttribute('aria-activedescendant')")
    assert at == "row-2"
    assert reader.run("return document.querySelector('[aria-selected=true]').id") == at
    reader.keys(Keys.ARROW_DOWN, Keys.ENTER)
    assert reader.reading()
    first = reader.text("#case-title")
    assert first.startswith(reader.text("#row-3 .id")[:-2])
    reader.keys("j")
    assert reader.text("#case-place") == "5 of 60"
    reader.keys(Keys.ARROW_LEFT, "k")
    assert reader.text("#case-place") == "3 of 60"
    reader.keys(Keys.ESCAPE)
    assert not reader.reading()
    assert reader.focused() == "list"
    reader.keys(Keys.END)
    assert reader.run("return document.getElementById('list').getAttribute('aria-activedescendant')") == "row-59"
    reader.keys("j")  # there is no further one
    assert reader.run("return document.getElementById('list').getAttribute('aria-activedescendant')") == "row-59"
    outline = "const s = getComputedStyle(document.activeElement); return [s.outlineStyle, s.outlineWidth]"
    assert reader.run(outline) == ["solid", "3px"]  # the focus is seen


def test_one_case(reader, pages):
    place = next(i for i, each in enumerate(pages[1]) if len(each["errors"]["grpo"]) > 1 and each["scenario"] == "mw")
    reader.run("document.getElementById('list').scrollTop = arguments[0]", 78 * place)
    reader.wait(f"document.getElementById('row-{place}')")
    reader.click(f"#row-{place}")
    each = pages[1][place]
    assert reader.reading()
    assert reader.text("#case-title") == f"{each['study_id']}mw"
    assert reader.run(
        "return [...document.querySelectorAll('.report.reference .text')].map((e) => { "
        "e.querySelectorAll('sup').forEach((s) => s.remove()); return e.textContent })"
    ) == [each["reference"]]
    reports = [parse_completion(text) for text in each["completions"].values()]
    assert reader.texts("#body .reports .report > .text") == [parsed.report for parsed in reports]
    assert reader.texts("#body .think .text") == [parsed.think for parsed in reports if parsed.think]
    assert reader.run("return [...document.querySelectorAll('#body .think')].some((e) => e.open)") is False  # folded
    reader.wait("[...document.querySelectorAll('#body img')].every((e) => e.naturalWidth === 64)")
    assert len(reader.texts("#body img")) == 2
    assert len(reader.texts("#body .reports .report:first-child .errors li")) == len(each["errors"]["grpo"])
    assert reader.texts("#body .prior .text") == [each["prior_report"]]
    reader.click("#chosen button:nth-child(2)")
    assert len(reader.texts("#body .reports .report")) == 3  # one system hidden
    reader.click("#chosen button:nth-child(2)")


def test_one_study_under_its_scenarios(reader, pages):
    reader.click("#row-0")
    reader.click("#views button:nth-child(2)")
    assert [name[1:-4].strip() for name in reader.texts("#body .reports h3")] == ["sn", "mw"]
    reports = [parse_completion(each["completions"]["grpo"]).report for each in pages[1][:2]]
    assert reader.texts("#body .reports .report > .text") == reports
    reader.click("#chosen button:nth-child(4)")
    assert len(set(reader.texts("#body .reports .report > .text"))) == 1  # the fixed report
    reader.click("#views button:first-child")
    assert len(reader.texts("#body .reports .report")) == 4


def test_all_systems_under_all_scenarios(reader, pages):
    reader.click("#row-0")
    reader.click("#views button:nth-child(3)")
    assert reader.texts("#body .scenario > h3 .badge") == ["sn", "mw"]
    reports = [parse_completion(each["completions"][name]).report for each in pages[1][:2] for name in ORDER]
    assert reader.texts("#body .scenario .reports .report > .text") == reports
    heads = reader.texts("#body .findings thead th")
    assert all(any(f"{name}, {scenario}" in head for head in heads) for name in ORDER for scenario in ("sn", "mw"))
    reader.click("#chosen button:nth-child(4)")
    assert len(reader.texts("#body .scenario .reports .report")) == 2 * 3  # one system hidden, in both
    reader.click("#chosen button:nth-child(4)")


def test_a_page_of_one_study(browser, tmp_path):
    """LLM-RG4's Fig. 4: a finding has one colour in the references and in all reports that agree."""
    both, one = "There is edema. Pleural effusion.", "There is edema."
    cases = [
        case("s", reference, all_systems("<report>Edema. Possible pleural effusion.</report>"), scenario=scenario)
        for scenario, reference in (("sn", both), ("mw", one))
    ]
    write_report_page(tmp_path / "case.html", make_metrics(cases), cases, LexicalLabeler(), group="s")
    reader = Reader(browser, tmp_path / "case.html")
    assert reader.reading() and reader.texts("h1") == ["Study s: 2 systems,\n2 scenarios"]
    assert reader.run("return getComputedStyle(document.getElementById('cases')).display") == "none"
    assert not reader.texts(".card") and not reader.texts("#heat")
    assert reader.texts("#body .scenario > h3 .badge") == ["sn", "mw"]
    assert [text.rstrip("ABCD ") for text in reader.texts("#body .scenario .reference .text")] == [both, one]
    colours = reader.run(
        "return [...document.querySelectorAll('#body .scenario')].map((scenario) => "
        "[...scenario.querySelectorAll('.text mark')].map((mark) => [mark.textContent.toLowerCase(), mark.className, "
        "getComputedStyle(mark).backgroundColor]))"
    )
    edema, effusion = ({shade for text, _, shade in colours[0] if word in text} for word in ("edema", "effusion"))
    assert len(edema) == len(effusion) == 1 and edema != effusion
    assert {shade for text, _, shade in colours[1] if "edema" in text} == edema
    assert not effusion & {shade for text, _, shade in colours[1]}  # in mw it is in no reference
    assert browser.get_log("browser") == []


def test_a_link_opens_its_case(browser, pages):
    each = pages[1][7]
    Reader(browser, pages[0])
    browser.get(f"{pages[0].as_uri()}#case={each['study_id']}&{each['scenario']}")
    browser.refresh()
    assert browser.execute_script("return document.getElementById('case-title').textContent").startswith(
        each["study_id"]
    )
    assert browser.get_log("browser") == []


def test_light_and_dark(reader):
    ground = "return getComputedStyle(document.body).backgroundColor"
    emulate = lambda value: reader.driver.execute_cdp_cmd(  # noqa: E731
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": value}]}
    )
    emulate("dark")
    dark = reader.run(ground)
    emulate("light")
    light = reader.run(ground)
    assert sum(map(int, re.findall(r"\d+", dark))) < 150 < 600 < sum(map(int, re.findall(r"\d+", light)))
    reader.click("#theme")
    assert reader.run(ground) == light
    reader.click("#theme")
    assert reader.run(ground) == dark  # by hand, whatever the system says


@pytest.mark.parametrize("width", [360, 390, 820, 1440])
def test_no_sideways_scrolling(reader, width):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    reader.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    reader.click("#row-0")
    wide = "return [document.documentElement.scrollWidth, document.getElementById('body').scrollWidth]"
    assert all(each <= width for each in reader.run(wide))
    reader.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_hostile_texts_stay_texts(browser, tmp_path):
    long = "No effusion. " * 7692 + "edema"  # 100,001 characters
    astral = "\U0001fac1\U0001fac1 Edema."  # each counts as two in JavaScript
    texts = all_systems(f"<report>{NASTY}</report>") | {
        "sft": long,
        "grpo.shuffled": astral,
        "fixed normal report": "",
    }
    cases = [case(NASTY, NASTY, texts, prior_report=NASTY, indication=NASTY), case("plain", "Edema.", texts)]
    written(tmp_path, cases, notes=[NASTY], dataset=NASTY)
    reader = Reader(browser, tmp_path / "r.html")
    reader.click("#row-0")
    shown = reader.texts("#body .reports .report > .text")
    assert shown[0] == parse_completion(texts["grpo"]).report
    assert reader.text("#case-title") == NASTY
    assert shown[1] == long[:20_000] + " … 80,001 more characters are not shown here"
    assert reader.texts("#body .reports .report:nth-child(3) mark") == ["Edema"]
    assert "(an empty report)" in reader.text("#body .reports .report:nth-child(4)")
    assert reader.run("return window.hacked === undefined && !document.querySelector('#body script, img[src=x]')")
    assert reader.run("return document.querySelectorAll('main img[src=x], script:not([id])').length") == 1
    assert browser.get_log("browser") == []


def test_three_thousand_cases(browser, tmp_path):
    """The file is at most 40 MB, and only the rows in sight are drawn."""
    few = list(make_cases(60, size=256))
    cases = [{**few[i % 60], "study_id": f"s{i}", "group": f"s{i}"} for i in range(3000)]
    for i, each in enumerate(cases):
        each["images"] = [Image.effect_noise((160, 160), 64)]  # no X-ray is harder to compress
        each["reference"] = f"{each['reference']} Seen {i}."
        each["completions"] = {name: f"{text} {i}." for name, text in each["completions"].items()}
    write_report_page(tmp_path / "r.html", make_metrics(cases), cases, LexicalLabeler())
    assert (tmp_path / "r.html").stat().st_size <= 40_000_000
    reader = Reader(browser, tmp_path / "r.html")
    assert reader.shown() == 3000
    assert len(reader.texts(".row")) < 40
    reader.run("document.getElementById('list').scrollTop = 1e9")
    reader.wait("document.getElementById('row-2999')")
    assert len(reader.texts(".row")) < 40
    reader.click("#row-2999")
    reader.wait("[...document.querySelectorAll('#body img')].every((e) => e.naturalWidth > 0)")
    assert browser.get_log("browser") == []
