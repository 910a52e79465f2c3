"""The page of recipes/app.py: one study on the left, what one or two models write about it on the right.

Gradio serves it. An uploaded file is read and deleted at once; the X-rays of a study wait in memory until their page
is closed. What was typed and what a model writes reaches the browser escaped.
"""

import base64
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # else gradio tells its makers of every start

import gradio as gr
from markupsafe import Markup, escape

from recipes.evaluation.agreement import group_mentions
from recipes.evaluation.error_taxonomy import Evidence
from recipes.files import InputError
from recipes.viewer.study import MAX_CHARACTERS, SECTIONS, SEXES, Picture, make_study, take_upload
from recipes.viewer.systems import READ, System, list_findings, read_completion
from rewards.labelers import LexicalLabeler
from rewards.labels import FINDINGS, CheXpertState

NOTICE = "For research. Not for clinical use."
INTRODUCTION = """<p class="soft">Drop a chest X-ray (PNG, JPEG or DICOM) and have the report written.
A file is deleted once it is read; nothing is kept.</p>"""
EMPTY = '<div class="written soft">The report is written here.</div>'
VIEWS = {"not known": None, "PA": "PA", "AP": "AP"}
KINDS = {
    CheXpertState.POSITIVE: "present",
    CheXpertState.UNCERTAIN: "possible",
    CheXpertState.NEGATIVE: "absent",
}
CSS = Path(__file__).with_suffix(".css")
PACE = 0.1  # seconds
KEPT = 3600  # seconds that a study without a request stays in memory


def check_address(host: str, port: int) -> None:
    """Raises InputError where no server can be started at `host`:`port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"{host}:{port} cannot be used ({error.strerror}); name another --port") from error


################
# HTML
################


def show_picture(picture: Picture) -> Markup:
    """The X-ray, its file's name and size, and the warnings about it."""
    image = base64.b64encode(picture.png).decode()
    warnings = [Markup('<p class="warning">{}</p>').format(warning) for warning in picture.warnings]
    width, height = picture.size
    return Markup(
        '<figure class="xray"><img src="data:image/png;base64,{}" alt="{}"><figcaption>{} · {} × {}</figcaption>{}'
        "</figure>"
    ).format(image, picture.name, picture.name, width, height, Markup("").join(warnings))


def show_report(report: str, complete: bool, cut: int | None = None) -> Markup:
    """The report as text; once `complete`, with its findings marked. `cut`: at how many tokens it was cut off."""
    note = Markup('<p class="warning">Cut off after {} tokens (--max_new_tokens).</p>').format(cut) if cut else ""
    if not report:
        return Markup('<div class="written soft">{}</div>{}').format("(an empty report)" if complete else "…", note)
    pieces, place = [], 0
    for group in group_mentions(LexicalLabeler().mentions(report)) if complete else ():
        states = [state for *_, state in group]
        kind = KINDS[next(candidate for candidate in KINDS if candidate in states)]
        start, end = group[0][0], max(mention[1] for mention in group)
        pieces += [escape(report[place:start]), Markup('<mark class="{}">{}</mark>').format(kind, report[start:end])]
        place = end
    text = Markup("").join([*pieces, escape(report[place:])])
    return Markup('<div class="written report{}">{}</div>{}').format("" if complete else " growing", text, note)


def show_findings(rows: list[tuple[str, str, list[str]]], others: list[tuple[str, str, list[str]]] | None) -> Markup:
    """The table of findings; a row says so where it differs from `others`, the other model's."""
    other_states = {name: state for name, state, _ in others or ()}
    lines = []
    for name, state, sentences in rows:
        differs = others is not None and other_states.get(name, "not mentioned") != state
        note = Markup('<span class="other">other model: {}</span>').format(other_states.get(name, "not mentioned"))
        lines.append(
            Markup('<tr class="{}"><th scope="row">{}</th><td class="state">{}{}</td><td>{}</td></tr>').format(
                "absent" if name == "No Finding" else state,
                name,
                state,
                note if differs else "",
                Markup("<br>").join(escape(sentence) for sentence in sentences),
            )
        )
    if not rows:
        return Markup('<p class="soft">The report mentions none of the 13 findings.</p>')
    silent = [name for name in FINDINGS if name not in {row[0] for row in rows}]
    return Markup(
        '<table class="findings"><thead><tr><th>Finding</th><th>State</th><th>The report says</th></tr></thead>'
        '<tbody>{}</tbody></table><p class="soft">Not mentioned: {}.</p>'
    ).format(Markup("").join(lines), ", ".join(silent) or "none")


def describe(system: System) -> Markup:
    """Which model it is, and what of a study reaches it."""
    reads = ["the frontal X-ray", *["the lateral X-ray"] * system.reads_lateral]
    reads += [name.replace("_", " ") for name in READ if name in system.fields]
    return Markup('<h2>{}</h2><p class="soft">Reads {}. Prompt: {}.</p>').format(
        system.name, " and ".join([", ".join(reads[:-1]), reads[-1]] if len(reads) > 1 else reads), system.prompt_file
    )


