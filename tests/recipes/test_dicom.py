"""DICOM files in the order of the standard: modality values, then VOI LUT or window, MONOCHROME1 inverted last."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.data.dicom import load_dicom
from recipes.data.images import load_image
from recipes.files import InputError

ODD = Path(os.environ.get("RRG_DATA", "../shared/data")) / "odd_inputs"
RAMP = np.tile(np.arange(0, 256, dtype=np.uint16), (8, 1)) * 16  # 12 bits, from left to right


def make_dicom(values: np.ndarray = RAMP, **tags) -> bytes:
    """A DICOM file of 16-bit grey `values`; a tag given as None is absent."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    signed = values.dtype.kind == "i"
    defaults = {
        "SOPClassUID": meta.MediaStorageSOPClassUID, "SOPInstanceUID": "1.2.3",
        "PhotometricInterpretation": "MONOCHROME2",
        "SamplesPerPixel": 1, "BitsAllocated": 16, "BitsStored": 16 if signed else 12, "HighBit": 15 if signed else 11,
        "PixelRepresentation": int(signed), "Rows": values.shape[0], "Columns": values.shape[1],
        "PixelData": values.tobytes(),
    }  # fmt: skip
    for name, value in (defaults | tags).items():
        if value is not None:
            setattr(dataset, name, value)
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def lut(first: int, entries: list[int]):
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, 16])
    item.add_new("LUTData", "US", entries)
    return Sequence([item])


def row(content: bytes) -> np.ndarray:
    return np.asarray(load_dicom(content))[0].astype(int)


def test_without_a_window_the_range_of_the_image_decides():
    assert np.abs(row(make_dicom()) - np.arange(256)).max() <= 1


def test_a_window_is_applied_to_modality_values():
    """Slope 2 and intercept -1000: the window from -1000 to 1048 in modality values is 0 to 1024 in stored ones."""
    pixels = row(make_dicom(RescaleSlope="2", RescaleIntercept="-1000", WindowCenter="24", WindowWidth="2048"))
    stored = np.arange(256) * 16
    assert np.abs(pixels - np.clip(stored / 1024 * 255, 0, 255)).max() <= 1


def test_monochrome1_is_inverted_after_the_window():
    window = {"WindowCenter": "512", "WindowWidth": "1024"}
    plain, inverted = row(make_dicom(**window)), row(make_dicom(PhotometricInterpretation="MONOCHROME1", **window))
    assert (inverted == 255 - plain).all() and plain[-1] == 255


def test_of_several_windows_the_first_counts():
    several = make_dicom(WindowCenter=["512", "2048"], WindowWidth=["1024", "4096"])
    assert (row(several) == row(make_dicom(WindowCenter="512", WindowWidth="1024"))).all()


@pytest.mark.parametrize("window", [("2048", "0"), ("2048", "-5"), ("90000", "10"), ("", "")], ids=str)
def test_a_window_that_shows_nothing_is_left_aside(window):
    centre, width = (value or None for value in window)
    assert np.abs(row(make_dicom(WindowCenter=centre, WindowWidth=width)) - np.arange(256)).max() <= 1


def test_a_voi_lut_that_starts_below_zero():
    """Stored 0..4080, intercept -1024, LUT from -1024 that falls: the picture falls."""
    entries = [4095 - value for value in range(4096)]
    content = make_dicom(RescaleIntercept="-1024", RescaleSlope="1", VOILUTSequence=lut(-1024, entries))
    assert np.abs(row(content) - np.arange(256)[::-1]).max() <= 1


def test_signed_values():
    values = (RAMP.astype(np.int32) - 2000).astype(np.int16)
    assert np.abs(row(make_dicom(values)) - np.arange(256)).max() <= 1


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_out_of_the_range(photometric):
    values = RAMP.copy() // 2 + 100
    values[:, :10], values[:, -10:] = 4000, 4090
    pixels = row(
        make_dicom(values, PixelPaddingValue=4000, PixelPaddingRangeLimit=4095, PhotometricInterpretation=photometric)
    )
    assert not pixels[:10].any() and not pixels[-10:].any()
    inside = pixels[10:-10] if photometric == "MONOCHROME2" else pixels[10:-10][::-1]
    assert np.abs(inside - np.linspace(0, 255, 236)).max() <= 1


