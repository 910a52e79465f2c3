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
from demo_folders import score, write_reports
from PIL import Image

from recipes import demo as demo_script
from recipes.data.schema import write_dataset
from recipes.demos import figures as demo_figures
from recipes.demos import page as demo_page
from recipes.demos import stages as demo_stages
from recipes.demos.mrgr1 import (
    GRPO,
    SFT,
    SFT_MORE,
    SHUFFLED,
    OpenIDemo,
    PhantomDemo,
    cost_of_training,
    steps_of_equal_samples,
)
from recipes.demos.stages import Job
from recipes.evaluation import agreement
from recipes.evaluation.bootstrap import means_part
from recipes.files import InputError
from rewards.labelers import LexicalLabeler
from rewards.labels import CONDITIONS, CheXpertState

ROOT = Path(__file__).resolve().parents[2]
DEMO = PhantomDemo()
BLANK, POSITIVE, NEGATIVE, UNCERTAIN = CheXpertState
EDEMA, EFFUSION = CONDITIONS.index("Edema"), CONDITIONS.index("Pleural Effusion")
REPORTS = ["There is pulmonary edema.", "No edema or effusion.", "Small effusion & <b>no</b> edema.", "No effusion."]


def states(**findings: int) -> list[int]:
    values = {"edema": EDEMA, "effusion": EFFUSION}
    out = [int(BLANK)] * 14
    for name, state in findings.items():
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
    config, (first, second, third) = (
        tmp_path / "c.yaml",
        (str(tmp_path / name) for name in ("first", "second", "third")),
    )
    config.write_text("a: 1")
    write = "import sys; open(sys.argv[-1], 'a').write(open(sys.argv[-2]).read()); open(sys.argv[1], 'a').write('x')"
    runs = tmp_path / "runs"

    def both(*options: str) -> int:
        with demo_stages.Stages(tmp_path) as stages:
            stages.run(Job("one", first, ["-c", write, str(runs), *options, str(config), first]))
            stages.run(Job("two", second, ["-c", write, str(runs), first, second]))
            stages.run(Job("three", third, ["-c", write, str(runs), f"SFT={second}", str(config), third]))
        return len(runs.read_text())

    assert both() == 3
    assert both() == 3  # done before
    # another command; the second reads what the first wrote, and the third what the second did, by NAME=FILE
    assert both("--more") == 6
    config.write_text("a: 2")
    os.utime(config, (time.time() + 5, time.time() + 5))
    assert both("--more") == 9  # the config file is newer


def test_a_failing_stage_ends_the_demo(tmp_path):
    command = ["-c", "import sys; print('line\\n' * 30); sys.exit('what went wrong')"]
    end = "error: the stage 'SFT' failed"
    with pytest.raises(SystemExit, match=end) as ended, demo_stages.Stages(tmp_path) as stages:
        stages.run(Job("SFT", str(tmp_path / "out"), command))
    *tail, empty, sentence = str(ended.value).split("\n")
    assert (tail, empty) == (["line"] * 14 + ["what went wrong"], "")
    assert sentence.startswith(end)
    assert not (tmp_path / "stages.json").exists()


def test_stages_side_by_side_wait_for_each_other_and_fail_together(tmp_path):
    meet = """if True:
        import os, sys, time
        first, second = sys.argv[1:]
        open(first, "w").close()
        while not os.path.exists(second):
            time.sleep(0.01)"""
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    with demo_stages.Stages(tmp_path) as stages:
        stages.run(Job("a", a, ["-c", meet, a, b]), Job("b", b, ["-c", meet, b, a]))  # one after the other would hang
    assert stages.seconds().keys() == {"a", "b"}
    wait, started = "import sys, time; time.sleep(float(sys.argv[1])); open(sys.argv[2], 'w')", time.time()
    with demo_stages.Stages(tmp_path) as stages:
        jobs = [Job(name, str(tmp_path / name), ["-c", wait, name, str(tmp_path / name)]) for name in ("0.1", "1.5")]
        stages.run(*jobs)
    shares = stages.seconds()
    assert shares["0.1"] < shares["1.5"]
    assert sum(shares.values()) == pytest.approx(time.time() - started, abs=0.4)  # of the wall time, none twice
    with demo_stages.Stages(tmp_path) as stages:  # the third starts beside the second, which waits for it
        e, f, g = (str(tmp_path / name) for name in "efg")
        commands = {e: [wait, "0", e], f: [meet, f, g], g: [wait, "0", g]}
        stages.run(*(Job(out, out, ["-c", *command]) for out, command in commands.items()))
    note = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    fail = """if True:
        import os, sys, time
        while not os.path.isfile(sys.argv[1]) or not os.path.getsize(sys.argv[1]):
            time.sleep(0.01)
        sys.exit("no")"""
    os.remove(b)
    with pytest.raises(SystemExit, match="no"), demo_stages.Stages(tmp_path) as stages:
        commands = {"endless": note, "fails": fail}
        stages.run(*(Job(name, str(tmp_path / name), ["-c", code, b]) for name, code in commands.items()))
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path(b).read_text()), 0)  # ended with the other one


