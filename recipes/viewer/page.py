"""The page of recipes/app.py: one study on the left, what one or two models write about it on the right.

Gradio serves it. An uploaded file is read and deleted at once; the X-rays of a study wait in memory until their page
is closed.
"""

import io
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
from datasets import Dataset
from markupsafe import Markup
from PIL import Image

from recipes.evaluation.error_taxonomy import Evidence
from recipes.files import InputError
from recipes.viewer.anatomy import choose_regions, place_findings
from recipes.viewer.attribution import attend, draw_look, look_for, regions_to_attend
from recipes.viewer.html import (
    EMPTY,
    NO_ATTENTION,
    describe,
    short_names,
    show_attention,
    show_boxes,
    show_comparison,
    show_findings,
    show_look,
    show_picture,
    show_report,
)
from recipes.viewer.study import MAX_CHARACTERS, SECTIONS, SEXES, Picture, make_study, take_row, take_upload
from recipes.viewer.systems import TYPED, System, list_findings, read_completion

NOTICE = "For research. Not for clinical use."
INTRODUCTION = """<p class="soft">Drop a chest X-ray (PNG, JPEG or DICOM) and have the report written. Its findings are
those of the labeler {}. A file is deleted once it is read; nothing is kept.</p>"""
VIEWS = {"not known": None, "PA": "PA", "AP": "AP"}
CSS = Path(__file__).with_suffix(".css")
SCRIPT = Path(__file__).with_suffix(".js")
TO_THE_REPORT = "() => window.showAnswers()"  # of SCRIPT
PACE = 0.1  # seconds
KEPT = 3600  # seconds that a study without a request stays in memory
NO_TEXTS = ("", "", "", None, "not known")  # indication, history, prior report, age, sex
MOST_STUDIES = 1000  # of a data set that are offered


def check_address(host: str, port: int) -> None:
    """Raises InputError where no server can be started at `host`:`port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"{host}:{port} cannot be used ({error.strerror}); name another --port") from error


################
# Callbacks
################


def answers(systems: Sequence[System], labeler: Callable, study: dict) -> Iterator[list[dict]]:
    """What each system has written so far: report, think, asked (the prompt), findings, done, completion and cut.

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
            answer["cut"], answer["completion"] = system.max_new_tokens if cut else None, completion
            if time.monotonic() > due:
                yield progress
                due = time.monotonic() + PACE
        answer["done"] = True
        answer["findings"] = list_findings(answer["report"], labeler, evidence)
        yield progress


def say(sentence: str, kind: str = "error") -> str:
    """A line of the page's status."""
    return Markup('<p class="{}" role="alert">{}</p>').format(kind, sentence) if sentence else ""


def draw(systems: Sequence[System], progress: list[dict], study: dict, frontal: Picture) -> Iterator:
    """What the page shows: of two complete answers the comparison, then each answer as `blank_answer` has it."""
    complete = [answer["findings"] for answer in progress if answer["findings"] is not None]
    yield show_comparison(short_names(systems), complete) if len(complete) == 2 else ""
    for system, answer in zip(systems, progress, strict=True):
        findings = answer["findings"]
        yield show_report(answer["report"], answer["done"], answer["cut"])
        if findings is None:
            yield from ["", *[gr.skip()] * 7]
        else:
            with Image.open(io.BytesIO(frontal.png)) as image:
                boxes = show_boxes(frontal.png, image.size, place_findings(findings, frontal.boxes))
            sentences = [text for *_, texts in findings for text in texts if text in answer["completion"]]
            sentences = sorted(dict.fromkeys(sentences), key=answer["report"].find)
            yield show_findings(findings)
            yield gr.HTML(boxes, visible=bool(boxes))
            regions = choose_regions(regions_to_attend(system), findings)
            yield gr.Accordion(visible=bool(sentences or regions))
            yield gr.Radio(choices=sentences, value=None)
            yield ""
            yield gr.Dropdown(choices=regions, value=None)
            yield ""
            yield (study, answer["completion"], frontal)
        yield gr.Accordion(visible=bool(answer["think"]))
        yield Markup('<div class="report">{}</div>').format(answer["think"])
        yield gr.Accordion(visible=True)
        yield Markup('<div class="report">{}</div>').format(answer["asked"])


