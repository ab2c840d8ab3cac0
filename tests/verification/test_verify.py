"""verify on a whole results folder, and on the same folder with one thing wrong."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from cytomil.app.cli.app import app
from cytomil.bags.manifest import FittedBag, patient_key, read_manifest, write_manifest
from cytomil.errors import CytomilError, FeatureFileError, NotFoundError, SignatureError, TriageModelError
from cytomil.evaluation.config import EvaluateConfig
from cytomil.evaluation.run import evaluate
from cytomil.experiments.runs import read_runs
from cytomil.features.config import EmbedConfig
from cytomil.features.embed import embed
from cytomil.features.index import read_index, write_index
from cytomil.files import read_json, write_json_card
from cytomil.mil.config import FitMilConfig
from cytomil.mil.fit import fit_mil
from cytomil.mil.triage_model import load_triage_model
from cytomil.progress import Silent
from cytomil.review.slides import Triage
from cytomil.triage.config import RankConfig
from cytomil.triage.rank import rank
from cytomil.triage.write import write_worklist
from cytomil.verification import verify
from tests.test_file_manifest import write_keys

EMBED = {"layer": "z", "orientations": 1, "device": "cpu"}
FIT = {"aggregator": "knn", "folds": 2, "ensemble": 1}
WITHOUT_CONTENT = {".cytomil"}


def evaluated(root, **changes):
    places = {"features": root / "features", "model": root / "model", "bags": root / "bags", "out": root / "reports"}
    return evaluate(EvaluateConfig(**(places | changes)), Silent())


@pytest.fixture(scope="module")
def results(bags_folder, encoder_folder, shared):
    """Bags, encoder, features, triage model, reports and worklist: read it, never write to it."""

    def make(root):
        shutil.copytree(bags_folder, root / "bags")
        shutil.copytree(encoder_folder, root / "encoder")
        embed(EmbedConfig(bags=root / "bags", encoder=root / "encoder", out=root / "features", **EMBED), Silent())
        fit_mil(FitMilConfig(features=root / "features", encoder=root / "encoder", out=root / "model", **FIT), Silent())
        evaluated(root)
        settings = RankConfig(model=root / "model", out=root / "triage", top=2, device="cpu", engine="eager")
        write_worklist(rank(root / "bags", settings, Silent()), root / "triage")

    return shared.folder("verified", make)


@pytest.fixture
def copy(results, tmp_path):
    return shutil.copytree(results, tmp_path / "results")


def found(root):
    return {Path(one.where).relative_to(root).as_posix(): one.reason for one in verify(root, Silent()).findings}


def test_a_sound_folder_has_no_findings_and_every_file_was_read(results):
    verified = verify(results, Silent())
    assert verified.findings == ()
    files = {file for file in results.rglob("*") if file.is_file() and file.name not in WITHOUT_CONTENT}
    assert verified.n_files == len(files) - len(list(results.rglob(".*.lock")))


def test_one_flipped_byte_anywhere_is_named(copy):
    rng = np.random.default_rng(0)
    files = sorted(file for file in copy.rglob("*") if file.is_file() and not file.name.startswith("."))
    assert len(files) > 40
    for file in files:
        whole = file.read_bytes()
        place = int(rng.integers(len(whole)))
        file.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << int(rng.integers(8)))]) + whole[place + 1 :])
        named = {Path(one.where) for one in verify(copy / file.relative_to(copy).parts[0], Silent()).findings}
        assert named, f"{file.relative_to(copy)}, byte {place}"
        file.write_bytes(whole)


def embedded(root):
    embed(EmbedConfig(bags=root / "bags", encoder=root / "encoder", out=root / "f", **EMBED), Silent())


def fitted(root):
    fit_mil(FitMilConfig(features=root / "features", encoder=root / "encoder", out=root / "m", **FIT), Silent())


@pytest.mark.parametrize(
    ("file", "read"),
    [
        ("bags/bags.csv", embedded),
        ("features/embed.json", fitted),
        ("features/features.csv", fitted),
        ("model/triage.json", evaluated),
        ("model/encoder/encoder.safetensors", evaluated),
        ("reports/evaluate.json", lambda root: read_runs([root / "reports"])),
        ("triage/triage.json", lambda root: Triage(root / "triage")),
    ],
)
def test_the_stage_that_reads_a_flipped_byte_refuses_it_in_one_line(copy, file, read):
    content = bytearray((copy / file).read_bytes())
    # A digit of a value, so that the file can still be parsed.
    place = next(i for i in range(len(content) // 2, len(content)) if chr(content[i]) in "12345678")
    content[place] ^= 1
    (copy / file).write_bytes(content)
    assert found(copy)
    with pytest.raises(CytomilError) as caught:
        read(copy)
    assert "\n" not in str(caught.value)


def test_another_encoder_in_its_place_is_named(copy, make_encoder):
    shutil.rmtree(copy / "encoder")
    make_encoder(copy / "encoder", seed=1)
    assert "another encoder" in found(copy)["features/features.csv"]
    with pytest.raises(FeatureFileError, match="another encoder"):
        fitted(copy)


def relist(folder, change):
    """Write bags.csv anew, with right checksums, as nothing but a hostile or faulty program would."""
    write_manifest(folder, [change(row) for row in read_manifest(folder).rows])


def test_a_flipped_label_is_named_and_refused(copy):
    relist(copy / "bags", lambda row: replace(row, label=1 - row.label) if row.bag_id == "train-01" else row)
    faults = found(copy)
    assert "label" in faults["bags/train-01.h5"]
    assert "bag 'train-01'" in faults["features/features.csv"]
    with pytest.raises(FeatureFileError, match=r"'train-01' of .*label differ"):
        fitted(copy)


def test_labels_flipped_in_the_index_are_named_and_refused(copy):
    index = read_index(copy / "features")
    write_index(replace(index, rows=tuple(replace(row, label=1 - row.label) for row in index.rows)))
    assert "label differ" in found(copy)["features/features.csv"]
    with pytest.raises(FeatureFileError, match="label differ"):
        evaluated(copy)


def test_a_test_bag_called_a_training_bag_is_refused_by_fit_mil(copy):
    index = read_index(copy / "features")
    rows = tuple(replace(row, split="train") if row.bag_id == "test-01" else row for row in index.rows)
    write_index(replace(index, rows=rows))
    with pytest.raises(FeatureFileError, match=r"'test-01' of .*split differ.*cytomil embed"):
        fitted(copy)


@pytest.mark.parametrize("who", ["model", "encoder"])
@pytest.mark.parametrize("seen", ["it", "its patient"])
def test_a_test_bag_that_had_a_part_in_fitting_is_named_and_refused(copy, who, seen):
    row = next(row for row in read_index(copy / "features").rows if row.split == "test")
    other = (
        FittedBag(sha256=row.bag_sha256) if seen == "it" else FittedBag(sha256="0", patient=patient_key(row.patient_id))
    )
    card = copy / "model" / ("triage.json" if who == "model" else "encoder/encoder.json")
    document = read_json(card)
    (document if who == "model" else document["data"])["fitted_to"] = [other.to_json()]
    write_json_card(card, document)
    message = f"'{row.bag_id}' is a test bag, but {seen} had a part in fitting the {who}"
    assert message in found(copy)["model/triage.json"]
    with pytest.raises(TriageModelError, match=message):
        evaluated(copy)
    evaluated(copy, split="train", out=copy / "of-training")


def test_a_model_names_its_bags_without_the_patients(results):
    rows = [row for row in read_index(results / "features").rows if row.split == "train"]
    card = load_triage_model(results / "model").card
    assert [bag.sha256 for bag in card.fitted_to] == [row.bag_sha256 for row in rows]
    assert all(bag.patient for bag in card.fitted_to)
    patients = {row.patient_id for row in rows if row.patient_id}
    for file in (results / "model" / "triage.json", results / "reports" / "evaluate.json"):
        assert not any(f'"{patient}"' in json.dumps(only_patients(read_json(file))) for patient in patients)


def only_patients(document):
    """The values of all keys that speak of patients."""
    if isinstance(document, dict):
        return [v if "patient" in k else only_patients(v) for k, v in document.items()]
    return [only_patients(one) for one in document] if isinstance(document, list) else []


def test_a_model_without_these_entries_is_read_and_evaluated(copy):
    document = read_json(copy / "model" / "triage.json")
    for key in ("fitted_to", "features"):
        del document[key]
    write_json_card(copy / "model" / "triage.json", document)
    assert evaluated(copy).bag.n_bags == 4


def test_bags_that_are_no_longer_there_are_not_missed(copy):
    shutil.rmtree(copy / "bags")
    assert found(copy) == {}
    fitted(copy)


def test_a_folder_with_nothing_of_cytomils_is_said_to_be_one(tmp_path):
    with pytest.raises(NotFoundError, match="holds no bags"):
        verify(tmp_path, Silent())


def ranked(root, public_key):
    settings = RankConfig(model=root / "model", out=root / "again", top=2, device="cpu", require_signature=public_key)
    return rank(root / "bags", settings, Silent())


def test_a_signed_model_ranks_and_one_that_was_changed_since_does_not(copy, tmp_path):
    private, public = write_keys(tmp_path, "key", Ed25519PrivateKey.generate())
    with pytest.raises(SignatureError, match="is not signed"):
        ranked(copy, public)
    line = ["verify", str(copy / "model"), "--sign", str(private)]
    assert CliRunner().invoke(app, line).exit_code == 0
    assert ranked(copy, public).slides
    checked = CliRunner().invoke(app, ["verify", str(copy / "model"), "--public-key", str(public)])
    assert (checked.exit_code, checked.stdout) == (0, "5 files verified\n")
    engine = copy / "model" / "encoder" / "engines" / "someones"
    engine.mkdir(parents=True)
    (engine / "code.bin").write_bytes(b"another engine")
    with pytest.raises(SignatureError, match="is not among the signed files"):
        ranked(copy, public)
    assert CliRunner().invoke(app, ["verify", str(copy / "model"), "--public-key", str(public)]).exit_code == 3


def test_a_model_with_findings_is_not_signed(copy, tmp_path):
    private, _ = write_keys(tmp_path, "key", Ed25519PrivateKey.generate())
    (copy / "model" / "aggregator.safetensors").write_bytes(b"gone")
    assert CliRunner().invoke(app, ["verify", str(copy / "model"), "--sign", str(private)]).exit_code == 3
    assert not (copy / "model" / "manifest.sig").exists()


class TestCommandLine:
    def run(self, *words):
        return CliRunner().invoke(app, ["verify", *map(str, words)])

    def test_a_sound_folder_is_one_line(self, results):
        done = self.run(results / "features")
        assert (done.exit_code, done.stdout) == (0, "12 files verified\n")

    def test_every_finding_is_one_line_and_the_status_is_3(self, copy):
        for name in ("test-01", "test-02"):
            (copy / "features" / f"{name}.h5").write_bytes(b"gone")
        done = self.run(copy)
        lines = done.stdout.splitlines()
        assert done.exit_code == 3
        assert [line.split(": ")[0] for line in lines] == [str(copy / f"features/test-0{i}.h5") for i in (1, 2)]
        assert all("cytomil embed" in line for line in lines)

    def test_json(self, copy):
        (copy / "reports" / "plots" / "roc.csv").write_text("x")
        done = self.run(copy / "reports", "--json")
        document = json.loads(done.stdout)
        assert done.exit_code == 3
        assert [Path(one["file"]).name for one in document["findings"]] == ["roc.csv"]
