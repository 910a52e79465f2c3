import numpy as np
import pytest

from rewards.labels import (
    CONDITIONS,
    FINDINGS,
    FIVE,
    NO_FINDING,
    CheXpertState,
    from_csv,
    to_binary,
    to_signed,
)

STATES = [CheXpertState.BLANK, CheXpertState.POSITIVE, CheXpertState.NEGATIVE, CheXpertState.UNCERTAIN]


def test_raw_codes_are_chexberts():
    assert [int(state) for state in STATES] == [0, 1, 2, 3] and list(CheXpertState) == STATES


def test_conditions_are_in_chexberts_order():
    assert CONDITIONS == (  # of its published code: the heads of its weights and the columns of its CSVs follow it
        "Enlarged Cardiomediastinum",
        "Cardiomegaly",
        "Lung Opacity",
        "Lung Lesion",
        "Edema",
        "Consolidation",
        "Pneumonia",
        "Atelectasis",
        "Pneumothorax",
        "Pleural Effusion",
        "Pleural Other",
        "Fracture",
        "Support Devices",
        "No Finding",
    )
    assert CONDITIONS[NO_FINDING] == "No Finding" and NO_FINDING == 13  # its only two-way head, the last
    assert CONDITIONS[:13] == FINDINGS
    assert set(FIVE) == {
        "Atelectasis",
        "Cardiomegaly",
        "Consolidation",
        "Edema",
        "Pleural Effusion",
    }  # CheXpert's five


@pytest.mark.parametrize(
    ("convert", "expected"),
    [
        (to_signed, [0, 1, -1, 1]),  # MRG-R1 Eq. 3: raw 0, 1, 2, 3 -> 0, 1, -1, 1
        (to_binary, [False, True, False, True]),  # uncertain counts as present
    ],
)
def test_encodings(convert, expected):
    np.testing.assert_array_equal(convert(STATES), expected)


def test_options_of_the_converters():
    np.testing.assert_array_equal(to_signed(STATES, uncertain=0.5), [0, 1, -1, 0.5])
    np.testing.assert_array_equal(to_binary(STATES, uncertain_positive=False), [False, True, False, False])


def test_csv_is_read():
    """CheXpert's CSV: empty, 1, 0, -1; of any shape."""
    np.testing.assert_array_equal(from_csv([[np.nan, 1], [0, -1]]), np.array(STATES).reshape(2, 2))


@pytest.mark.parametrize(
    ("convert", "bad", "message"),
    [
        (to_signed, [0, 4], "labels must be CheXpert states: integers 0"),  # no fifth state
        (to_signed, [-1, 0], "labels must be CheXpert states"),  # another encoding's code must not index from the end
        (to_binary, [0.5], "labels must be CheXpert states"),  # no fractions
        (to_binary, [4], "labels must be CheXpert states"),
        (from_csv, [1.0, 2.0], r"1, 0, -1 or an empty cell; found 2\.0"),  # a raw code in a CSV
    ],
)
def test_foreign_codes_are_refused(convert, bad, message):
    with pytest.raises(ValueError, match=message):
        convert(bad)
