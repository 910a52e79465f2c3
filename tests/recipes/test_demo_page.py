"""The demo's page, figures and stages on studies made by hand; nothing is trained."""

import io
import json
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.data.schema import read_dataset, write_dataset
from recipes.demos import figures as demo_figures
from recipes.demos import page as demo_page
from recipes.demos import stages as demo_stages
from recipes.evaluation import agreement
from recipes.files import InputError
from rewards.labelers import LexicalLabeler
from rewards.labels import CONDITIONS, CheXpertState

ROOT = Path(__file__).resolve().parents[2]
BLANK, POSITIVE, NEGATIVE, UNCERTAIN = CheXpertState
EDEMA, EFFUSION = CONDITIONS.index("Edema"), CONDITIONS.index("Pleural Effusion")
REPORTS = ["There is pulmonary edema.", "No edema or effusion.", "Small effusion & <b>no</b> edema.", "No effusion."]


def states(**named: int) -> list[int]:
    values = {"edema": EDEMA, "effusion": EFFUSION}
    out = [int(BLANK)] * 14
    for name, state in named.items():
        out[values[name]] = int(state)
    return out


@pytest.mark.parametrize(
    "state, reference, expected",
    [
        (POSITIVE, POSITIVE, "agrees"),
        (NEGATIVE, NEGATIVE, "agrees"),
        (UNCERTAIN, POSITIVE, "agrees"),  # uncertain counts as present, as in the figures
        (POSITIVE, UNCERTAIN, "agrees"),
        (NEGATIVE, UNCERTAIN, "contradicts"),
        (POSITIVE, NEGATIVE, "contradicts"),
        (NEGATIVE, BLANK, "unsaid"),
        (POSITIVE, BLANK, "unsaid"),
    ],
)
def test_agreement(state, reference, expected):
    assert agreement.agreement(state, reference) == expected


@pytest.mark.parametrize(
    "text, mentions, classes, marked",
    [
        ("no edema.", [(3, 8, EDEMA, NEGATIVE)], ["agrees"], ["edema"]),
        ("big effusion", [(4, 12, EFFUSION, POSITIVE)], ["contradicts"], ["effusion"]),
        ("edema", [], [], []),  # nothing found, nothing marked
        ("ab cd", [(0, 2, EDEMA, NEGATIVE), (3, 5, 0, POSITIVE)], ["agrees", "unsaid"], ["ab", "cd"]),
        ("abcd", [(0, 3, EDEMA, NEGATIVE), (2, 4, EFFUSION, POSITIVE)], ["contradicts"], ["abcd"]),  # they overlap
        ("abcd", [(0, 4, 0, POSITIVE), (0, 4, EDEMA, NEGATIVE)], ["agrees"], ["abcd"]),  # two conditions, one span
        ("a<b> & c", [(1, 4, EDEMA, NEGATIVE)], ["agrees"], ["&lt;b&gt;"]),  # markup is text
    ],
)
def test_mark_findings(text, mentions, classes, marked):
    html = str(agreement.mark_findings(text, mentions, states(edema=NEGATIVE, effusion=NEGATIVE)))
    assert re.findall(r'<mark class="(\w+)"', html) == classes
    assert re.findall(r"<mark[^>]*>(.*?)</mark>", html) == marked


def test_marked_text_is_the_text():
    text = 'Heart size normal. 3 < 5 & "no" edema; small effusion\'s <script>alert(1)</script>'
    html = agreement.mark_findings(text, LexicalLabeler().mentions(text), states())
    assert html.striptags() == text
    assert "<script>" not in html


@pytest.mark.parametrize(
    "mentions, reference, missed",
    [
        ([], states(edema=POSITIVE, effusion=NEGATIVE), ["Edema"]),  # an absent finding cannot be missed
        ([], states(effusion=UNCERTAIN), ["Pleural Effusion"]),  # a possible one can
        ([(0, 1, EDEMA, NEGATIVE)], states(edema=POSITIVE), []),  # denied: marked in the text, not missed
    ],
)
def test_missed_findings(mentions, reference, missed):
    assert agreement.missed_findings(mentions, reference) == missed


def test_studies_are_chosen_by_place():
    labels = [
        states(),
        states(edema=POSITIVE),
        states(edema=NEGATIVE),
        states(edema=UNCERTAIN),
        states(edema=POSITIVE),
    ]
    assert demo_page.choose_studies(labels, abnormal=2, normal=1) == [0, 1, 3]
    assert demo_page.choose_studies(labels, abnormal=9, normal=9) == [0, 1, 2, 3, 4]  # fewer than asked for
    no_finding = [[0] * 13 + [1]]
    assert demo_page.choose_studies(no_finding, abnormal=1, normal=0) == []  # No Finding is not a finding