def blank_answer() -> list:
    """An answer's fields at the start: report; findings; boxes; of where the model looked the fold, sentences and
    their picture, regions and theirs, and what these need; reasoning with its fold; question with its fold."""
    hidden = gr.Accordion(visible=False)
    look = [gr.HTML("", visible=False), hidden, gr.Radio(choices=[], value=None), ""]
    look += [gr.Dropdown(choices=[], value=None), "", None]
    return [EMPTY, "", *look, hidden, "", hidden, ""]


def blank_answers(systems: int) -> list:
    """The comparison and the answers as they are at the start, for so many systems."""
    return ["", *[field for _ in range(systems) for field in blank_answer()]]


def empty_drop() -> list:
    """A place for an X-ray without one."""
    return [gr.File(value=None, visible=True), gr.HTML("", visible=False), gr.Button(visible=False), None]


def full_drop(picture: Picture) -> list:
    """A place for an X-ray with one."""
    return [
        gr.File(value=None, visible=False),
        gr.HTML(show_picture(picture), visible=True),
        gr.Button(visible=True),
        picture,
    ]


class Stop(Event):
    """Ends what is being written for a visitor; `forgotten`: what is there already is to vanish."""

    forgotten = False


@dataclass
class Callbacks:
    """What the page does when a file is dropped and when a report is asked for, stopped or looked into.

    `rows`: of a data set whose studies are offered, or None.
    """

    systems: Sequence[System]
    labeler: Callable
    folder: Path
    image_size: int
    rows: Dataset | None = None
    stops: dict[str, Stop] = field(default_factory=dict)  # of the visitors whose reports are being written

    def take_frontal(self, request: gr.Request, payload: dict | None) -> list:
        """Reads a dropped file: its place, status, view, and answers that are blank again."""
        return self._take(request, payload, True)

    def take_lateral(self, request: gr.Request, payload: dict | None) -> list:
        """As `take_frontal`."""
        return self._take(request, payload, False)

    def _take(self, request: gr.Request, payload: dict | None, is_frontal: bool) -> list:
        blank = self.forget(request)
        try:
            picture = take_upload(payload or {}, self.folder, self.image_size, is_frontal)
        except InputError as error:
            return [gr.File(value=None), gr.skip(), gr.skip(), None, say(str(error)), gr.skip(), *blank]
        view = picture.view if picture.view in VIEWS else gr.skip()
        return [*full_drop(picture), "", view, *blank]

    def take_study(self, request: gr.Request, study_id: str | None) -> list:
        """Reads a study of the data set: both places, view, texts, status, and answers that are blank again."""
        blank = self.forget(request)
        if study_id is None:
            return [*empty_drop(), *empty_drop(), "not known", *NO_TEXTS, "", *blank]
        row = self.rows[self.rows["study_id"].index(study_id)]
        try:
            pictures = take_row(row, self.image_size)
        except InputError as error:
            return [*empty_drop(), *empty_drop(), "not known", *NO_TEXTS, say(str(error)), *blank]
        drops = [full_drop(picture) for picture in pictures] + [empty_drop()]
        view = pictures[0].view if pictures[0].view in VIEWS else "not known"
        sex = next((name for name, value in SEXES.items() if value == row.get("sex")), "not known")
        texts = [row.get(name) or "" for name in TYPED]
        return [*drops[0], *drops[1], view, *texts, row.get("age"), sex, "", *blank]

    def remove(self, request: gr.Request) -> list:
        """Empties a place: the place, and answers that are blank again."""
        return [*empty_drop(), *self.forget(request)]

    def write(
        self, request: gr.Request, frontal: Picture | None, lateral: Picture | None, view: str, *texts
    ) -> Iterator[list]:
        """The status and, as they grow, the answers; `texts` are the further arguments of `make_study`."""
        unchanged = [gr.skip()] * len(blank_answers(len(self.systems)))
        stop = self.stops[request.session_hash] = Stop()
        began = time.monotonic()
        try:
            study = make_study(frontal, lateral, VIEWS[view], *texts)
            with closing(answers(self.systems, self.labeler, study)) as telling:
                for progress in telling:
                    if stop.is_set():
                        # What was under way may have come after the page was made blank: it vanishes once more.
                        blank = [gr.skip(), *blank_answers(len(self.systems))]
                        yield blank if stop.forgotten else [say("Stopped.", "soft"), *unchanged]
                        return
                    yield [say("Writing …", "soft"), *draw(self.systems, progress, study, frontal)]
        except InputError as error:
            yield [say(str(error)), *unchanged]
        else:
            yield [say(f"Done in {time.monotonic() - began:.1f} s.", "soft"), *unchanged]

    def look(self, number: int, sentence: str | None, written: tuple | None) -> Iterator[str]:
        """Where system `number` looked for one of the sentences that it has `written`."""
        if not sentence or written is None:
            yield ""
            return
        study, completion, frontal = written
        yield say("Computing the gradient …", "soft")
        try:
            look = look_for(self.systems[number], study, completion, sentence)
        except InputError as error:
            yield say(str(error))
        else:
            yield show_look(draw_look(frontal.png, look), look, sentence)

    def attend(self, number: int, region: str | None, written: tuple | None) -> str:
        """What a region of system `number`, an LM-RRG, weighs the X-ray's patches with."""
        if not region or written is None:
            return ""
        study, _, frontal = written
        try:
            attention = attend(self.systems[number], study, region, frontal.boxes)
        except InputError as error:
            return say(str(error))
        with Image.open(io.BytesIO(frontal.png)) as image:
            size = image.size
        return show_attention(draw_look(frontal.png, attention.look), attention, region, size, frontal.boxes or ())

    def end(self, request: gr.Request) -> None:
        """Stops what is being written for this visitor."""
        # Not gradio's own cancelling: what it had under way would come after the page has said that it stopped.
        if request.session_hash in self.stops:
            self.stops[request.session_hash].set()

    def forget(self, request: gr.Request) -> list:
        """Stops it, and returns answers that are blank again."""
        if stop := self.stops.get(request.session_hash):
            stop.forgotten = True
        self.end(request)
        return blank_answers(len(self.systems))


