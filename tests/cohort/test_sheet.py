"""The sheet as users write it, and everything that can be wrong with it."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from builders.cohorts import request_of, write_slides, write_tiff
from builders.dicom import write_series
from builders.formats.tiff import ome
from builders.slides import tissue
from hypothesis import given
from hypothesis import strategies as st

from wsi_stain.cohort import sheet
from wsi_stain.cohort.check import checked, examined
from wsi_stain.cohort.files import Folder
from wsi_stain.cohort.request import CohortRequest, to_convert
from wsi_stain.cohort.summary import write_summary
from wsi_stain.conversion.engine import convert
from wsi_stain.errors import ConfigError
from wsi_stain.model.bundle import DEFAULT


def test_a_csv_a_folder_and_a_glob_name_the_same_slides(tmp_path):
    folder = write_slides(tmp_path / "slides")
    (folder / "notes.txt").write_text("not a slide")
    (tmp_path / "sheet.csv").write_text("slide\nslides/s0.tif\n\nslides/s1.tif\nslides/s2.tif\n")
    actual = [
        checked(request_of(source, tmp_path / "out")) for source in (tmp_path / "sheet.csv", folder, folder / "*.tif")
    ]
    for rows in actual:
        assert [row.slide_id for row in rows] == ["s0", "s1", "s2"]
        assert [row.slide for row in rows] == [folder / f"s{n}.tif" for n in range(3)]
        assert [row.output for row in rows] == [f"s{n}.identity.ome.tiff" for n in range(3)]
        assert {row.pixels for row in rows} == {300 * 320}
    assert [row.line for row in actual[0]] == [2, 4, 5]
    assert not (tmp_path / "out").exists()


def test_columns_of_a_row_win_over_the_flags(tmp_path):
    write_slides(tmp_path / "slides", 2)
    (tmp_path / "m.geojson").write_text('{"type": "Polygon", "coordinates": [[[0, 0], [99, 0], [99, 99], [0, 0]]]}')
    (tmp_path / "sheet.csv").write_text(
        "slide,slide_id,mpp,model,mask\nslides/s0.tif,case 1,0.25,,m.geojson\nslides/s1.tif,,,identity,\n",
        encoding="utf-8-sig",
    )
    one, other = checked(request_of(tmp_path / "sheet.csv", tmp_path / "out", mpp=0.4, model=DEFAULT, mask="auto"))
    assert (one.slide_id, one.mpp, one.model, one.mask) == ("case 1", 0.25, DEFAULT, str(tmp_path / "m.geojson"))
    assert one.output == "case 1.cam52.ome.tiff"
    assert (other.slide_id, other.mpp, other.model, other.mask) == ("s1", 0.4, "identity", "auto")


def test_all_problems_come_in_one_table_with_line_numbers(tmp_path):
    write_slides(tmp_path, 2)
    write_tiff(tmp_path / "noscale.tif", mpp=None)
    write_tiff(tmp_path / "lies.tif", mpp=1000)
    (tmp_path / "text.svs").write_text("these are notes\n" * 50)
    lines = [
        "slide,slide_id,mpp,model,mask",
        "s0.tif,a,,,",
        "gone.tif,b,,,",
        "noscale.tif,c,,he2cam52-small,",
        "lies.tif,d,,he2cam52-small,",
        "text.svs,e,,,",
        "s1.tif,f,,,nomask.geojson",
    ]
    (tmp_path / "sheet.csv").write_text("\n".join(lines))
    with pytest.raises(ConfigError) as error:
        checked(request_of(tmp_path / "sheet.csv", tmp_path / "out"))
    errors = str(error.value).splitlines()
    assert "5 rows" in errors[0]
    assert "nothing was started" in errors[0]
    expected = {
        3: ("gone.tif", "no such file"),
        4: ("noscale.tif", "--mpp"),
        5: ("lies.tif", "1000"),
        6: ("text.svs", "unsupported format"),
        7: ("s1.tif", "nomask.geojson"),
    }
    for line, (number, words) in zip(errors[1:-1], expected.items(), strict=True):
        assert f"line {number}" in line
        assert all(word in line for word in words), line
    assert not (tmp_path / "out").exists()


def test_what_text_and_what_files_show_is_told_in_one_table(tmp_path):
    (tmp_path / "sheet.csv").write_text("slide,slide_id,mpp\ngone.tif,a,\nalso.tif,b,fast\n")
    with pytest.raises(ConfigError) as error:
        checked(request_of(tmp_path / "sheet.csv", tmp_path / "out"))
    first, second = str(error.value).splitlines()[1:-1]
    assert "line 2" in first
    assert "no such file" in first
    assert "line 3" in second
    assert "mpp is 'fast'" in second


def test_what_the_text_alone_shows_is_told_before_slides_are_opened(tmp_path):
    lines = [
        "slide,slide_id,mpp,model,mask",
        "s.tif,A,fast,,",
        "t.tif,a,,nomodel,",
        ",b,,,",
        "u.tif,../x,,,",
        "v.tif,c,,,,more",
    ]
    (tmp_path / "sheet.csv").write_text("\n".join(lines))
    with pytest.raises(ConfigError) as error:
        checked(request_of(tmp_path / "sheet.csv", tmp_path / "out"))
    text = str(error.value)
    for words in (
        "mpp is 'fast'",
        "'a' is also used in line 2",
        "unknown model 'nomodel'",
        "the column 'slide' is empty",
        "'../x'",
        "more values",
    ):
        assert words in text
    assert "no such file" not in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("file\na.svs\n", r"no column 'slide' in its first line \('file'\)"),
        ("slide,mp\na.svs,1\n", "unknown column 'mp'"),
        ("slide_id\na\n", "no column 'slide'"),
        ("slide\n", "no rows"),
        (b"slide\n\xff\xfe\n", "UTF-8"),
    ],
)
def test_what_is_no_sheet_is_a_sentence(tmp_path, content, words):
    path = tmp_path / "sheet.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=words):
        sheet.read(request_of(path, tmp_path))


def test_nothing_there_is_a_sentence(tmp_path):
    for source, words in (
        (tmp_path / "no.csv", "no such file"),
        (tmp_path, "no slides"),
        (tmp_path / "*.svs", "no slides"),
    ):
        with pytest.raises(ConfigError, match=words):
            sheet.read(request_of(source, tmp_path / "out"))


@given(count=st.integers(1, 40), shares=st.integers(1, 12))
def test_shares_take_every_slide_once(count, shares):
    requests = [CohortRequest("s.csv", Path("out"), shard=(i, shares)) for i in range(1, shares + 1)]
    for index in range(count):
        assert sum(request.is_chosen(index) for request in requests) == 1


def test_rows_beyond_the_sheet_and_absurd_shares_are_refused(tmp_path):
    folder = write_slides(tmp_path / "slides", 2)
    with pytest.raises(ConfigError, match=r"--rows contains 3, .* has the slides 1 to 2"):
        checked(request_of(folder, tmp_path / "out", rows=(1, 3)))
    for shard in ((0, 3), (4, 3)):
        with pytest.raises(ConfigError, match="--shard"):
            request_of(folder, tmp_path / "out", shard=shard)


def test_only_the_rows_of_a_share_are_opened(tmp_path):
    folder = write_slides(tmp_path / "slides", 3)
    (folder / "s1.tif").write_text("not a slide")
    assert [row.pixels > 0 for row in checked(request_of(folder, tmp_path / "out", rows=(1, 3)))] == [True, False, True]


# Spreadsheets --------------------------------------------------------------------------------------------------------

SPELLINGS = {
    "semicolon": "slide;mpp\ns0.tif;0,25\ns1.tif;0,25\n",
    "tab": "slide\tmpp\ns0.tif\t0.25\ns1.tif\t0.25\n",
    "byte order mark": "\ufeffslide,mpp\r\ns0.tif,0.25\r\ns1.tif,0.25\r\n",
    "capitals and blanks": "Slide, MPP\n s0.tif , 0.25 \n\n   ,\ns1.tif,0.25\n",
    "decimal comma": 'slide,mpp\ns0.tif,"0,25"\ns1.tif,"0,25"\n',
    "trailing commas": "slide,mpp,,\ns0.tif,0.25,,\ns1.tif,0.25,,\n,,,\n",
    "Excel's separator": "sep=;\nslide;mpp\ns0.tif;0.25\ns1.tif;0.25\n",
    "old Mac": "slide,mpp\rs0.tif,0.25\rs1.tif,0.25\r",
    "quotes": '"slide","mpp"\n"s0.tif","0.25"\n"s1.tif","0.25"\n',
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_sheet_is_read_as_spreadsheets_write_it(tmp_path, name, encoding):
    write_slides(tmp_path, 2)
    (tmp_path / "sheet.csv").write_bytes(SPELLINGS[name].encode(encoding))
    rows = checked(request_of(tmp_path / "sheet.csv", tmp_path / "out"))
    assert [(row.slide.name, row.slide_id, row.mpp, row.extra) for row in rows] == [
        ("s0.tif", "s0", 0.25, ()),
        ("s1.tif", "s1", 0.25, ()),
    ]


def test_other_columns_are_kept_to_the_summary(tmp_path):
    write_slides(tmp_path, 2)
    (tmp_path / "sheet.csv").write_text("Slide ID,slide,Patient,state\nx,s0.tif,17,early\ny,s1.tif,,late\n")
    request = request_of(tmp_path / "sheet.csv", tmp_path / "out")
    rows = checked(request)
    assert [row.slide_id for row in rows] == ["x", "y"]
    assert rows[0].extra == (("Patient", "17"), ("state", "early"))
    (tmp_path / "out").mkdir()
    Folder(request.folder).begin(request, rows)
    assert Folder(request.folder).rows() == rows
    write_summary(request.folder)
    with (request.folder / "summary.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(line["Patient"], line["sheet_state"], line["state"]) for line in table] == [
        ("17", "early", "waiting"),
        ("", "late", "waiting"),
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("slides\na.svs\n", "did you mean 'slide'"),
        ("slide,mpps\na.svs,1\n", "did you mean 'mpp'"),
        ("slide,MPP (µm)\na.svs,1\n", "did you mean 'mpp'"),
        ("slide,mpp,MPP\na.svs,1,2\n", "the column 'mpp' twice"),
        ("# my cohort\nslide\na.svs\n", "no column 'slide' in its first line"),
        ("a.svs\nb.svs\n", "no column 'slide' in its first line"),
        ("slide\na.svs\0\n", "zero bytes"),
        ("", "is empty"),
        ('slide,slide_id\n"Müller.svs",m\n'.encode("cp1252"), "UTF-8"),
    ],
)
def test_what_a_sheet_may_not_say_is_named(tmp_path, content, words):
    path = tmp_path / "sheet.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=words):
        sheet.read(request_of(path, tmp_path))


# Folders -------------------------------------------------------------------------------------------------------------


def test_a_series_is_one_slide_in_folders_and_globs(tmp_path):
    one = write_series(tmp_path / "study" / "one", tissue(150, 200), ending="")
    write_series(tmp_path / "study" / "two", tissue(150, 200, seed=1), prefix="a_")
    write_series(tmp_path / "study" / "two", tissue(150, 200, seed=2), prefix="b_")
    write_slides(tmp_path / "study", 1)

    def read(source):
        return [(row.slide_id, row.slide) for row in sheet.read(request_of(source, tmp_path / "out"))[0]]

    study, two = tmp_path / "study", tmp_path / "study" / "two"
    both = [("a_level0", two / "a_level0.dcm"), ("b_level0", two / "b_level0.dcm")]
    assert read(study) == [("one", study / "one"), ("s0", study / "s0.tif"), *both]
    assert read(study / "one") == [("one", study / "one")]
    assert read(two) == read(two / "*.dcm") == both
    assert read(one[0].parent / "*") == [("level0", one[0])]
    for path in one[:2]:
        path.unlink()
    assert read(study) == [("s0", study / "s0.tif"), *both], "a label alone is no slide"
    rows = checked(request_of(study, tmp_path / "out"))
    assert [row.pixels for row in rows] == [300 * 320, 150 * 200, 150 * 200]


def test_series_of_equal_folder_names_get_longer_names(tmp_path):
    for study in "ab":
        write_series(tmp_path / study / "ser1", tissue(150, 200), label=False)
    rows = checked(request_of(tmp_path, tmp_path / "out"))
    assert [row.slide_id for row in rows] == ["a-ser1", "b-ser1"]


def test_virtual_stains_are_left_out_of_folders_and_refused_in_sheets(tmp_path, caplog):
    folder = write_slides(tmp_path / "slides", 2)
    conversion = convert(to_convert(request_of(folder, folder), checked(request_of(folder, folder))[0], 0)).output
    assert conversion.parent == folder
    for source in (folder, folder / "*.*f"):
        caplog.clear()
        assert [row.slide_id for row in checked(request_of(source, tmp_path / "out"))] == ["s0", "s1"]
        assert "left out 1 virtual stain" in caplog.text
        taken = request_of(source, tmp_path / "out", allow_virtual=True)
        assert [row.slide.name for row in sheet.read(taken)[0]] == ["s0.identity.ome.tiff", "s0.tif", "s1.tif"]
    (tmp_path / "sheet.csv").write_text(f"slide\nslides/{conversion.name}\nslides/s1.tif\n")
    result = examined(request_of(tmp_path / "sheet.csv", tmp_path / "out"))
    assert list(result.reasons) == [2]
    assert "is a virtual stain (identity)" in result.reasons[2]


def test_virtual_stains_of_dicom_are_left_out_of_folders(tmp_path, caplog):
    folder = write_slides(tmp_path / "slides", 2)
    request = request_of(folder, folder)
    stain = replace(to_convert(request, checked(request)[0], 0), output=folder / "v.dcm")
    convert(stain)
    assert [row.slide_id for row in checked(request_of(folder, tmp_path / "out"))] == ["s0", "s1"]
    assert "left out 1 virtual stain" in caplog.text
    taken = sheet.read(request_of(folder, tmp_path / "out", allow_virtual=True))[0]
    assert [row.slide.name for row in taken] == ["s0.tif", "s1.tif", "v.dcm"]


def test_image_and_plane_of_a_row_reach_its_conversion(tmp_path):
    ome(tmp_path / "s.ome.tif", planes=3)
    (tmp_path / "sheet.csv").write_text("slide,slide_id,image,z\ns.ome.tif,a,,2\ns.ome.tif,b,,\n")
    request = request_of(tmp_path / "sheet.csv", tmp_path / "out", model="identity")
    first, second = (to_convert(request, row) for row in checked(request))
    assert ((first.image, first.z), (second.image, second.z)) == ((None, 2), (None, None))
    (tmp_path / "sheet.csv").write_text("slide,slide_id,image,z\ns.ome.tif,a,-1,\ns.ome.tif,b,,9\n")
    assert [problem.message for problem in examined(request).problems] == [
        "image is '-1': it must be a whole number from 0",
        "s.ome.tif has no plane 9; pass --z between 0 and 2",
    ]