@pytest.mark.parametrize(
    "log, count",
    [
        ("Map: 100%|##| 9/9 [00:00]\r  3%|#  | 3/100 [00:10<05:00]", (3, 100)),  # tqdm; the last one counts
        ("vision tower, epoch 2/4: loss 0.3", (2, 4)),
        ("no bar here, on 3/4 of it", None),
    ],
)
def test_read_count(log, count):
    assert demo_stages.read_count(log) == count


def test_a_finished_stage_runs_again_only_when_something_changed(tmp_path):
    config, first, second = tmp_path / "c.yaml", str(tmp_path / "first"), str(tmp_path / "second")
    config.write_text("a: 1")
    write = "import sys; open(sys.argv[-1], 'a').write(open(sys.argv[-2]).read()); open(sys.argv[1], 'a').write('x')"
    runs = tmp_path / "runs"

    def both(*options: str) -> int:
        with demo_stages.Stages(tmp_path) as stages:
            stages.run(("one", first, ["-c", write, str(runs), *options, str(config), first]))
            stages.run(("two", second, ["-c", write, str(runs), first, second]))
        return len(runs.read_text())

    assert both() == 2
    assert both() == 2  # done before
    assert both("--more") == 4  # another command, and the second reads what the first wrote
    config.write_text("a: 2")
    os.utime(config, (time.time() + 5, time.time() + 5))
    assert both("--more") == 6  # the config file is newer


def test_a_failing_stage_ends_the_demo(tmp_path):
    command = ["-c", "import sys; print('line\\n' * 30); sys.exit('what went wrong')"]
    end = "error: the stage 'SFT' failed"
    with pytest.raises(SystemExit, match=end) as ended, demo_stages.Stages(tmp_path) as stages:
        stages.run(("SFT", str(tmp_path / "out"), command))
    *tail, empty, sentence = str(ended.value).split("\n")
    assert (tail, empty) == (["line"] * 14 + ["what went wrong"], "")
    assert sentence.startswith(end)
    assert not (tmp_path / "stages.json").exists()


def test_stages_side_by_side_wait_for_each_other_and_fail_together(tmp_path):
    meet = """if True:
        import os, sys, time
        own, other = sys.argv[1:]
        open(own, "w").close()
        while not os.path.exists(other):
            time.sleep(0.01)"""
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    with demo_stages.Stages(tmp_path) as stages:
        stages.run(("a", a, ["-c", meet, a, b]), ("b", b, ["-c", meet, b, a]))  # one after the other would hang
    assert stages.seconds().keys() == {"a", "b"}
    wait, started = "import sys, time; time.sleep(float(sys.argv[1])); open(sys.argv[2], 'w')", time.time()
    with demo_stages.Stages(tmp_path) as stages:
        jobs = [(name, str(tmp_path / name), ["-c", wait, name, str(tmp_path / name)]) for name in ("0.1", "1.5")]
        stages.run(*jobs)
    shares = stages.seconds()
    assert shares["0.1"] < shares["1.5"]
    assert sum(shares.values()) == pytest.approx(time.time() - started, abs=0.4)  # of the wall time, none twice
    with demo_stages.Stages(tmp_path) as stages:  # the third starts beside the second, which waits for it
        e, f, g = (str(tmp_path / name) for name in "efg")
        stages.run(("e", e, ["-c", wait, "0", e]), ("f", f, ["-c", meet, f, g]), ("g", g, ["-c", wait, "0", g]))
    note = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    fail = """if True:
        import os, sys, time
        while not os.path.isfile(sys.argv[1]) or not os.path.getsize(sys.argv[1]):
            time.sleep(0.01)
        sys.exit("no")"""
    os.remove(b)
    with pytest.raises(SystemExit, match="no"), demo_stages.Stages(tmp_path) as stages:
        stages.run(("endless", str(tmp_path / "c"), ["-c", note, b]), ("fails", str(tmp_path / "d"), ["-c", fail, b]))
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path(b).read_text()), 0)  # ended with the other one


def test_peak_memory_of_stages(tmp_path):
    # in a process of its own: what a stage counts begins with what the process that starts it ever had
    script = """if True:
        import json, sys
        from recipes.demos.stages import Stages

        fill = "import sys; held = b'x' * int(sys.argv[1]); open(sys.argv[2], 'w')"
        for sizes in (["2000000000"], ["1"], ["2000000000", "1"]):
            folder = f"{sys.argv[1]}/{len(sizes)}{sizes[0]}"
            with Stages(folder) as stages:
                stages.run(*((size, f"{folder}/{size}", ["-c", fill, size, f"{folder}/{size}"]) for size in sizes))
            record = json.load(open(f"{folder}/stages.json"))
            print("peaks", json.dumps([each["peak_memory_gb"] for each in record.values()]))"""
    command = [sys.executable, "-c", script, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line.removeprefix("peaks ") for line in done.stdout.splitlines() if line.startswith("peaks ")]
    (large,), (small,), pair = map(json.loads, lines)
    assert large > 1.9 and small < large
    assert pair[0] == pair[1] == pytest.approx(large + small, rel=0.05)  # and not twice the larger one


