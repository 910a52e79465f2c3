"""References of a data set, and those that are missing there."""

import pytest

from recipes.data.schema import write_dataset
from recipes.evaluation.prediction_files import read_predictions
from recipes.evaluation.references import read_truth
from recipes.files import InputError
from rewards.labelers import LexicalLabeler


@pytest.fixture
def build(tmp_path):
    def build(**reports: str) -> str:
        rows = [{"study_id": study, "report": report, "images": []} for study, report in reports.items()]
        write_dataset({"test": lambda: iter(rows)}, tmp_path / "data", {"labeler": "another"})
        return str(tmp_path / "data")

    return build


def test_studies_without_a_report_are_left_out_and_counted(build, tmp_path):
    dataset = build(a="Edema.", b="", c="Clear lungs.", d=" \n")
    truth = read_truth(dataset, "test", LexicalLabeler())
    assert truth.ids == ["a", "c"] and truth.reports == ["Edema.", "Clear lungs."]
    assert truth.notes == [f"2 of 4 studies of {dataset} have no reference report and are left out, 'b' first"]
    file = tmp_path / "p.csv"
    file.write_text("id,prediction\na,x\nb,x\nc,x\nd,x\n")
    said = r"p.csv, line 3: 'b' is not in this split or .* its reference is empty \(and 1 more of 4\); --only_common"
    with pytest.raises(InputError, match=said):
        read_predictions(file, truth.ids)
    assert list(read_predictions(file, truth.ids, only_common=True)) == ["a", "c"]


def test_a_data_set_without_reports(build):
    with pytest.raises(InputError, match=r"split test of .* has no reports"):
        read_truth(build(a="", b=" "), "test", LexicalLabeler())


@pytest.mark.parametrize("equal", [True, False])
def test_rows_of_one_study(tmp_path, equal):
    """A row for each image repeats the report of its study, which is scored once; two different ones are refused."""
    reports = [("a", "Edema."), ("b", "Clear lungs."), ("a", "Edema." if equal else "No edema.")]
    rows = [{"study_id": study, "report": report, "images": []} for study, report in reports]
    write_dataset({"test": lambda: iter(rows)}, tmp_path / "data", {"labeler": "another"})
    if not equal:
        with pytest.raises(InputError, match="has two different reports of study 'a'"):
            read_truth(str(tmp_path / "data"), "test", LexicalLabeler())
        return
    truth = read_truth(str(tmp_path / "data"), "test", LexicalLabeler())
    assert truth.ids == ["a", "b"] and truth.reports == ["Edema.", "Clear lungs."] and len(truth.states) == 2
    assert truth.notes == [f"3 rows of {tmp_path / 'data'} are of 2 studies, each scored against one report"]