def test_padding_that_is_written_unsigned_beside_signed_pixels():
    values = (RAMP.astype(np.int32) // 2).astype(np.int16)
    values[:, :10] = -2000
    content = make_dicom(values)
    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(content))
    dataset.add_new("PixelPaddingValue", "US", 65536 - 2000)
    file = io.BytesIO()
    dataset.save_as(file)
    pixels = row(file.getvalue())
    assert not pixels[:10].any() and pixels[-1] == 255 and pixels[10] < 3


def test_an_image_of_one_shade_and_an_image_that_is_all_padding():
    assert not row(make_dicom(np.full((4, 4), 7, dtype=np.uint16))).any()
    assert np.abs(row(make_dicom(np.minimum(RAMP, 4000), PixelPaddingValue=0, PixelPaddingRangeLimit=4095))
                  - np.minimum(np.arange(256) * 16, 4000) * 255 / 4000).max() <= 1  # fmt: skip


def test_a_dicom_is_known_by_its_content(tmp_path):
    (tmp_path / "scan.png").write_bytes(make_dicom())
    assert load_image(tmp_path / "scan.png").size == (256, 8)


def test_what_cannot_be_decoded_is_one_sentence(tmp_path):
    content = make_dicom()
    with pytest.raises(InputError, match=r"scan: its pixels cannot be decoded|scan is a damaged"):
        load_dicom(content[:-1000], "scan")
    with pytest.raises(InputError, match=r"scan: its pixels cannot be decoded|scan is a damaged"):
        load_dicom(content[:400], "scan")
    with pytest.raises(InputError, match="not one grey image"):
        colours = np.zeros((4, 4, 3), dtype=np.uint8)
        load_dicom(
            make_dicom(colours, SamplesPerPixel=3, PlanarConfiguration=0, BitsAllocated=8, BitsStored=8, HighBit=7,
                       PhotometricInterpretation="RGB"), "scan")  # fmt: skip


@pytest.mark.skipif(not ODD.is_dir(), reason=f"needs odd_inputs below RRG_DATA ({ODD} is absent)")
def test_the_odd_files():
    first, second, third, fourth = (
        np.asarray(load_image(ODD / "dicom_voi_lut" / f"voi{number}.dcm")).astype(int) for number in range(4)
    )
    assert (first == second).all() and (first == third).all()
    assert fourth[0, 0] > fourth[0, -1] and (np.diff(fourth[0]) <= 0).all()  # falls from left to right


################
# Other odd images
################


def test_floats_with_holes(tmp_path):
    values = np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, -1).repeat(4, axis=0)
    values[:, 5] = np.nan
    Image.fromarray(values).save(tmp_path / "x.tif")
    pixels = np.asarray(load_image(tmp_path / "x.tif"))[0].astype(int)
    assert (
        pixels[5] == 0
        and pixels[0] == 0
        and pixels[-1] == 255
        and np.abs(np.delete(pixels - np.arange(256), 5)).max() <= 1
    )


def test_an_image_is_turned_as_its_exif_says(tmp_path):
    image = Image.new("L", (40, 20))
    image.paste(255, (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    image.save(tmp_path / "x.jpg", exif=exif)
    turned = load_image(tmp_path / "x.jpg")
    assert turned.size == (20, 40) and np.asarray(turned)[5, 10] > 200 and np.asarray(turned)[35, 10] < 50


def test_cmyk_palette_and_transparency(tmp_path):
    Image.new("CMYK", (4, 4), (0, 0, 0, 0)).save(tmp_path / "white.jpg")
    assert np.asarray(load_image(tmp_path / "white.jpg")).min() > 250
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 200, 200])
    palette.save(tmp_path / "p.png")
    assert (np.asarray(load_image(tmp_path / "p.png")) == 200).all()
    Image.new("LA", (4, 4), (200, 0)).save(tmp_path / "clear.png")
    assert not np.asarray(load_image(tmp_path / "clear.png")).any()
