from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytomil.bags.bag_file import BagInfo, Instance, write_bag
from cytomil.bags.manifest import (
    MANIFEST_NAME,
    BagRow,
    Manifest,
    fingerprint,
    open_listed,
    read_manifest,
    write_manifest,
)
from cytomil.errors import BagFileError, NotFoundError
from cytomil.text import is_file_name, is_inside

HEADER = "bag_id,path,patient_id,split,label,n_instances,witness_rate,sha256"
PRINTABLE = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=12)
ROWS = st.lists(
    st.builds(
        BagRow,
        bag_id=PRINTABLE.filter(is_file_name),
        path=PRINTABLE.filter(is_inside),
        patient_id=st.just(""),
        split=st.sampled_from(["train", "test"]),
        label=st.sampled_from([0, 1]),
        n_instances=st.integers(0, 10**7),
        witness_rate=st.none() | st.integers(0, 1000).map(lambda n: n / 1000),
        sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda row: row.bag_id,
)


def row(bag_id="a", patient="p", split="train", label=0, rate=0.0):
    return BagRow(bag_id, f"{bag_id}.h5", patient, split, label, 10, rate, "0" * 64)


def refusal(folder, *lines, header=HEADER):
    (folder / MANIFEST_NAME).write_text("\n".join([header, *lines, ""]), encoding="utf-8")
    with pytest.raises(BagFileError) as caught:
        read_manifest(folder)
    message = str(caught.value)
    assert MANIFEST_NAME in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", ["../x.h5", "/etc/x.h5", "a/../../x.h5", ""])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, path):
    assert "lies outside the folder" in refusal(tmp_path, f"a,{path},p,train,0,3,,s")


@pytest.mark.parametrize("bag_id", ["../x", "/x", "a/b", "..", ""])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path, bag_id):
    assert "lies outside the folder" in refusal(tmp_path, f"{bag_id},a.h5,p,train,0,3,,s")


def test_a_negative_number_of_cells_is_refused(tmp_path):
    assert "number of instances is -3" in refusal(tmp_path, "a,a.h5,p,train,0,-3,,s")


@pytest.mark.parametrize("wrong", [{"label": 1}, {"patient_id": "other"}, {"n_instances": 9}, {"sha256": "0"}])
def test_a_bag_that_is_not_its_rows_is_refused(tmp_path, wrong):
    sha256, n = write_bag(tmp_path / "a.h5", BagInfo("a", 0, "p"), [Instance("c", b"x")])
    right = BagRow("a", "a.h5", "p", "train", 0, n, None, sha256)
    assert open_listed(Manifest(tmp_path, (right,)), right).info.label == 0
    row = replace(right, **wrong)
    with pytest.raises(BagFileError, match=r"is not the bag that bags\.csv lists"):
        open_listed(Manifest(tmp_path, (row,)), row)


class TestRoundTrip:
    @given(rows=ROWS)
    @settings(max_examples=30)
    def test_what_is_written_is_read(self, tmp_path_factory, rows):
        folder = tmp_path_factory.mktemp("manifest")
        rows = [replace(row, patient_id=f"of {row.split}" if i % 2 else "") for i, row in enumerate(rows)]
        write_manifest(folder, rows)
        manifest = read_manifest(folder)
        assert manifest.rows == tuple(rows)
        assert manifest.folder == folder

    def test_an_unknown_witness_rate_is_blank(self, tmp_path):
        write_manifest(tmp_path, [row("a", rate=None), row("b", rate=0.0), row("c", rate=1 / 3)])
        lines = (tmp_path / MANIFEST_NAME).read_text().splitlines()
        assert lines[0] == f"{HEADER},checksum"
        assert [line.split(",")[-3] for line in lines[1:]] == ["", "0", "0.333333"]
        assert [r.witness_rate for r in read_manifest(tmp_path).rows] == [None, 0.0, pytest.approx(1 / 3, abs=1e-6)]

    def test_columns_in_another_order_and_extra_ones(self, tmp_path):
        (tmp_path / MANIFEST_NAME).write_text(
            "note,sha256,label,split,bag_id,path,patient_id,n_instances,witness_rate\nx,abc,1,test,a,a.h5,p,7,\n"
        )
        assert read_manifest(tmp_path).rows == (BagRow("a", "a.h5", "p", "test", 1, 7, None, "abc"),)

    def test_selecting_a_split(self, tmp_path):
        rows = [row("a", "p"), row("b", "q", "test"), row("c", "r")]
        write_manifest(tmp_path, rows)
        manifest = read_manifest(tmp_path)
        assert [r.bag_id for r in manifest.select("train")] == ["a", "c"]
        assert [r.bag_id for r in manifest.select("test")] == ["b"]
        assert manifest.select("all") == tuple(rows)
        assert manifest.file_of(rows[0]) == tmp_path / "a.h5"