@pytest.fixture
def built(tmp_path):
    """Four test studies, and completions of the four systems for two seeds."""
    picture = io.BytesIO()
    Image.new("L", (8, 8), 90).save(picture, "PNG")
    labels = [states(edema=POSITIVE), states(edema=NEGATIVE, effusion=NEGATIVE)]
    labels += [states(edema=NEGATIVE, effusion=POSITIVE), states(effusion=NEGATIVE)]
    rows = [
        {"study_id": f"s{i}", "images": [{"bytes": picture.getvalue(), "path": None}], "report": text, "labels": label}
        for i, (text, label) in enumerate(zip(REPORTS, labels, strict=True))
    ]
    write_dataset({"test": lambda: iter(rows)}, tmp_path / "data", {"labeler": "lexical"})
    right = [f"<think>x</think><report>{text}</report>" for text in REPORTS]
    systems = {demo_figures.GRPO: right, demo_figures.SFT: ["No edema."] * 4}
    systems |= {demo_figures.SFT_MORE: right[::-1], demo_figures.SHUFFLED: right[1:] + right[:1]}
    predictions = {}
    for seed in (0, 1):
        for name, texts in systems.items():
            file = tmp_path / f"{seed}{name}.jsonl"
            lines = [json.dumps({"study_id": f"s{i}", "completion": text}) for i, text in enumerate(texts)]
            file.write_text("\n".join(lines))
            predictions.setdefault(seed, {})[name] = str(file)
    return str(tmp_path / "data"), predictions


def test_figures_and_page(built, tmp_path):
    dataset, predictions = built
    figures = demo_figures.compare_systems(dataset, predictions, LexicalLabeler())
    table = figures["table"]
    assert table["GRPO"]["MCCS"] == pytest.approx(1.0)  # the references' own words
    assert (table["GRPO"]["micro-F1 13"], table["GRPO"]["format"]) == (1.0, 1.0)
    assert (table["SFT"]["micro-F1 13"], table["SFT"]["recall 13"], table["SFT"]["format"]) == (0.0, 0.0, 0.0)
    assert table["SFT"]["distinct reports"] == 1
    # "No edema." against [edema +], [edema -, effusion -], [edema -, effusion +], [effusion -]: cosines -1, r, r, 0
    expected = 2 * (np.sqrt(0.5) - 0.2) / 0.8 / 4
    assert table["SFT"]["MCCS"] == pytest.approx(expected)
    entry = demo_figures.pooled(figures, "SFT", "MCCS")
    assert entry["difference"] == pytest.approx(1 - expected)
    assert 0 <= entry["low"] <= entry["difference"] <= entry["high"] <= 1
    assert {each["seed"] for each in figures["differences"]} == {"0", "1", "pooled"}

    checks = demo_figures.make_checks(figures, minutes=16.0, minutes_bar=15, memory_gb=1.0)
    assert [check["holds"] for check in checks[-3:]] == [True, False, True]  # format, time, memory
    assert sum(check["name"].startswith("aim:") for check in checks) == 2

    results = {"data": "openi", "seeds": [0, 1], "stages": {"data": 3.0}, **figures}
    history = [{"step": step, "reward": step / 10, "kl": "0.1"} for step in range(1, 6)]
    rows = read_dataset(dataset)["test"]
    file = tmp_path / "index.html"
    demo_page.write_page(file, results, checks, rows, predictions[0], {0: history, 1: history})
    page = file.read_text()
    assert page.count('<section class="study">') == 4
    assert page.count("<svg") == 2  # reward and KL; the others were not logged
    assert "Small effusion &amp; &lt;b&gt;no&lt;/b&gt; edema." in page  # a report cannot bring markup in
    assert "do not publish" in page  # Open-i's licence
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)  # self-contained
    assert "<script" not in page
    assert _unclosed(page) == []


def test_several_reports_of_a_study_are_refused(built, tmp_path):
    dataset, predictions = built
    file = predictions[0]["SFT"]
    with open(file, "a") as more:
        more.write("\n" + json.dumps({"study_id": "s0", "completion": "again"}))
    with pytest.raises(InputError, match="several reports of a study"):
        demo_figures.compare_systems(dataset, predictions, LexicalLabeler())


def _unclosed(page: str) -> list[str]:
    open_tags: list[str] = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img", "br"):
                open_tags.append(tag)

        def handle_startendtag(self, tag, attrs):
            pass

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Balance().feed(page)
    return open_tags
