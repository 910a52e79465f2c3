"""generate.py: the batch size changes nothing, an interrupted file is continued, a foreign one is left alone."""

import json

import pytest
from datasets import Dataset
from transformers import BertConfig

from recipes import generate
from recipes.build_phantom import BuildArguments, build_row
from recipes.cli import InputError
from recipes.data.schema import write_dataset
from recipes.generate import finished_samples, shuffled_images


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Six studies with one and two images in turn, so that a batch needs padding."""
    args = BuildArguments(size=64, seed=1)
    rows = lambda: (build_row("test", index, ("sn", "mn")[index % 2], args) for index in range(6))  # noqa: E731
    out = tmp_path_factory.mktemp("generate") / "data"
    write_dataset({"test": rows}, out, {"labeler": "lexical"})
    return out


@pytest.fixture
def write(call, tiny, dataset, tmp_path):
    """Runs the script and returns the rows of its file; `changed` overrides arguments."""

    def write(file: str = "out.jsonl", **changed) -> list[dict]:
        given = {
            "model": tiny,
            "dataset": dataset,
            "out": tmp_path / file,
            "views": "all",
            "prompt_file": "prompts/mrgr1_tiny.txt",
            "max_new_tokens": 5,
        } | changed
        call(generate.main, *(word for name, value in given.items() for word in (f"--{name}", value)))
        return [json.loads(line) for line in (tmp_path / file).read_text().splitlines()]

    return write


def test_batched_equals_one_by_one(write):
    together, alone = write("together.jsonl", batch_size=4), write("alone.jsonl", batch_size=1)
    assert len(together) == 6
    assert [row["completion"] for row in together] == [row["completion"] for row in alone]
    assert [row["study_id"] for row in together] == [f"phantom-1-test-{index:06d}" for index in range(6)]


def test_views_each_writes_one_line_per_image(write):
    assert len(write(views="each", batch_size=9)) == 9  # three studies with one image, three with two


@pytest.mark.parametrize("kept", [0, 1, 3, 6])
def test_an_interrupted_file_is_continued(write, tmp_path, kept):
    whole = write("whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    cut = lines[kept][:20] if kept < 6 else ""  # the line being written when the process ended
    (tmp_path / "out.jsonl").write_text("".join(lines[:kept]) + cut)
    assert write() == whole


def test_limit_can_grow(write):
    first = write(limit=2)
    assert len(first) == 2
    assert write()[:2] == first


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"max_new_tokens": 4}, "max_new_tokens"),
        ({"views": "frontal"}, "views"),
        ({"shuffle_images": True}, "shuffle_images"),  # control and result must not mix
        ({"seed": 1}, "seed"),
    ],
)
def test_a_file_begun_otherwise_is_refused(write, tmp_path, changed, name):
    write(limit=1)
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(InputError, match=f"begun with another --{name}"):
        write(**changed)
    assert (tmp_path / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize("text", ["a user's notes\n", "[1]\n", '{"study_id": "a"}\n'])
def test_a_foreign_file_is_refused(tmp_path, text):
    (tmp_path / "notes.txt").write_text(text)
    with pytest.raises(InputError, match=r"notes\.txt exists and was not written by generate\.py"):
        finished_samples(tmp_path / "notes.txt", {"seed": 1})
    assert (tmp_path / "notes.txt").read_text() == text


def test_a_foreign_file_without_line_end_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("a user's notes")
    with pytest.raises(InputError, match="not written by"):
        finished_samples(tmp_path / "notes.txt", {"seed": 1})
    assert (tmp_path / "notes.txt").read_text() == "a user's notes"


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_sample_keeps_its_images(count, seed):
    samples = Dataset.from_dict({"study_id": list(range(count)), "images": [[index] for index in range(count)]})
    shuffled = shuffled_images(samples, seed)
    own = [study == images[0] for study, images in zip(shuffled["study_id"], shuffled["images"], strict=True)]
    assert not any(own)
    assert sorted(images[0] for images in shuffled["images"]) == list(range(count))


def test_no_sample_keeps_an_image_of_its_study():
    samples = Dataset.from_dict({"study_id": list("aabbcc"), "images": [[name] for name in "aabbcc"]})
    for seed in range(20):
        shuffled = shuffled_images(samples, seed)
        own = [study == images[0] for study, images in zip(shuffled["study_id"], shuffled["images"], strict=True)]
        assert not any(own)  # with views each, the lateral image of the same study is no control


def test_one_study_cannot_be_shuffled():
    with pytest.raises(InputError, match="at least two studies"):
        shuffled_images(Dataset.from_dict({"study_id": ["a", "a"], "images": [[0], [1]]}), 0)


def test_shuffled_images_run(write):
    assert len(write(shuffle_images=True)) == 6


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"split": "train"}, "no split 'train'"),
        ({"dataset": "./absent"}, "there is no data set at ./absent"),
        ({"model": "./absent"}, "the model ./absent cannot be loaded"),
        ({"views": "both"}, "views must be one of"),
        ({"prompt_file": "absent.txt"}, "there is no prompt file absent.txt"),
        ({"batch_size": 0}, "--batch_size"),
        ({"max_new_tokens": 0}, "--max_new_tokens"),
    ],
)
def test_mistakes_are_named(write, tmp_path, changed, sentence):
    with pytest.raises(InputError, match=sentence):
        write(**changed)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_text_model_is_refused(write, tmp_path):
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="reads no images"):
        write(model=tmp_path / "bert")