################
# Callbacks
################


def answers(systems: Sequence[System], labeler: Callable, study: dict) -> Iterator[list[dict]]:
    """Of each model {report, think, asked, findings, done, cut} as they grow; models write one after the other.

    `findings` are those of `list_findings`, None until the report is complete. Raises InputError. Tokens that come
    within `PACE` are shown together: a browser that lags behind would not hear of a stop.
    """
    evidence = Evidence()
    progress = [
        {"report": "", "think": "", "asked": system.sample(study)[0], "findings": None, "done": False, "cut": None}
        for system in systems
    ]
    for system, answer in zip(systems, progress, strict=True):
        due = 0.0
        for completion, cut in system.write(study):
            answer["report"], answer["think"] = read_completion(completion)
            answer["cut"] = system.max_new_tokens if cut else None
            if time.monotonic() > due:
                yield progress
                due = time.monotonic() + PACE
        answer["done"] = True
        answer["findings"] = list_findings(answer["report"], labeler, evidence)
        yield progress


def say(sentence: str, kind: str = "error") -> str:
    """A line of the page's status."""
    return Markup('<p class="{}" role="alert">{}</p>').format(kind, sentence) if sentence else ""


def draw(progress: list[dict]) -> Iterator:
    """What the page shows of each answer: report, findings, reasoning with its fold, question with its fold."""
    for answer, other_answer in zip(progress, progress[::-1] if len(progress) == 2 else [None], strict=True):
        yield show_report(answer["report"], answer["done"], answer["cut"])
        rows = answer["findings"]
        yield "" if rows is None else show_findings(rows, other_answer and other_answer["findings"])
        yield gr.Accordion(visible=bool(answer["think"]))
        yield Markup('<div class="report">{}</div>').format(answer["think"])
        yield gr.Accordion(visible=True)
        yield Markup('<div class="report">{}</div>').format(answer["asked"])


def blank_page(systems: int) -> list:
    """The page's fields, its status and its answers as they are at the start, for so many systems."""
    answer = [EMPTY, "", gr.Accordion(visible=False), "", gr.Accordion(visible=False), ""]
    return ["not known", "findings", "", "", "", None, "not known", "", *answer * systems]


def empty_drop() -> tuple:
    """A place for an X-ray without one."""
    return gr.File(value=None, visible=True), gr.HTML("", visible=False), gr.Button(visible=False), None


@dataclass
class Callbacks:
    """What the page does when a file is dropped and when a report is asked for or stopped."""

    systems: Sequence[System]
    labeler: Callable
    folder: Path
    image_size: int
    stops: dict[str, Event] = field(default_factory=dict)  # of the visitors whose reports are being written

    def take(self, is_frontal: bool, payload: dict | None) -> tuple:
        """Reads a dropped file: file, preview, button, picture, status and view."""
        try:
            picture = take_upload(payload or {}, self.folder, self.image_size, is_frontal)
        except InputError as error:
            return gr.File(value=None), gr.skip(), gr.skip(), None, say(str(error)), gr.skip()
        view_name = picture.view if picture.view in VIEWS else gr.skip()
        figure = gr.HTML(show_picture(picture), visible=True)
        return gr.File(value=None, visible=False), figure, gr.Button(visible=True), picture, "", view_name

    def write(
        self, request: gr.Request, frontal: Picture | None, lateral: Picture | None, view: str, *texts
    ) -> Iterator[list]:
        """The status and, as they grow, the answers; `texts` are the further arguments of `make_study`."""
        unchanged = [gr.skip()] * (6 * len(self.systems))
        stopped = self.stops[request.session_hash] = Event()
        began = time.monotonic()
        try:
            study = make_study(frontal, lateral, VIEWS[view], *texts)
            with closing(answers(self.systems, self.labeler, study)) as telling:
                for progress in telling:
                    if stopped.is_set():
                        yield [say("Stopped.", "soft"), *unchanged]
                        return
                    yield [say("Writing …", "soft"), *draw(progress)]
        except InputError as error:
            yield [say(str(error)), *unchanged]
        else:
            yield [say(f"Done in {time.monotonic() - began:.1f} s.", "soft"), *unchanged]

    def end(self, request: gr.Request) -> None:
        """Stops what is being written for this visitor."""
        # Not gradio's own cancelling: what it had under way would come after the page has said that it stopped.
        if request.session_hash in self.stops:
            self.stops[request.session_hash].set()


html = partial(gr.HTML, apply_default_css=False)  # gradio's own draws boxes around every cell


def text_box(name: str, label: str, lines: int, fields: set[str]) -> gr.Textbox:
    """A box for a text; one that no prompt's `fields` name takes none and says why."""
    read = name in fields
    return gr.Textbox(
        label=label,
        lines=lines if read else 1,
        max_lines=12,
        max_length=MAX_CHARACTERS,
        interactive=read,
        placeholder="optional" if read else f"not read: the prompt has no {{{name}}}",
        elem_id=name,
    )


