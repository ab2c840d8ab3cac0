from __future__ import annotations

import pytest

from cytomil.bags.patients import LabelledSlide, LabelWords, read_labels
from cytomil.errors import SettingsError, TableError


@pytest.fixture
def read(tmp_path):
    """Read the text of a labels file."""

    def run(text, words=None):
        file = tmp_path / "labels.csv"
        file.write_text(text, encoding="utf-8")
        return read_labels(file, words)

    return run


def test_blanks_byte_order_mark_and_remarks_do_not_matter(tmp_path):
    file = tmp_path / "labels.csv"
    file.write_bytes(b"\xef\xbb\xbfslide,#scanner,label,patient\r\n s1 ,x, 1 , p1\r\ns2,y,0,\r\n")
    assert read_labels(file) == [LabelledSlide("s1", 1, "p1", ""), LabelledSlide("s2", 0, "", "")]


@pytest.mark.parametrize("number", ["1", "1.0", "1,0", "1.00", " 1 "])
def test_a_number_as_spreadsheets_write_it(read, number):
    assert read(f'slide,label\ns1,"{number}"\n')[0].label == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "needs the columns slide and label"),
        ("slide,patient\ns1,p\n", "needs the columns slide and label"),
        ("name;label\ns1;1\n", "unknown column 'name'. Did you mean slide?"),
        ("slide,label\n", "lists no slides"),
        ("slide,label\ns1,0\ns2,2\n", "line 3: label '2'"),
        ("slide,label\ns1,positive\n", "line 2: label 'positive' is neither 0 (healthy) nor 1 (diseased)"),
        ("slide,label\ns1,positive\n", "--positive"),
        ("slide,label\ns1,\n", "line 2: label ''"),
        ("slide,label\ns1\n", "line 2: label"),
        ("slide,label\ns1,1.5\n", "line 2: label '1.5'"),
        ("slide,label\n,1\n", "line 2: the slide's name is empty"),
        ("slide,label\ns1,0\ns1,0\n", "lists s1 twice (lines 2, 3)"),
        ("slide,label\n../s1,0\n", "line 2: slide '../s1' must be a name"),
        ("slide,label\na/s1,0\n", "line 2: slide 'a/s1' must be a name"),
        ("slide,label\n/etc,0\n", "line 2: slide '/etc' must be a name"),
        ("slide,label\n..,0\n", "line 2: slide '..' must be a name"),
        ("slide,label\n.,0\n", "line 2: slide '.' must be a name"),
        ("slide,label,split\ns1,0,dev\n", "line 2: split 'dev'"),
        ("slide,label,split\ns1,0,train\ns2,1,\n", "Fill all of them or none"),
        ("slide,label,patient,split\ns1,0,p,train\ns2,1,p,test\n", "patient 'p' is in both"),
        ("slide,label,mpp\ns1,0,fine\n", "line 2: 'fine' is not a number"),
        ("slide,label,mpp\ns1,0,-1\n", "line 2: '-1' is not a number"),
        ("slide,label,mpp\ns1,0,nan\n", "line 2: 'nan' is not a number"),
        ("slide,label,case_id\ns1,0,p\n", "unknown column 'case_id'. Did you mean patient?"),
        ("slide,label,splt\ns1,0,test\n", "unknown column 'splt'. Did you mean split?"),
        ("slide,diagnosis\ns1,AML\n", "unknown column 'diagnosis'. Did you mean label?"),
    ],
)
def test_is_refused_with_its_name_and_what_is_wrong(read, text, reason):
    with pytest.raises(TableError) as caught:
        read(text)
    assert reason in str(caught.value)
    assert "labels.csv" in str(caught.value)


@pytest.mark.parametrize("other", ["p1", "P 1"])
def test_a_patient_in_two_spellings_is_refused(read, other):
    with pytest.raises(TableError, match=r"line 3: patient '.*' is written 'P1' in .*line 2"):
        read(f"slide,label,patient\ns1,0,P1\ns2,1,{other}\n")


@pytest.mark.parametrize(("one", "other"), [("7", "007"), ("7", "7.0")])
def test_a_patients_number_in_two_spellings_is_refused(read, one, other):
    with pytest.raises(TableError, match="in one way"):
        read(f"slide,label,patient\ns1,0,{one}\ns2,1,{other}\n")


def test_a_split_in_any_case(read):
    assert [slide.split for slide in read("slide,label,split\na,0,Train\nb,1,TEST\n")] == ["train", "test"]


class TestWords:
    WORDS = LabelWords(("AML", "APL"), ("healthy", "reactive change"))

    def test_are_taken_in_any_case(self, read):
        slides = read("slide,label\na,aml\nb,Healthy\nc,APL\nd,Reactive Change\n", self.WORDS)
        assert [slide.label for slide in slides] == [1, 0, 1, 0]

    @pytest.mark.parametrize("label", ["ALL", "1", "0", "", "AM"])
    def test_a_value_on_neither_side_names_its_line(self, read, label):
        with pytest.raises(TableError, match=rf"line 3: label '{label}' is neither positive \(AML, APL\)"):
            read(f"slide,label\na,aml\nb,{label}\n", self.WORDS)

    def test_a_word_on_both_sides_is_refused(self):
        with pytest.raises(SettingsError, match="'aml' is both"):
            LabelWords(("AML",), ("aml", "healthy"))
