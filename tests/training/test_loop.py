import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from cytomil import progress as disk
from cytomil.bags.config import MakeBagsConfig
from cytomil.bags.make import make_bags
from cytomil.encoders.bundle import WEIGHTS_NAME, load_bundle
from cytomil.errors import BagFileError, DivergedError, ResumeError, SettingsError
from cytomil.files import sha256_of_file
from cytomil.progress import Silent
from cytomil.registry import METHODS
from cytomil.training.cells import measured_memory
from cytomil.training.checkpoint import TRAINING_VERSION
from cytomil.training.config import PretrainConfig
from cytomil.training.loop import pretrain
from cytomil.training.methods.contrastive import SimCLR
from cytomil.training.methods.multi_task import SlamAgsConfig
from tests.counting import Counting

BAGS = {"bag_size": 16, "train_bags": 6, "test_bags": 2, "cell_size": 24, "difficulty": 0.2, "witness_rate": 0.25}
SMALL = {
    "method": "slam-ags",
    "epochs": 3,
    "batch_size": 32,
    "image_size": 16,
    "arch": "test_resnet",  # small; ResNet-18 has a test of its own in `test_starting`
    "weights": "none",
    "projection_dim": 16,
    "warmup_epochs": 0.5,
    "learning_rate": 0.01,
}


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrain") / "bags"
    make_bags(MakeBagsConfig(out=out, **BAGS), Silent())
    return out


def settings(bags, out, **changed):
    own = {key: changed.pop(key) for key in SlamAgsConfig.model_fields if key in changed}
    chosen = {**SMALL, "bags": bags, "out": out, **changed}
    return PretrainConfig(**chosen, options={chosen.get("method", "none"): own})


def weights(out):
    return sha256_of_file(out / WEIGHTS_NAME)


TRAINING = [name for name in METHODS if name != "none"]

# What an encoder that tells nothing apart scores on a batch of 32 cells, half of them positive.
CHANCE = {
    "slam-ags": math.log(63),
    "weaksupcon": math.log(31),
    "simclr": math.log(63),
    "moco-v3": math.log(32),
    "droc": math.log(63),
}


@pytest.fixture(scope="module")
def two_hundred_cells(tmp_path_factory):
    out = tmp_path_factory.mktemp("two-hundred") / "bags"
    make_bags(MakeBagsConfig(out=out, **(BAGS | {"bag_size": 25, "train_bags": 8})), Silent())
    return out


@pytest.mark.parametrize("method", TRAINING)
def test_every_method_trains_an_epoch_and_records_what_it_did(two_hundred_cells, tmp_path, method):
    records = []
    ceiling = method == "fully-supervised"
    wanted = settings(two_hundred_cells, tmp_path / "encoder", method=method, epochs=1, with_instance_labels=ceiling)
    done = pretrain(wanted, Silent(), records.append)
    card = json.loads((tmp_path / "encoder" / "encoder.json").read_text())
    assert card["method"] == method
    assert card["uses_instance_labels"] is ceiling
    assert isinstance(card["collapsed"], bool)
    assert card["effective_rank"] >= 1
    assert card["synthetic"] is True
    assert card["data"]["n_cells"] == 200
    assert [r["epoch"] for r in records] == [1]
    assert any(key.startswith("loss_") for key in records[0])
    assert len(card["history"]) == 1
    assert (card["nt_xent_margin"] is not None) is (method in CHANCE)
    if method in CHANCE:
        # Steps hold 28 to 36 cells, not 32, where 200 do not divide.
        assert records[0]["chance"] == pytest.approx(CHANCE[method], abs=0.15)
    if method == "slam-ags":
        assert {"gradient_cosine", "gradient_norm_negative", "gradient_norm_positive"} <= set(records[0])
        assert -1 <= records[0]["gradient_cosine"] <= 1
    assert not list(tmp_path.glob("checkpoints/*.pt"))
    assert load_bundle(tmp_path / "encoder").sha256 == done.bundle.sha256


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(bags, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        pretrain(settings(bags, tmp_path / name, seed=seed, epochs=1), Silent())
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert weights(tmp_path / "a") != weights(tmp_path / "c")


def trained_now(records):
    """The epochs that this run trained. Those of the interrupted run come without their speed."""
    return [record["epoch"] for record in records if "images_per_second" in record]


@pytest.mark.parametrize(
    "method",
    [
        "slam-ags",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("weakly-supervised", "moco-v3", "its2clr", "dsvdd")),
    ],
)
def test_an_interrupted_run_resumes_to_the_weights_of_an_unbroken_one(bags, tmp_path, method):
    pretrain(settings(bags, tmp_path / "unbroken", method=method), Silent())
    broken = settings(bags, tmp_path / "broken", method=method)

    def stop_after_two(record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(broken, Silent(), stop_after_two)
    assert not (tmp_path / "broken").exists()
    records = []
    pretrain(broken, Silent(), records.append, resume=True)
    assert trained_now(records) == [3]
    assert weights(tmp_path / "broken") == weights(tmp_path / "unbroken")


def test_resuming_with_another_number_of_threads_is_said(bags, tmp_path, monkeypatch):
    wanted = settings(bags, tmp_path / "e")
    with pytest.raises(KeyboardInterrupt):
        pretrain(wanted, Silent(), interrupt)
    told = []
    listener = Silent()
    listener.note = told.append
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 3)
    pretrain(wanted, listener)
    assert any(f"so far with {threads} threads, now with {threads + 3}" in line for line in told)