class TestChecksums:
    @pytest.mark.parametrize(("old", "new"), [(",train,0,", ",train,1,"), ("a.h5", "b.h5"), (",0.5,", ",0.4,")])
    def test_an_edited_row_is_refused(self, tmp_path, old, new):
        write_manifest(tmp_path, [row("a", rate=0.5), row("c", "q", "test")])
        path = tmp_path / MANIFEST_NAME
        path.write_text(path.read_text().replace(old, new, 1))
        with pytest.raises(BagFileError, match=r"line 2: edited or damaged.*cytomil make-bags"):
            read_manifest(tmp_path)

    def test_a_missing_row_and_a_damaged_header_are_refused(self, tmp_path):
        write_manifest(tmp_path, [row("a"), row("b"), row("c")])
        path = tmp_path / MANIFEST_NAME
        content = path.read_text()
        path.write_text("".join(content.splitlines(keepends=True)[:-1]))
        with pytest.raises(BagFileError, match="edited or damaged"):
            read_manifest(tmp_path)
        for old, new in (("checksum", "checksvm"), ("checksum\n", "checksum\v")):
            path.write_text(content.replace(old, new))
            with pytest.raises(BagFileError, match="first line is damaged"):
                read_manifest(tmp_path)


class TestLeakage:
    def test_a_patient_in_two_splits_is_not_written(self, tmp_path):
        with pytest.raises(BagFileError, match=r"'a' \(train\) and 'b' \(test\) belong to one patient"):
            write_manifest(tmp_path, [row("a", "p"), row("b", "p", "test")])
        assert list(tmp_path.iterdir()) == []

    def test_a_patient_in_two_splits_is_not_read(self, tmp_path):
        message = refusal(tmp_path, "a,a.h5,p,train,0,10,0,x", "b,b.h5,q,test,0,10,0,x", "c,c.h5,p,test,1,10,0.1,x")
        assert "'a' (train) and 'c' (test) belong to one patient" in message

    def test_unknown_patients_are_not_one_patient(self, tmp_path):
        write_manifest(tmp_path, [row("a", ""), row("b", "", "test")])
        assert len(read_manifest(tmp_path).rows) == 2

    def test_many_bags_of_one_patient_may_stand_on_one_side(self, tmp_path):
        write_manifest(tmp_path, [row("a", "p"), row("b", "p"), row("c", "q", "test")])
        assert len(read_manifest(tmp_path).rows) == 3


class TestRefused:
    def test_a_bag_listed_twice(self, tmp_path):
        with pytest.raises(BagFileError, match="'a' is listed twice"):
            write_manifest(tmp_path, [row("a"), row("a")])
        assert "'a' is listed twice" in refusal(tmp_path, "a,a.h5,p,train,0,10,0,x", "a,b.h5,p,train,0,10,0,x")

    @pytest.mark.parametrize("label", ["2", "-1", "positive", "", "0.5"])
    def test_a_bad_label(self, tmp_path, label):
        assert "line 3" in refusal(tmp_path, "a,a.h5,p,train,0,10,0,x", f"b,b.h5,p,train,{label},10,0,x")

    @pytest.mark.parametrize("split", ["validation", "", "Train", "all"])
    def test_a_bad_split(self, tmp_path, split):
        message = refusal(tmp_path, f"a,a.h5,p,{split},0,10,0,x")
        assert "line 2" in message
        assert "must be train or test" in message

    @pytest.mark.parametrize("line", ["a,a.h5,p,train,0,ten,0,x", "a,a.h5,p,train,0,10,much,x"])
    def test_a_number_that_is_none(self, tmp_path, line):
        assert "line 2" in refusal(tmp_path, line)

    @pytest.mark.parametrize("column", HEADER.split(","))
    def test_a_missing_column(self, tmp_path, column):
        left = [name for name in HEADER.split(",") if name != column]
        assert f"lacks the columns {column}." in refusal(tmp_path, "x,x", header=",".join(left))

    @pytest.mark.parametrize("line", ["a", "a,a.h5,p", "a,a.h5,p,train", "a,a.h5,p,train,1"])
    def test_a_line_cut_short(self, tmp_path, line):
        assert "line 2" in refusal(tmp_path, line)

    def test_no_bags(self, tmp_path):
        assert "lists no bags" in refusal(tmp_path)

    @pytest.mark.parametrize("content", [b"\xff\xfe\x00b", f"{HEADER}\nM\xfcller".encode("latin-1")])
    def test_not_utf8(self, tmp_path, content):
        (tmp_path / MANIFEST_NAME).write_bytes(content)
        with pytest.raises(BagFileError, match="UTF-8"):
            read_manifest(tmp_path)

    def test_empty_file(self, tmp_path):
        (tmp_path / MANIFEST_NAME).write_bytes(b"")
        with pytest.raises(BagFileError, match="lacks the columns"):
            read_manifest(tmp_path)

    def test_none_there(self, tmp_path):
        with pytest.raises(NotFoundError, match=r"bags\.csv does not exist.*cytomil make-bags"):
            read_manifest(tmp_path)


class TestFingerprint:
    def test_depends_on_content_not_on_order_or_place(self):
        rows = [row("a"), row("b")]
        moved = [replace(r, path=f"elsewhere/{r.path}") for r in reversed(rows)]
        assert fingerprint(rows) == fingerprint(moved)

    @pytest.mark.parametrize("change", [{"sha256": "1" * 64}, {"label": 1}, {"split": "test"}, {"bag_id": "c"}])
    def test_differs_for_other_bags(self, change):
        rows = [row("a"), row("b")]
        assert fingerprint(rows) != fingerprint([rows[0], replace(rows[1], **change)])
        assert fingerprint(rows) != fingerprint(rows[:1])