def test_peak_memory_of_stages(tmp_path):
    # in a process of its own, which counts itself too
    script = """if True:
        import json, sys
        from recipes.demos.stages import Job, Stages

        fill = "import sys, time; held = b'x' * int(sys.argv[1]); time.sleep(2.5); open(sys.argv[2], 'w')"
        for sizes in (["2000000000"], ["1"], ["2000000000", "1"]):
            folder = f"{sys.argv[1]}/{len(sizes)}{sizes[0]}"
            with Stages(folder) as stages:
                stages.run(*(Job(size, f"{folder}/{size}", ["-c", fill, size, f"{folder}/{size}"]) for size in sizes))
            record = json.load(open(f"{folder}/stages.json"))
            print("peaks", json.dumps([stage["peak_memory_gb"] for stage in record.values()]))"""
    command = [sys.executable, "-c", script, tmp_path]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line.removeprefix("peaks ") for line in process.stdout.splitlines() if line.startswith("peaks ")]
    (large,), (small,), pair = map(json.loads, lines)
    assert large - small == pytest.approx(2, rel=0.01)
    assert pair[0] == pair[1] == pytest.approx(large, rel=0.02)  # and not twice the larger one


HISTORY = [{"step": step, "reward": step / 10, "kl": "0.1", "num_tokens": 90 * step} for step in range(1, 6)]
HISTORY.append({"step": 5, "train_runtime": 60.0, "train_samples_per_second": 2.0})


@pytest.fixture
def built(tmp_path) -> Path:
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
    systems = {GRPO: right, SFT: ["No edema."] * 4, SFT_MORE: right[::-1], SHUFFLED: right[1:] + right[:1]}
    write_reports(DEMO, tmp_path, systems, [row["study_id"] for row in rows], HISTORY)
    return tmp_path


def test_the_demo_loads_no_torch():
    """It waits while its jobs train: torch and what imports it would be .8 GB of the memory that is counted."""
    code = "import sys, recipes.demo; print(*{'torch', 'transformers', 'trl', 'modeling'} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not process.stdout.strip()


def test_figures_and_page(built, call, tmp_path):
    score(call, DEMO, built)
    reports = DEMO.read(str(built), [0, 1], LexicalLabeler())
    figures = DEMO.compare(reports)
    table = figures["table"]
    assert table["GRPO"]["MCCS"] == pytest.approx(1.0)  # the references' own words
    assert (table["GRPO"]["micro-F1 13"], table["GRPO"]["format"]) == (1.0, 1.0)
    assert (table["SFT"]["micro-F1 13"], table["SFT"]["recall 13"], table["SFT"]["format"]) == (0.0, 0.0, 0.0)
    assert table["SFT"]["distinct reports"] == 1
    # "No edema." against [edema +], [edema -, effusion -], [edema -, effusion +], [effusion -]: cosines -1, r, r, 0
    expected = 2 * (np.sqrt(0.5) - 0.2) / 0.8 / 4
    assert table["SFT"]["MCCS"] == pytest.approx(expected)
    entry = demo_figures.pooled(figures["differences"], GRPO, SFT, "MCCS")
    assert entry["difference"] == pytest.approx(1 - expected)
    assert 0 <= entry["low"] <= entry["difference"] <= entry["high"] <= 1
    assert {entry["seed"] for entry in figures["differences"]} == {"0", "1", "pooled"}

    checks = DEMO.check_all(figures, minutes=16.0, memory_gb=1.0)
    # micro-F1 of shuffled images, format, samples and tokens of the control, time, memory
    assert [check["holds"] for check in checks[-6:]] == [True, True, True, True, False, True]
    assert figures["cost"][SFT] == {"samples": 120, "tokens": 450, "seconds": 60.0}
    assert sum(check["name"].startswith("aim:") for check in checks) == 2

    results = {"data": "openi", "seeds": [0, 1], "stages": {"data": 3.0}, **figures}
    file = tmp_path / "index.html"
    demo_page.write_page(file, "mrgr1", DEMO, results, checks, reports, str(built))
    page = file.read_text()
    assert page.count('<section class="study box">') == 4
    assert page.count("<svg") == 2  # reward and KL; the others were not logged
    assert "Small effusion &amp; &lt;b&gt;no&lt;/b&gt; edema." in page  # a report cannot bring markup in
    assert "do not publish" in page  # Open-i's licence
    assert '<td><b class="best">1.000</b></td>' in page and '<td class="no">no</td>' in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)  # self-contained
    assert "<script" not in page
    assert _unclosed(page) == []