def drop_zone(name: str, label: str) -> tuple:
    """A place for an X-ray: the file, its preview, the button that removes it, and the picture."""
    with gr.Column(min_width=150, elem_id=name):
        file = gr.File(label=label, height=150, elem_classes="drop")
        preview = html(visible=False)
        remove = gr.Button("Remove", size="sm", visible=False, elem_classes="remove")
    return file, preview, remove, gr.State(None, time_to_live=KEPT)


def build_page(systems: Sequence[System], labeler: Callable, folder: Path, image_size: int) -> gr.Blocks:
    """The page; `folder` is where gradio puts uploads, and where they are deleted from."""
    fields = set().union(*(system.fields for system in systems))
    reads_lateral = any(system.reads_lateral for system in systems)
    private = {"api_visibility": "private", "show_progress": "hidden"}
    callbacks = Callbacks(systems, labeler, folder, image_size)

    with gr.Blocks(
        title="RRG Recipes: try a model", analytics_enabled=False, delete_cache=(60, 300), fill_width=True
    ) as page:
        html(f'<div class="notice" role="note">{NOTICE}</div>', elem_id="notice")
        html("<h1>Try a model</h1>" + INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2, min_width=320, elem_id="study"):
                with gr.Row():
                    frontal = drop_zone("frontal", "Frontal X-ray")
                    if reads_lateral:
                        lateral = drop_zone("lateral", "Lateral X-ray")
                if not reads_lateral:
                    html('<p class="soft">A lateral X-ray is not read: one image is looked at.</p>')
                view = gr.Radio(list(VIEWS), value="not known", label="View", visible="view" in fields, elem_id="view")
                sections = gr.Radio(SECTIONS, value="findings", label="Write", visible="sections" in fields)
                indication = text_box("indication", "Indication", 2, fields)
                history = text_box("history", "History", 2, fields)
                prior = text_box("prior_report", "Prior report", 4, fields)
                age = gr.Number(None, label="Age in years", visible="age" in fields, elem_id="age")
                sex = gr.Radio(list(SEXES), value="not known", label="Sex", visible="sex" in fields, elem_id="sex")
                with gr.Row():
                    start = gr.Button(
                        "Write the report", variant="primary", size="md", scale=3, min_width=165, elem_id="start"
                    )
                    stop = gr.Button("Stop", size="md", scale=1, min_width=60, elem_id="stop")
                    clear = gr.Button("Clear", size="md", scale=1, min_width=60, elem_id="clear")
                status = html(elem_id="status")
            shown = []
            for number, system in enumerate(systems):
                with gr.Column(scale=3, min_width=320, elem_id=f"model-{number}", elem_classes="model"):
                    html(describe(system))
                    report = html(EMPTY, elem_classes="result")
                    findings = html()
                    with gr.Accordion("Reasoning", open=False, visible=False, elem_classes="think") as fold:
                        think = html()
                    with gr.Accordion("What it was asked", open=False, visible=False, elem_classes="asked") as ask:
                        asked = html()
                shown += [report, findings, fold, think, ask, asked]

        drops = [frontal, lateral] if reads_lateral else [frontal]
        for number, (file, preview, remove, picture) in enumerate(drops):
            view_output = view if number == 0 else gr.State()
            file.upload(
                partial(callbacks.take, number == 0),
                file,
                [file, preview, remove, picture, status, view_output],
                preprocess=False,
                **private,
            )
            remove.click(empty_drop, None, [file, preview, remove, picture], **private)
            clear.click(empty_drop, None, [file, preview, remove, picture], **private)
        typed = [view, sections, indication, history, prior, age, sex]
        pictures = [frontal[3], lateral[3] if reads_lateral else gr.State()]
        start.click(callbacks.write, [*pictures, *typed], [status, *shown], **private)
        stop.click(callbacks.end, None, None, **private)

        forget = partial(blank_page, len(systems))
        clear.click(callbacks.end, None, None, **private).then(forget, None, [*typed, status, *shown], **private)
    return page


def serve(page_of: Callable[[Path], gr.Blocks], host: str, port: int, max_upload: int) -> Iterator[str]:
    """Serves `page_of`(the folder of uploads) and yields its address; what remains of uploads goes when it is closed.

    `max_upload`: MB that a file may have.
    """
    with tempfile.TemporaryDirectory(prefix="rrg_recipes_app_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = page_of(Path(folder))
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                max_file_size=f"{max_upload}mb",
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                run_history=False,
                enable_monitoring=False,
                footer_links=[],
                show_error=True,
                theme=gr.themes.Default(primary_hue="sky"),
                css=CSS.read_text(),
            )
            yield address
        finally:
            page.close(verbose=False)
