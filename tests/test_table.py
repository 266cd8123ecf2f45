"""Tables of scans: as spreadsheets write them, and every fault named with its line."""

import pytest

from nfcl_jax.data.table import File, read_table
from nfcl_jax.errors import DataError

TABLE = """patient,task,image,mask,time,channel
p1,1,a/t1.nii.gz,,0,T1
p1,2,a/t2.nii.gz,,0,T2
p1,3,a/t1 later.nii.gz#4,a/seg.nii.gz,365.5,T1
p2/left,1,,seg.nii.gz,0,rater A
"""


def write(folder, text, encoding="utf-8"):
    path = folder / "scans.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_a_row_says_whose_scan_it_is_when_it_is_learned_and_what_it_shows(tmp_path):
    rows = read_table(write(tmp_path, TABLE))
    assert [(row.line, row.patient, row.task) for row in rows] == [
        (2, "p1", 1), (3, "p1", 2), (4, "p1", 3), (5, "p2/left", 1)
    ]  # fmt: skip
    assert [row.time for row in rows] == [0, 0, 365.5, 0]
    assert dict(rows[2].things) == {
        "T1": File(tmp_path / "a/t1 later.nii.gz", 4),
        "mask": File(tmp_path / "a/seg.nii.gz"),
    }
    assert dict(rows[3].things) == {"rater A": File(tmp_path / "seg.nii.gz")}
    assert str(rows[2].image) == f"{tmp_path}/a/t1 later.nii.gz#4"


def test_columns_may_be_in_any_order_and_most_may_be_missing(tmp_path):
    (row,) = read_table(write(tmp_path, "image,Patient,TASK\n/data/x.nii,p1,1\n"))
    assert dict(row.things) == {"image": File(row.image.path)} and row.time is None
    assert str(row.image) == "/data/x.nii"


@pytest.mark.parametrize(
    ("change", "encoding"),
    [
        (lambda text: text, "utf-8-sig"),
        (lambda text: text, "utf-16"),
        (lambda text: text.replace(",", ";").replace("365.5", "365,5"), "utf-8-sig"),
        (lambda text: text.replace(",", "\t").replace("\n", "\r\n"), "utf-16"),
        (lambda text: text.replace("\n", "\r\n") + "\r\n,,,,,\r\n", "utf-8"),
        (lambda text: text.replace("\n", ",,\n"), "utf-8"),
        (lambda text: text.replace("a/t1 later.nii.gz#4", '"a/t1 later.nii.gz#4"'), "utf-8"),
        (lambda text: text.replace("p1,2", " p1 ,2.0 "), "utf-8"),
    ],
    ids=[
        "BOM",
        "UTF-16",
        "semicolons",
        "tabs",
        "empty lines",
        "empty columns",
        "quotes",
        "spaces",
    ],
)
def test_spreadsheets_write_the_same_table_in_many_ways(tmp_path, change, encoding):
    expected = read_table(write(tmp_path, TABLE))
    assert read_table(write(tmp_path, change(TABLE), encoding)) == expected


def test_a_first_line_may_say_what_separates_cells(tmp_path):
    """As Excel writes it, if it is told to."""
    expected = [row._replace(line=row.line + 1) for row in read_table(write(tmp_path, TABLE))]
    told = "sep=;\r\n" + TABLE.replace(",", ";").replace("\n", "\r\n")
    assert read_table(write(tmp_path, told, "utf-8-sig")) == expected


FAULTS = {
    "no such task": ("p1,1", "p1,0", "line 2: task must be a whole number from 1, found '0'"),
    "half a task": ("p1,1", "p1,1.5", "line 2: task must be a whole number from 1, found '1.5'"),
    "a gap": ("p1,2", "p1,5", "p1: no task 2, but a task 5; they count from 1"),
    "no patient": ("p1,2", ",2", "line 3: patient must be a name"),
    "a path for a patient": ("p2/left", "../p2/left", "line 5: patient must be a name, or two"),
    "a long name": ("p2/left", "p2/" + "a" * 201, "line 5: patient is longer than the 200 bytes"),
    "the name of none": ("p2/left", "p2/scan", "line 5: patient must be a name, or two with one"),
    "nothing to learn": ("a/t2.nii.gz", "", "line 3: neither an image nor a mask"),
    "frame 0": ("later.nii.gz#4", "later.nii.gz#0", "line 4: frames of a file count from 1"),
    "a time in words": ("365.5", "one year", "line 4: time must be a number, found 'one year'"),
    "a time as code has it": ("365.5", "36_5", "line 4: time must be a number, found '36_5'"),
    "a time without end": ("365.5", "inf", "line 4: time must be a number, found 'inf'"),
    "some times": ("365.5", "", "line 4: no time, but line 2 of p1 has one; all or none"),
    "one thing twice": ("T2", "T1", "line 3: T1 of p1 at time 0 is in line 2 already"),
    "an image and a mask": ("365.5,T1", "365.5,mask", "p1: mask is an image and a mask"),
    "a slash in a channel": ("0,T2", "0,T/2", "line 3: channel must be a name without slashes"),
    "a cell too few": ("0,T2", "0", "line 3: 5 cells; the first line has 6"),
    "a cell too many": ("0,T2", "0,T2,brain", "line 3: 7 cells; the first line has 6"),
    "an open quote": ("0,T2", '0,"T2', "line 5: unexpected end of data"),
    "an unknown column": ("channel\n", "chanel\n", "unknown in the first line: chanel; columns"),
    "a column twice": ("channel\n", "time\n", "there twice in the first line: time; columns are"),
    "no task column": ("task,", "mask,", "there twice in the first line: mask"),
    "no names of columns": ("patient,task,image,mask,time,channel\n", "", "unknown in the first"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_line(tmp_path, fault):
    there, instead, message = FAULTS[fault]
    assert there in TABLE
    with pytest.raises(DataError) as caught:
        read_table(write(tmp_path, TABLE.replace(there, instead)))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_all_faults_are_named_at_once(tmp_path):
    text = TABLE.replace("p1,1", "p1,one").replace("365.5", "late").replace("p2/left", "")
    with pytest.raises(DataError) as caught:
        read_table(write(tmp_path, text))
    assert [line.split(": ")[0][-6:] for line in str(caught.value).splitlines()] == [
        "line 2", "line 4", "line 5"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"PK\x03\x04rest of a workbook", "an Excel or OpenDocument workbook"),
        ("patient,task,image\np\xe9,1,x.nii\n".encode("latin-1"), "not text in UTF-8 or UTF-16"),
        (b"patient,task\0,image\n", "not a table of text"),
        (b"", "missing in the first line: patient, task, image; columns are"),
        (b"patient,task,image\n", "no rows"),
        (b"patient,task\np,1\n", "missing in the first line: image"),
        (None, "scans.csv: missing; a table, with some of the columns patient, task"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, contents, message):
    path = tmp_path / "scans.csv"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(DataError, match=message):
        read_table(path)