def test_several_reports_of_a_study_are_refused(built):
    with open(DEMO.files(str(built), 0)[SFT], "a") as more:
        more.write("\n" + json.dumps({"study_id": "s0", "completion": "again"}))
    with pytest.raises(InputError, match="several reports of a study"):
        DEMO.read(str(built), [0, 1], LexicalLabeler())


def test_differences_by_hand():
    """Two studies, two seeds: a resample is a study twice or both once, so that the ends are the two studies' own."""
    parts = {"a": means_part({"x": [1.0, 0.0, 1.0, 1.0]}), "b": means_part({"x": [0.0, 0.0, 0.0, 1.0]})}
    entries = demo_figures.differences({"x": parts}, [("a", "b")], [3, 5])
    ends = {entry["seed"]: [entry[key] for key in ("difference", "low", "high")] for entry in entries}
    assert ends == {"3": [0.5, 0.0, 1.0], "5": [0.5, 0.0, 1.0], "pooled": [0.5, 0.0, 1.0]}


@pytest.mark.parametrize(
    ("bar", "holds"), [("> 0.2", False), (">= 0.2", True), ("< 0.2", False), ("<= 0.2", True), ("> -0.02", True)]
)
def test_bars(bar, holds):
    assert demo_figures.make_check("x", 0.2, bar) == {"name": "x", "value": 0.2, "bar": bar, "holds": holds}


def test_the_control_is_trained_on_as_many_answers():
    """120 steps of 64 completions, by demo.yaml, are 480 steps of 16 answers, by sft_demo.yaml."""
    assert steps_of_equal_samples(120) == 480


def test_cost_of_training(tmp_path):
    """25 steps of 16 answers in 50 s; tokens are counted from the start, as both trainers log them."""
    log = [{"step": 10, "num_tokens": 900.0}, {"step": 20, "num_tokens": 1900.0}]
    log.append({"step": 25, "train_runtime": 50.0, "train_samples_per_second": 8.001})
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    assert cost_of_training(tmp_path) == {"samples": 400, "tokens": 1900.0, "seconds": 50.0}


def test_bars_of_the_control():
    """On real text GRPO must beat the control; on a phantom it may hope to. Shuffled images lose half of the F1."""
    row = {"MCCS": 0.5, "micro-F1 13": 0.4}
    names = (GRPO, SFT, SFT_MORE, SHUFFLED)
    figures = {
        "table": dict.fromkeys(names, row) | {SHUFFLED: {"MCCS": 0.1, "micro-F1 13": 0.3}},
        "differences": [
            {"system": GRPO, "minus": rival, "measure": measure, "seed": "pooled", "low": 0.01}
            for rival in names[1:]
            for measure in row
        ],
        "lowest format": 0.92,
        "cost": {GRPO: {"samples": 7680, "tokens": 7e5}, SFT_MORE: {"samples": 7680, "tokens": 6e5}},
    }
    real, phantom = ({check["name"]: check["holds"] for check in demo.check(figures)} for demo in (OpenIDemo(), DEMO))
    control = "GRPO minus SFT, more steps, MCCS, low end of the 95 % interval"
    assert control in real and f"aim: {control}" in phantom
    assert not real["micro-F1 with shuffled images, of that with the right ones"]  # 0.3 of 0.4
    assert not real["tokens of SFT, more steps / of GRPO"] and real["samples of SFT, more steps / of GRPO"]
    assert (real["GRPO, format (lowest seed)"], phantom["GRPO, format (lowest seed)"]) == (True, False)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--system", "lmrrg", "--data", "openi"], "--data openi is for --system mrgr1"),
        (["--seeds", "1", "1"], "different numbers"),
        (["--system", "mrg"], "mrg"),
    ],
)
def test_mistakes(call, tmp_path, words, sentence):
    with pytest.raises(InputError, match=sentence):
        call(demo_script.main, *words, "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("system", "data"), [(system, data) for system, demos in demo_script.DEMOS.items() for data in demos]
)
def test_every_command_of_a_plan_has_its_inputs(system, data):
    """All that a job reads was made at an earlier level, and no two jobs write the same."""
    levels = list(demo_script.DEMOS[system][data].plan("out", [0, 3]))
    outs = {job.out for jobs in levels for job in jobs}
    finished = set()
    for jobs in levels:
        for job in jobs:
            words = {word.split("=")[-1] for word in job.command}
            assert (words & outs) - {job.out} <= finished and job.out in words
        finished |= {job.out for job in jobs}
    assert len(outs) == sum(map(len, levels))
    assert {f"seed {seed}: scores and report page" for seed in (0, 3)} == {job.name for job in levels[-1]}


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