html = partial(gr.HTML, apply_default_css=False)  # gradio's own draws boxes around every cell


def text_box(name: str, label: str, lines: int, systems: Sequence[System]) -> gr.Textbox:
    """A box for a text; hidden where no system's prompt has a place for it, and of two systems it says which has."""
    names = zip(short_names(systems), systems, strict=True)
    readers = [short for short, system in names if name in system.fields]
    return gr.Textbox(
        label=label,
        info=f"read by {readers[0]} alone" if 0 < len(readers) < len(systems) else None,
        lines=lines,
        max_lines=12,
        max_length=MAX_CHARACTERS,
        visible=bool(readers),
        placeholder="optional",
        elem_id=name,
    )


def drop_zone(name: str, label: str, visible: bool = True) -> list:
    """A place for an X-ray: the file, its preview, the button that removes it, and the picture."""
    with gr.Column(min_width=150, elem_id=name, visible=visible):
        file = gr.File(label=label, height=150, elem_classes="drop")
        preview = html(visible=False)
        remove = gr.Button("Remove", size="sm", visible=False, elem_classes="remove")
    return [file, preview, remove, gr.State(None, time_to_live=KEPT)]


def answer_column(number: int, system: System) -> list:
    """A system's column: what `blank_answer` lists."""
    with gr.Column(scale=3, min_width=300, elem_id=f"model-{number}", elem_classes="model"):
        html(describe(system))
        report = html(EMPTY, elem_classes="result")
        findings = html()
        boxes = html(visible=False)
        with gr.Accordion("Where it looked", open=False, visible=False, elem_classes="where") as where:
            sentence = gr.Radio([], label="Sentence", elem_classes="sentence")
            look = html(elem_classes="look-place")
            regions = regions_to_attend(system)
            region = gr.Dropdown([], label="Region attention", visible=bool(regions), elem_classes="region")
            attention = html(elem_classes="attention-place")
            if system.engine.model.config.model_type == "lmrrg" and not regions:
                html(f'<p class="soft">{NO_ATTENTION}</p>')
        with gr.Accordion("Reasoning", open=False, visible=False, elem_classes="think") as fold:
            think = html()
        with gr.Accordion("What it was asked", open=False, visible=False, elem_classes="asked") as ask:
            asked = html()
    written = gr.State(None, time_to_live=KEPT)
    return [report, findings, boxes, where, sentence, look, region, attention, written, fold, think, ask, asked]


