import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.completions import parse_completion, report_spans
from rewards.format import format_reward, make_format_reward

CASES = [
    # completion, format score, text to be labelled
    ("<think>heart large</think><report>Cardiomegaly.</report>", 1.0, "Cardiomegaly."),  # perfect
    ("\n<think>a</think>\n\n<report> b </report>\n", 1.0, "b"),  # white space around is no text
    ("<think>a</think> So: <report>b</report>", 0.5, "b"),  # text between
    ("Sure! <think>a</think><report>b</report>", 0.5, "b"),  # text before
    ("<think>a</think><report>b</report> Bye.", 0.5, "b"),  # text after
    ("<think> </think><report>b</report>", 0.5, "b"),  # empty reasoning
    ("<report>b</report>", 0.25, "b"),  # reasoning missing
    ("Here: <report>b</report>", 0.25, "b"),  # reasoning missing, text outside
    ("<report>b</report><think>a</think>", 0.0, "b"),  # swapped order
    ("<think>a<report>b</report></think>", 0.0, ""),  # nested: the report is part of the reasoning
    ("<report>b<think>a</think></report>", 0.0, "b"),  # nested the other way
    ("<think>a</think><report>b</report><report>c</report>", 0.0, "b"),  # two reports: the first counts
    ("<think>a</think><think>b</think><report>c</report>", 0.0, "c"),  # reasoning twice
    ("<think>a</think><report>b", 0.0, "b"),  # truncated in the report
    ("<think>pneumonia, effusion", 0.0, ""),  # truncated in the reasoning: nothing to label
    ("<think>a <report>b</report>", 0.0, "b"),  # reasoning never closed
    ("a</think><report>b</report>", 0.0, "b"),  # the opening tag stood in the prompt
    ("edema</think> No edema.", 0.0, "No edema."),  # the same, without a report tag
    ("<think>a</think><report> </report>", 0.0, ""),  # empty report
    ("<think>a</think> b", 0.0, "b"),  # report tag missing: everything outside the reasoning
    ("<THINK>a</THINK><REPORT>b</REPORT>", 0.0, "b"),  # credit is for lower case alone, reasoning is never labelled
    ("<think>a</THINK><report>b</report>", 0.0, "b"),
    ("< think>a</ think>", 0.0, ""),
    ("<thinking>a</thinking><report>b</report>", 0.0, "b"),
    ("<thinking>a</thinking> b", 0.0, "b"),
    ("<Think step='1'>a</Think> b", 0.0, "b"),
    ("[THINK]a[/THINK] b", 0.0, "b"),  # Magistral's
    ("<reasoning>a</reasoning> <thought>c</thought> b", 0.0, "b"),
    ("<THINK>a <report>c</report></THINK> b", 0.0, "b"),  # a report in the reasoning
    ("<think>a</think><think>c<report>b</report>", 0.0, ""),  # in a second one, which is never closed
    ("<think>a</think><think>c<report>b</report></think>", 0.0, ""),
    ("<think>a<think>c<report>b</report>", 0.0, ""),  # two were opened, none closed
    ("a</think><think>c<report>b</report>", 0.0, ""),  # the first was opened in the prompt
    ("<think>a</think><THINK>c<report>b</report>", 0.0, ""),
    ("<think>a</think><think>c</think><report>b</report>", 0.0, "b"),
    ("<think>a<think>c</think><report>b</report></think>", 0.0, ""),  # the outer one of two closes behind the report
    ("<think>a<think>c</think><report>b</report>", 0.0, "b"),  # opened twice, closed once: what follows is outside
    ("<think>a</think> c </think> b", 0.0, "b"),  # up to the last tag that closes
    ("<report>a</report></think><report>b</report>", 0.0, "b"),  # opened in the prompt, the first report in it
    ("edema <report>a</report> c</think> No edema.", 0.0, "No edema."),
    ("I think [a] <b> the thinking is reasoning.", 0.0, "I think [a] <b> the thinking is reasoning."),  # no tags
    ("The heart is normal.", 0.0, "The heart is normal."),  # no tags at all
    (" \n\t", 0.0, ""),  # white space only
    ("", 0.0, ""),  # empty
    ("</report></think><report><think>", 0.0, ""),  # all four, none matching
]


@pytest.mark.parametrize(("completion", "score", "report"), CASES)
def test_spans_are_where_the_report_stands(completion, score, report):
    spans = report_spans(completion)
    assert " ".join(completion[start:end] for start, end in spans).split() == report.split()
    assert spans == sorted(spans) and all(completion[s:e] == completion[s:e].strip() for s, e in spans)


@pytest.mark.parametrize(
    ("completion", "spans"),
    [
        ("<think>a</think>\n<report> Größe. </report>", [(26, 32)]),
        ("<think>a</think><report>  </report>", [(24, 24)]),  # an empty report has a place too
        (" a <think>b</think> c", [(1, 2), (20, 21)]),
        ("<think>a", []),
        ("", []),
        ([{"role": "assistant", "content": "<report>a</report>"}], [(8, 9)]),
    ],
)
def test_spans_by_hand(completion, spans):
    assert report_spans(completion) == spans