@pytest.mark.nightly  # `tests/faults` kills pretrain too
def test_a_killed_process_resumes_to_the_weights_of_an_unbroken_one(bags, tmp_path):
    def command(out, *more):
        line = [sys.executable, "-m", "cytomil", "pretrain", "--bags", str(bags), "--out", str(tmp_path / out), *more]
        for key, value in (SMALL | {"epochs": 6}).items():
            line += [f"--{key.replace('_', '-')}", str(value)]
        return line

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command("killed"), cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("checkpoints/killed-*.pt")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    resumed = subprocess.run(
        command("killed", "--resume"), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after epoch" in resumed.stderr
    unbroken = subprocess.run(
        command("unbroken"), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert unbroken.returncode == 0, unbroken.stderr
    assert weights(tmp_path / "killed") == weights(tmp_path / "unbroken")


def interrupt(record):
    raise KeyboardInterrupt


def test_resume_refuses_other_settings_and_names_them(bags, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        pretrain(settings(bags, tmp_path / "e"), Silent(), interrupt)
    with pytest.raises(ResumeError, match=r"learning_rate 0\.01 → 0\.02"):
        pretrain(settings(bags, tmp_path / "e", learning_rate=0.02), Silent(), resume=True)


def test_resume_refuses_other_bags(bags, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        pretrain(settings(bags, tmp_path / "e"), Silent(), interrupt)
    make_bags(MakeBagsConfig(out=tmp_path / "other", seed=5, **BAGS), Silent())
    with pytest.raises(ResumeError, match="other bags"):
        pretrain(settings(tmp_path / "other", tmp_path / "e"), Silent(), resume=True)


def test_another_state_of_the_source_keeps_a_checkpoint_and_another_training_version_does_not(
    bags, tmp_path, monkeypatch
):
    def interrupt_first(record):
        if record["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(settings(bags, tmp_path / "e"), Silent(), interrupt_first)
    with monkeypatch.context() as context:
        context.setattr("cytomil.training.loop.TRAINING_VERSION", TRAINING_VERSION + 1)
        with pytest.raises(ResumeError, match=f"training version {TRAINING_VERSION} → {TRAINING_VERSION + 1}"):
            pretrain(settings(bags, tmp_path / "e"), Silent(), resume=True)
    monkeypatch.setattr("cytomil.cards.code_fingerprint", lambda *_: "0" * 64)
    records = []
    pretrain(settings(bags, tmp_path / "e"), Silent(), records.append, resume=True)
    assert trained_now(records) == [2, 3]


def test_a_checkpoint_older_than_versions_is_one_clear_line(bags, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        pretrain(settings(bags, tmp_path / "e"), Silent(), interrupt)
    (kept,) = (tmp_path / "checkpoints").glob("*.pt")
    content = torch.load(kept, weights_only=True)
    content["identity"]["code"] = content["identity"].pop("made_by")
    del content["sha256"]
    torch.save(content, kept.with_name("e-0123456789abcdef.pt"))
    kept.unlink()
    with pytest.raises(ResumeError, match="of an earlier version of cytomil"):
        pretrain(settings(bags, tmp_path / "e"), Silent(), resume=True)


def test_a_damaged_checkpoint_is_one_clear_line(bags, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        pretrain(settings(bags, tmp_path / "e"), Silent(), interrupt)
    (checkpoint,) = tmp_path.glob("checkpoints/*.pt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ResumeError, match="damaged"):
        pretrain(settings(bags, tmp_path / "e"), Silent())


def test_resume_leaves_a_finished_run_as_it_is(bags, tmp_path):
    wanted = settings(bags, tmp_path / "e", epochs=1)
    pretrain(wanted, Silent())
    before = (tmp_path / "e" / "encoder.json").stat().st_mtime_ns
    assert pretrain(wanted, Silent(), resume=True).already_done
    assert (tmp_path / "e" / "encoder.json").stat().st_mtime_ns == before


def test_divergence_stops_with_the_step_and_the_last_good_checkpoint(bags, tmp_path, monkeypatch):
    honest, calls = SimCLR.losses, []

    def losses(self, encoder, batch):
        calls.append(batch)
        found = honest(self, encoder, batch)
        return {name: loss * float("nan") for name, loss in found.items()} if len(calls) == 5 else found

    monkeypatch.setattr(SimCLR, "losses", losses)
    with pytest.raises(DivergedError, match=r"step 5 \(epoch 2\).*after epoch 1") as caught:
        pretrain(settings(bags, tmp_path / "e", method="simclr"), Silent())
    (checkpoint,) = tmp_path.glob("checkpoints/*.pt")
    assert str(checkpoint) in str(caught.value)
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 1
    assert not (tmp_path / "e").exists()


def test_the_objective_as_printed_collapses_and_says_so(bags, tmp_path):
    printed = {"objective": "paper", "temperature": 0.07, "epochs": 12, "learning_rate": 0.05}
    done = pretrain(settings(bags, tmp_path / "e", **printed), Silent())
    assert done.bundle.card.collapsed is True
    assert done.bundle.card.collapse_reason


def test_training_needs_both_labels_and_a_batch_that_fits(bags, tmp_path):
    with pytest.raises(SettingsError, match="batch_size"):
        pretrain(settings(bags, tmp_path / "e", batch_size=4096), Silent())
    make_bags(MakeBagsConfig(out=tmp_path / "one", **(BAGS | {"train_bags": 1})), Silent())
    with pytest.raises(BagFileError, match="positive"):
        pretrain(settings(tmp_path / "one", tmp_path / "e"), Silent())


def test_a_bag_that_was_exchanged_is_refused(bags, tmp_path):
    other = tmp_path / "bags"
    make_bags(MakeBagsConfig(out=other, **BAGS), Silent())
    (other / "train-01.h5").write_bytes((other / "train-02.h5").read_bytes())
    with pytest.raises(BagFileError, match="is not the bag"):
        pretrain(settings(other, tmp_path / "e"), Silent())


def test_a_ceiling_must_be_asked_for_twice_and_others_may_not_see_instance_labels(bags, tmp_path):
    with pytest.raises(SettingsError, match="--with-instance-labels"):
        pretrain(settings(bags, tmp_path / "e", method="fully-supervised"), Silent())
    with pytest.raises(SettingsError, match="slide labels alone"):
        pretrain(settings(bags, tmp_path / "e", method="simclr", with_instance_labels=True), Silent())
    assert not (tmp_path / "e").exists()


def test_surgery_is_refused_where_there_is_nothing_to_reconcile(bags, tmp_path):
    with pytest.raises(SettingsError, match=r"method 'simclr' has no setting 'surgery'. It has no settings of its own"):
        pretrain(settings(bags, tmp_path / "e", method="simclr", surgery="pcgrad"), Silent())


def test_own_settings_are_checked_before_anything_is_read_and_recorded_whole(bags, tmp_path):
    for own, reason in (
        ({"objectiv": 1}, "Did you mean 'objective'"),
        ({"rescale": "sometimes"}, "rescale: input should be"),
    ):
        options = {"slam-ags": own}
        with pytest.raises(SettingsError, match=reason):
            pretrain(PretrainConfig(bags=bags, out=tmp_path / "e", method="slam-ags", options=options), Silent())
    done = pretrain(settings(bags, tmp_path / "e", epochs=1, rescale="never"), Silent())
    own = done.bundle.card.settings["options"]
    assert own == {"slam-ags": SlamAgsConfig(rescale="never").model_dump(mode="json")}


def test_slam_ags_as_printed_with_the_plain_sum_is_weaksupcon(bags, tmp_path):
    printed = {"objective": "paper", "epochs": 1}
    pretrain(settings(bags, tmp_path / "sum", method="slam-ags", surgery="sum", **printed), Silent())
    pretrain(settings(bags, tmp_path / "weaksupcon", method="weaksupcon", **printed), Silent())
    assert weights(tmp_path / "sum") == weights(tmp_path / "weaksupcon")


@pytest.mark.parametrize("surgery", ["pcgrad", "cagrad", "mgda", "imtl-g"])
def test_slam_ags_trains_with_the_surgery_chosen(bags, tmp_path, surgery):
    records = []
    pretrain(settings(bags, tmp_path / "e", surgery=surgery, epochs=1), Silent(), records.append)
    assert math.isfinite(records[0]["loss_nt_xent"])
    assert -1 <= records[0]["gradient_cosine"] <= 1


def test_all_steps_of_all_epochs_are_counted(bags, tmp_path):
    told = Counting()
    pretrain(settings(bags, tmp_path / "encoder"), told)
    assert (told.work.total, told.work.unit, told.work.warm_up) == (9, "steps", 1)
    assert told.steps == [1] * 9


def test_what_is_told_of_disk_holds_two_checkpoints_and_the_bundle(bags, tmp_path):
    told, sizes = Counting(), []

    def on_epoch(record):
        sizes.extend(path.stat().st_size for path in (tmp_path / "checkpoints").iterdir())

    pretrain(settings(bags, tmp_path / "encoder", epochs=1), told, on_epoch)
    assert told.work.disk == pytest.approx(
        2 * sizes[0] + (tmp_path / "encoder" / WEIGHTS_NAME).stat().st_size, rel=0.05
    )


def test_cells_kept_on_disk_are_told_with_it(bags, tmp_path):
    in_memory, on_disk = Counting(), Counting()
    pretrain(settings(bags, tmp_path / "ram", epochs=1), in_memory)
    pretrain(settings(bags, tmp_path / "disk", epochs=1, cache="disk"), on_disk)
    assert on_disk.work.disk - in_memory.work.disk == 6 * 16 * 3 * 16**2


def test_a_resumed_run_first_gives_the_records_of_the_epochs_before(bags, tmp_path):
    records = []

    def stop(record):
        records.append(record)
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(settings(bags, tmp_path / "encoder"), Silent(), stop)
    again = []
    pretrain(settings(bags, tmp_path / "encoder"), Silent(), again.append)
    assert [record["epoch"] for record in again] == [1, 2, 3]
    for before, now in zip(records, again[:2], strict=True):
        assert now == {name: value for name, value in before.items() if name != "images_per_second"}


def test_a_resumed_run_counts_what_is_left(bags, tmp_path):
    def stop(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(settings(bags, tmp_path / "encoder"), Silent(), stop)
    told = Counting()
    pretrain(settings(bags, tmp_path / "encoder"), told)
    assert told.work.total == len(told.steps) == 6


def test_too_little_disk_for_checkpoints_ends_it_before_the_first_step(bags, tmp_path, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10_000))
    told = Counting()
    with pytest.raises(SettingsError, match=r"checkpoints and encoder need .* MB of disk"):
        pretrain(settings(bags, tmp_path / "encoder"), told)
    assert told.work is None


def test_a_method_that_does_not_train_counts_nothing(bags, tmp_path):
    told = Counting()
    pretrain(settings(bags, tmp_path / "encoder", method="none"), told)
    assert told.work is None


def test_memory_is_measured_for_all_processes_of_the_machine():
    one, three = measured_memory(1), measured_memory(3)
    assert three.held >= 3 * one.held > 0
    assert one.free > 0