def build_page(
    systems: Sequence[System], labeler: Callable, folder: Path, image_size: int, rows: Dataset | None = None
) -> gr.Blocks:
    """The page; `folder` is where gradio puts uploads, and where they are deleted from; `rows`: of `Callbacks`."""
    fields = set().union(*(system.fields for system in systems))
    private = {"api_visibility": "private", "show_progress": "hidden"}
    callbacks = Callbacks(systems, labeler, folder, image_size, rows)

    with gr.Blocks(
        title="RRG Recipes: try a model", analytics_enabled=False, delete_cache=(60, 300), fill_width=True
    ) as page:
        html(f'<div class="notice" role="note">{NOTICE}</div>', elem_id="notice")
        html(Markup("<h1>Try a model</h1>" + INTRODUCTION).format(labeler.name))
        with gr.Row():
            with gr.Column(scale=2, min_width=320, elem_id="study"):
                names = rows["study_id"][:MOST_STUDIES] if rows is not None else []
                choice = gr.Dropdown(names, value=None, label="Study", visible=bool(names), elem_id="choice")
                with gr.Row():
                    frontal = drop_zone("frontal", "Frontal X-ray")
                    lateral = drop_zone(
                        "lateral", "Lateral X-ray", visible=any(system.reads_lateral for system in systems)
                    )
                view = gr.Radio(list(VIEWS), value="not known", label="View", visible="view" in fields, elem_id="view")
                sections = gr.Radio(SECTIONS, value="findings", label="Write", visible="sections" in fields)
                indication = text_box("indication", "Indication", 2, systems)
                history = text_box("history", "History", 2, systems)
                prior = text_box("prior_report", "Prior report", 3, systems)
                age = gr.Number(None, label="Age in years", visible="age" in fields, elem_id="age")
                sex = gr.Radio(list(SEXES), value="not known", label="Sex", visible="sex" in fields, elem_id="sex")
                with gr.Column(elem_id="actions"):
                    with gr.Row():
                        start = gr.Button(
                            "Write the report", variant="primary", size="md", scale=3, min_width=165, elem_id="start"
                        )
                        stop = gr.Button("Stop", size="md", scale=1, min_width=60, elem_id="stop")
                        clear = gr.Button("Clear", size="md", scale=1, min_width=60, elem_id="clear")
                    status = html(elem_id="status")
                    html('<p id="oversize" class="error" role="alert" hidden></p>')
            with gr.Column(scale=3 * len(systems), min_width=320, elem_id="answers"):
                comparison = html(elem_id="comparison")
                with gr.Row():
                    columns = [answer_column(number, system) for number, system in enumerate(systems)]

        shown = [comparison, *(part for column in columns for part in column)]
        typed = [view, sections, indication, history, prior, age, sex]
        for place, take, view_place in (
            (frontal, callbacks.take_frontal, view),
            (lateral, callbacks.take_lateral, gr.State()),
        ):
            place[0].upload(take, place[0], [*place, status, view_place, *shown], preprocess=False, **private)
            place[2].click(callbacks.remove, None, [*place, *shown], **private)
        choice.input(callbacks.take_study, choice, [*frontal, *lateral, view, *typed[2:], status, *shown], **private)
        for number, column in enumerate(columns):
            *_, sentence, look, region, attention, written = column[:9]
            sentence.input(partial(callbacks.look, number), [sentence, written], look, **private)
            region.input(partial(callbacks.attend, number), [region, written], attention, **private)
        start.click(callbacks.write, [frontal[3], lateral[3], *typed], [status, *shown], **private)
        start.click(None, None, None, js=TO_THE_REPORT)
        stop.click(callbacks.end, None, None, **private)

        blank = ["not known", "findings", *NO_TEXTS, None, ""]

        def clear_all(request: gr.Request) -> list:
            return [*blank, *empty_drop(), *empty_drop(), *callbacks.forget(request)]

        clear.click(
            clear_all,
            None,
            [*typed, choice, status, *frontal, *lateral, *shown],
            **private,
        )
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
                js=SCRIPT.read_text().replace("LIMIT", str(max_upload)),
            )
            yield address
        finally:
            page.close(verbose=False)
