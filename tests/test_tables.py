"""Tables as spreadsheets write them: read where they can be read in one way only, else refused with the cause."""

from __future__ import annotations

import csv
import io
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytomil.errors import NotFoundError, TableError
from cytomil.tables import Column, Row, csv_text, read_table, require_one_spelling
from cytomil.text import from_text_cell

COLUMNS = (
    Column("slide", ("slide_id",), ("file",), required=True),
    Column("label", required=True),
    Column("patient", ("patient_id",), ("case",)),
)
PLAIN = "slide,label,patient\na,0,p\nb,1,q\n"
VALUES = [{"slide": "a", "label": "0", "patient": "p"}, {"slide": "b", "label": "1", "patient": "q"}]


@pytest.fixture
def read(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Read a table of these bytes, or of this text in UTF-8."""

    def run(content: str | bytes) -> list[Row]:
        file = tmp_path / "table.csv"
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_table(file, COLUMNS, "a spreadsheet")

    return run


def values(rows: list[Row]) -> list[dict[str, str]]:
    return [dict(row.values) for row in rows]


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.rstrip("\n"),
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace(",", " , "),
        "\ufeff" + PLAIN,
        ("\ufeff" + PLAIN).encode("utf-16-le"),
        ("\ufeff" + PLAIN).encode("utf-16-be"),
        ("\ufeff" + PLAIN.replace(",", "\t")).encode("utf-16-le"),
        "sep=,\n" + PLAIN,
        "sep=;\r\n" + PLAIN.replace(",", ";"),
        PLAIN + ",,\n,,\n\n \n",
        "\n" + PLAIN,
        PLAIN.replace("\nb", "\n,,\nb"),
        PLAIN.replace("slide,label,patient", "Slide,LABEL,Patient"),
        PLAIN.replace("slide,label,patient", "SLIDE ID,Label ,patient-id"),
        PLAIN.replace("slide,label,patient", "\u00a0slide_id, label,patient_id "),
        PLAIN.replace("slide", '"slide"').replace("a,", '"a",'),
        "slide,label,patient,,\na,0,p,,\nb,1,q\n",
        "label,#remark,patient,slide\n0,x,p,a\n1,y,q,b\n",
    ],
)
def test_the_same_table_in_many_forms(read, content) -> None:  # type: ignore[no-untyped-def]
    assert values(read(content)) == VALUES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PLAIN.replace("q", "M\u00fc").encode("cp1252"), "line 3: not UTF-8.*Save it as 'CSV UTF-8'"),
        (PLAIN.encode("utf-16-le"), "UTF-16 without its byte order mark"),
        (b"PK\x03\x04 a workbook", "spreadsheet program's own file"),
        (b"\xff\xfea", "damaged"),
        ("slide,label;patient\n", "holds commas and semicolons"),
        ("slide,label,Slide_ID\na,0,b\n", "'slide' and 'Slide_ID' both mean slide"),
        ("slide,label,patient,patient\na,0,p,q\n", "both mean patient"),
        ("slide,label,patientt\na,0,p\n", "unknown column 'patientt'. Did you mean patient"),
        ("slide,label,Case No\na,0,p\n", "unknown column 'Case No'. Did you mean patient"),
        ("slide,label,date\na,0,p\n", "unknown column 'date'. There are slide, label and patient.*'#date'"),
        ("file,label\na,0\n", "unknown column 'file'. Did you mean slide.*needs slide"),
        ("slide\na\n", "needs the columns slide and label, and may have patient; it lacks label"),
        ("slide,label\na,0\nb,c,1\n", "line 3: 3 values for 2 columns"),
        (",slide,label\n0,a,1\n", "line 2: '0' stands in column 1, which has no name"),
        ('slide,label\n"a,0\n', "not CSV"),
    ],
)
def test_what_cannot_be_read_says_why(read, content, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TableError, match=message):
        read(content)


def test_lines_are_numbered_as_an_editor_does(read) -> None:  # type: ignore[no-untyped-def]
    rows = read("sep=,\nslide,label\n\na,0\n,,\nb,1\n".replace(",,", ","))
    assert [(row["slide"], row.number) for row in rows] == [("a", 4), ("b", 6)]
    assert rows[1].where.endswith("table.csv, line 6")


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(lambda text: text.strip()))
def test_a_quoted_value_comes_back_composed_and_stripped(tmp_path_factory, text) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path_factory.getbasetemp() / "quoted.csv"
    quoted = text.replace('"', '""')
    file.write_text(f'slide,label\n"{quoted}",1\n', encoding="utf-8", newline="")
    assert [row["slide"] for row in read_table(file, COLUMNS, "")] == [unicodedata.normalize("NFC", text).strip()]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="a spreadsheet"):
        read_table(tmp_path / "none.csv", COLUMNS, "a spreadsheet")


@pytest.mark.parametrize(("one", "other"), [("P1", "p1"), ("P 1", "P1"), ("7", "07"), ("7", "7.0"), ("0", "00")])
def test_one_name_in_two_spellings_is_refused(one: str, other: str) -> None:
    with pytest.raises(TableError, match=f"here: patient '{other}' is written '{one}' in there"):
        require_one_spelling([(one, "there"), (other, "here")], "patient")


def test_different_names_and_none_are_not() -> None:
    require_one_spelling([("P1", "a"), ("P2", "b"), ("P10", "c"), ("", "d"), ("P1", "e")], "patient")


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "name": st.text(st.characters(codec="utf-8", exclude_characters="\r\0")),
                "n": st.integers(),
                "more": st.just(1),
            }
        )
    )
)
def test_what_is_written_as_csv_is_read_again(rows):
    text = csv_text(("n", "name"), rows, names=("name",))
    read = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [(int(line["n"]), from_text_cell(line["name"])) for line in read] == [
        (row["n"], row["name"]) for row in rows
    ]
    assert text.startswith("n,name\n")


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "\tx", "'x"])
def test_no_name_is_written_as_a_formula(name):
    rows = [{"slide": name, "score": -0.5}]
    written = list(csv.reader(io.StringIO(csv_text(("slide", "score"), rows, names=("slide",)), newline="")))
    assert written[1] == [f"'{name}", "-0.5"]


def test_a_row_without_a_column_is_a_mistake_of_the_code():
    with pytest.raises(KeyError):
        csv_text(("a", "b"), [{"a": 1}])