@pytest.mark.parametrize(("completion", "score", "report"), CASES)
def test_truth_table(completion, score, report):
    parsed = parse_completion(completion)
    assert (parsed.format_score, parsed.report) == (score, report)
    assert format_reward([completion]) == [score]
    assert make_format_reward(partial_credit=False)([completion]) == [float(score == 1)]


SPELLINGS = [
    ("<think>", "</think>"),
    ("<THINK>", "</THINK>"),
    ("< think >", "< / think >"),
    ("<Think step='1'>", "</Think>"),
    ("<thinking>", "</ thinking>"),
    ("<thought>", "</thought>"),
    ("<Thoughts>", "</Thoughts>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("[ Thinking ]", "[ / Thinking ]"),
]


@pytest.mark.parametrize(
    ("form", "report"),
    [
        ("{}a{}{}c<report>b</report>{}", ""),  # in a second one
        ("{}a{}{}c<report>b</report>", ""),  # which is never closed
        ("a{1}{2}c<report>b</report>", ""),  # the first was opened in the prompt
        ("{0}a{2}c{1}<report>b</report>{3}", ""),  # the second one is in the first
        ("<report>b</report>{1}", ""),
        ("{}a<report>b</report>{}<report>d</report>", "d"),
        ("{}a{}{}c<report>b</report>{} d", "d"),
        ("{}a{}{}c{}<report>d</report>", "d"),
    ],
)
@pytest.mark.parametrize("first", SPELLINGS)
@pytest.mark.parametrize("second", SPELLINGS)
def test_a_report_in_the_reasoning_is_never_labelled(form, report, first, second):
    for tags in ((*first, *second), (first[0], second[1], second[0], first[1])):  # closed in another spelling too
        parsed = parse_completion(form.format(*tags))
        assert parsed.report == report and "b" not in parsed.report
        assert parsed.format_score == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["{}think{n}{}", "{}think{n}<report>think</report>{}", "<report>report{n}</report>", "text{n}"]
            ),
            st.sampled_from(SPELLINGS),
        )
    )
)
def test_the_first_report_outside_the_reasoning(parts):
    """Reasoning, reasoning with a report in it, reports and plain text in any order and spelling."""
    texts = [form.format(*tags, n=number) for number, (form, tags) in enumerate(parts)]
    reports = [f"report{number}" for number, (form, _) in enumerate(parts) if form.startswith("<report>")]
    outside = [text for text in texts if text.startswith("text")]
    parsed = parse_completion(" ".join(texts))
    assert parsed.report.split() == (reports[:1] or outside)
    assert parsed.tagged == bool(reports)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "content": "<think>a</think><report>b</report>"}],  # TRL's chat completion
        [{"role": "assistant", "content": [{"type": "text", "text": "<think>a</think><report>b</report>"}]}],  # parts
        [
            {"role": "assistant", "content": None},
            {"role": "assistant", "content": "<think>a</think><report>b</report>"},
        ],
    ],
)
def test_chat_completions(messages):
    assert parse_completion(messages).report == "b" and format_reward([messages]) == [1.0]


@given(st.lists(st.sampled_from(["<think>", "</think>", "<report>", "</report>", "edema", " ", "\n", "é<"])))
def test_any_mixture_of_tags_parses(pieces):
    text = "".join(pieces)
    parsed = parse_completion(text)
    assert parsed.format_score in (0.0, 0.25, 0.5, 1.0)
    assert all(word in text for word in parsed.report.split()) and "<report>" not in parsed.report
    assert parsed.format_score == 0 or (parsed.tagged and parsed.report)


@given(st.text())
def test_any_text_parses(text):
    parse_completion(text)


@given(st.text(alphabet="ab <>/\n"), st.text(alphabet="cd .,\n"))
def test_reasoning_is_never_labelled(think, report):
    assert parse_completion(f"<think>{think}</think><report>{report}</report>").report == report.strip()


def test_log_metric_reports_violations():
    logged = {}
    format_reward(["<think>a</think><report>b</report>", "b"], log_metric=logged.__setitem__)
    assert logged == {"format/violations": 0.5}


@pytest.mark.parametrize(
    ("text", "report"),
    [
        ("<think>" * 40_000, ""),  # never closed
        ("<report>" * 40_000, ""),  # the first one is empty
        ("<think></think>" * 40_000 + "b", "b"),  # text behind all of them
        ("<" * 40_000, "<" * 40_000),  # no tag at all
        ("b <" + " " * 40_000, "b <"),
        ("b " + "<think " * 40_000, "b " + ("<think " * 40_000).strip()),
    ],
)
def test_forty_thousand_tags(text, report):
    parsed = parse_completion(text)
    assert (parsed.format_score, parsed.report) == (0.0, report)
