"""From records to tables and figures: marks, refusals, the paper's figures, the same bytes."""

from __future__ import annotations

import csv
import io
import json
import re
import time

import pytest
from PIL import Image
from typer.testing import CliRunner

from cytomil.app.cli.app import app
from cytomil.errors import EvaluationError, NotFoundError
from cytomil.evaluation.config import EvaluateConfig
from cytomil.experiments.blocks import make_blocks
from cytomil.experiments.bootstrap import METRICS
from cytomil.experiments.runs import Cell, read_runs
from cytomil.experiments.tables import DONE, FAILED, NOT_RUN, is_near, make_table, published
from cytomil.experiments.write_tables import csv_of, latex, markdown, plot_by_fraction, plot_by_rate, write_tables

NAMES = ("simclr", "slam-ags", "fully-supervised")


@pytest.fixture
def small_grid(make_record, tmp_path):
    """Three methods planned at two rates and two seeds: most done, one collapsed, one failed, one never run."""
    folder = tmp_path / "grid"
    (folder / "runs").mkdir(parents=True)
    (folder / "grid.yaml").write_text(f"methods: [{', '.join(NAMES)}]\nwitness_rates: [0.1, 0.01]\nseeds: [0, 1]\n")
    for name in NAMES:
        for rate in (0.1, 0.01):
            for seed in (0, 1):
                if (name, rate) == ("fully-supervised", 0.01):
                    continue
                broken = (name, rate, seed) == ("slam-ags", 0.01, 1)
                judged = [
                    make_record(name, rate, seed, judge, collapsed=(name, rate, seed) == ("slam-ags", 0.1, 0))
                    for judge in ("pamil", "best other")
                ]
                run = {
                    "schema": "cytomil.run/1",
                    "cell": {"name": name, "witness_rate": rate, "seed": seed},
                    "failed": "DivergedError: NaN" if broken else None,
                    "evaluations": [] if broken else judged,
                }
                (folder / "runs" / f"{seed}-{rate}-{name}.json").write_text(json.dumps(run))
    return folder


def table_of(folder, against="simclr"):
    return make_table(read_runs([folder]), against, 200, 0)


def test_every_place_of_the_grid_says_what_became_of_it(small_grid):
    table = table_of(small_grid)
    assert (table.rates, table.seeds, table.judges) == ((0.1, 0.01), (0, 1), ("pamil", "best other"))
    states = {name: [table.at("pamil", name, rate).state for rate in table.rates] for name in NAMES}
    assert states == {"simclr": [DONE] * 2, "slam-ags": [DONE] * 2, "fully-supervised": [DONE, NOT_RUN]}
    collapsed, failed = (table.at("pamil", "slam-ags", rate) for rate in table.rates)
    assert (collapsed.n_collapsed, collapsed.n_done, collapsed.n_failed) == (1, 2, 0)
    assert (failed.n_collapsed, failed.n_done, failed.n_failed) == (0, 1, 1)
    assert table.ceilings == {"fully-supervised"}


def test_a_ceiling_is_known_by_its_records_and_by_its_name_before_there_are_any(write_reports, make_record):
    foreign = make_record("their-ceiling", uses_instance_labels=True)
    only_called_so = make_record("fully-supervised", uses_instance_labels=False)
    records = [make_record("simclr"), foreign, only_called_so]
    table = table_of(write_reports(records))
    assert table.ceilings == {"their-ceiling"}
    assert "| their-ceiling § |" in markdown(make_blocks(table))
    planned = write_reports([records[0]], "planned")
    (planned / "grid.yaml").write_text("methods: [simclr, fully-supervised]\nwitness_rates: [0.1]\nseeds: [0]\n")
    assert table_of(planned).ceilings == {"fully-supervised"}


def test_marks_and_paper_stand_in_the_table_and_are_explained(small_grid):
    block = make_blocks(table_of(small_grid))[0]
    assert block.title == "bag F1, %, judged by pamil"
    rows = {row[0][0]: row[1:] for row in block.rows}
    at_ten, at_one = rows["SLAM-AGS"]
    assert "†" in at_ten[0]
    assert "paper 97.1±6.4" in at_ten
    assert re.fullmatch(r"[\d.]+‡ \(1/2\)", at_one[0])
    assert rows["fully supervised §"][1] == ("not run",)
    assert not any(mark in line for place in rows["SimCLR"] for line in place for mark in "†‡§")
    notes = " ".join(block.notes)
    for mark in ("†", "‡", "§", "paper", "(n/m)"):
        assert mark in notes


def test_tables_of_differences_warn_of_several_comparisons(write_reports, make_record):
    names = ("simclr", "slam-ags", "supcon")
    blocks = make_blocks(table_of(write_reports([make_record(name, seed=s) for name in names for s in (0, 1)])))
    warned = {block.title: any("2 comparisons" in note for note in block.notes) for block in blocks}
    assert {title for title, is_warned in warned.items() if is_warned} == {
        title for title in warned if "points more than" in title
    }


def test_a_method_of_which_every_run_failed_is_failed(make_record, tmp_path):
    cell = {"name": "its2clr", "witness_rate": 0.1, "seed": 0}
    run = {"schema": "cytomil.run/1", "cell": cell, "failed": "why", "evaluations": []}
    (tmp_path / "a.json").write_text(json.dumps(run))
    (tmp_path / "evaluate.json").write_text(json.dumps(make_record()))
    table = table_of(tmp_path)
    assert table.at("pamil", "its2clr", 0.1).state == FAILED
    assert "failed" in markdown(make_blocks(table))


def test_differences_are_taken_run_by_run_on_the_same_bags(write_reports, make_record):
    records = [make_record(name, seed=seed) for name in ("simclr", "slam-ags") for seed in (0, 1)]
    table = table_of(write_reports([*records, make_record("slam-ags", seed=2)]))
    entry = table.at("pamil", "slam-ags", 0.1)
    assert len(entry.estimates["f1"].by_run) == 3
    alone = {name: table.at("pamil", name, 0.1).estimates["f1"].by_run for name in ("simclr", "slam-ags")}
    expected = [a - b for a, b in zip(alone["slam-ags"], alone["simclr"], strict=False)]
    assert entry.differences["f1"].by_run == pytest.approx(expected)
    assert table.at("pamil", "simclr", 0.1).differences == {}
    assert table_of(write_reports([make_record("supcon")], "other"), against="simclr").against is None


def test_runs_of_different_bags_are_refused(write_reports, make_record):
    records = [make_record("simclr"), make_record("slam-ags", bags_fingerprint="others")]
    with pytest.raises(EvaluationError, match="different bags") as caught:
        read_runs([write_reports(records)])
    assert str(caught.value).count("evaluate.json") == 2
    other_seed = make_record("slam-ags", seed=1, bags_fingerprint="others")
    assert len(read_runs([write_reports([records[0], other_seed], "fine")]).done) == 2


BAGS_ALIKE = {"sources": ["blood-smear"], "n_bags": 18, "n_cells": 4680}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sources": ["synthetic"]}, "differ in sources (blood-smear and synthetic)"),
        ({"n_bags": 24, "n_cells": 24 * 260}, "differ in training bags (18 and 24)"),
        ({"n_cells": 18 * 1000}, "differ in cells per training bag (260 and 1000)"),
    ],
)
def test_runs_of_one_rate_whose_bags_were_not_made_alike_are_refused(write_reports, make_record, changed, said):
    runs = [make_record(seed=0, data=BAGS_ALIKE), make_record(seed=1, data=BAGS_ALIKE | changed)]
    with pytest.raises(EvaluationError, match=re.escape(said)) as caught:
        read_runs([write_reports(runs)])
    assert str(caught.value).count("evaluate.json") == 2
    assert "\n" not in str(caught.value)
    other_rate = make_record(rate=0.01, seed=1, data=BAGS_ALIKE | changed)
    assert len(read_runs([write_reports([runs[0], other_rate], "fine")]).done) == 2


def test_test_bags_not_made_alike_are_refused(write_reports, make_record):
    first, fewer, longer = (make_record(seed=seed) for seed in (0, 1, 1))
    fewer["bags"] = fewer["bags"][:4]
    longer["bags"] = [bag | {"n_instances": 1000} for bag in longer["bags"]]
    for other, said in ((fewer, r"test bags \(6 and 4\)"), (longer, r"cells per test bag \(260 and 1000\)")):
        with pytest.raises(EvaluationError, match=said):
            read_runs([write_reports([first, other], said)])


def test_a_cell_that_could_not_be_read_or_a_whole_slide_s_size_is_no_other_protocol(write_reports, make_record):
    spoilt = make_record(seed=1, data=BAGS_ALIKE | {"n_cells": 4679})
    assert len(read_runs([write_reports([make_record(data=BAGS_ALIKE), spoilt])]).done) == 2
    slides = [
        make_record(seed=seed, witness_rate=None, data=BAGS_ALIKE | {"n_cells": 5000 + seed}) for seed in (0, 900)
    ]
    slides[1]["bags"] = slides[1]["bags"][:5]
    assert len(read_runs([write_reports(slides, "slides")]).done) == 2
    slides[1]["data"]["sources"] = ["elsewhere"]
    with pytest.raises(EvaluationError, match="elsewhere"):
        read_runs([write_reports(slides, "mixed")])


def test_a_row_of_different_pretraining_settings_says_so(write_reports, make_record):
    def run(seed, judge="pamil", start=None, **settings):
        record = make_record("slam-ags", seed=seed, judge=judge)
        record["encoder"] |= {"settings": {"seed": seed, "epochs": 10} | settings, "start_weights": start}
        return record

    trivial = [run(0, out="a", device="cpu", weights="a.pth"), run(1, out="b", device="cuda", weights="b/a.pth")]
    assert table_of(write_reports(trivial, "alike")).notes == ()
    imagenet = {"file": "imagenet.pth", "sha256": "0123456789abcdef", "tensors": 3}
    mixed = [run(0, judge, epochs=3) for judge in ("pamil", "mean")]
    mixed += [run(1, judge, temperature=0.1, start=imagenet) for judge in ("pamil", "mean")]
    said = "SLAM-AGS: its runs were pretrained with different settings: epochs 10, 3; start weights 0123456789ab, none."
    table = table_of(write_reports(mixed, "mixed"))
    assert table.notes == (said,)
    assert all(said in block.notes for block in make_blocks(table))


def test_two_reports_of_one_run_are_refused(write_reports, make_record):
    with pytest.raises(EvaluationError, match="--name"):
        read_runs([write_reports([make_record(), make_record()])])


@pytest.mark.parametrize("text", ["{", '{"made": "long ago"}', '{"schema": "cytomil.evaluation/0"}', "[1]"])
def test_a_report_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "evaluate.json").write_text(text)
    with pytest.raises(EvaluationError, match=r"evaluate\.json"):
        read_runs([tmp_path])


def test_a_report_that_lacks_something_is_named_with_what(write_reports, make_record):
    record = make_record()
    del record["bags"]
    with pytest.raises(EvaluationError, match="lacks bags"):
        read_runs([write_reports([record])])


def test_other_json_is_passed_over_and_nothing_at_all_is_said(tmp_path, write_reports, make_record):
    folder = write_reports([make_record()])
    (folder / "metrics.json").write_text('{"bag": {}}')
    assert [run.cell for run in read_runs([folder]).done] == [Cell("simclr", 0.1, 0)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="evaluate"):
        read_runs([tmp_path / "empty"])
    with pytest.raises(NotFoundError, match="not a folder"):
        read_runs([tmp_path / "nowhere"])


def test_the_paper_is_quoted_where_it_has_a_figure():
    assert published("f1", "slam-ags", 0.005) == pytest.approx((0.664, 0.063))
    assert published("recall_at_40pct", "simclr", 3 / 260) == pytest.approx((0.407, 0.224))
    assert published("f1", "supcon", 0.1) is None
    assert published("instance_auroc", "simclr", 0.1) is None
    assert published("f1", "simclr", 0.2) is None
    assert not is_near(0.01, 0.005)
    assert not is_near(0.1, -1)


def test_csv_gives_every_figure_of_every_place(small_grid):
    table = table_of(small_grid)
    rows = list(csv.DictReader(io.StringIO(csv_of(table))))
    assert len(rows) == 2 * 3 * 2 * len(METRICS)
    row = next(r for r in rows if (r["judge"], r["method"], r["witness_rate"]) == ("best other", "slam-ags", "0.1"))
    assert (row["n_runs"], row["n_collapsed"], row["aggregators"]) == ("2", "1", "mahalanobis 2")
    assert float(row["mean"]) == pytest.approx(table.at("best other", "slam-ags", 0.1).estimates["f1"].mean, abs=1e-6)
    assert float(row["paper_mean"]) == 0.971


def test_latex_is_balanced_and_leaves_no_special_character_bare(small_grid):
    text = latex(make_blocks(table_of(small_grid)))
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") > 4
    body = [line for line in text.splitlines() if line.endswith(r"\\{}")]
    assert {line.count(" & ") for line in body} == {2}
    assert not re.search(r"(?<!\\)[%_#]", text.partition("\n")[2])
    assert not set("±†‡§–×") & set(text)


def test_the_same_runs_give_the_same_bytes_and_pictures_that_open(small_grid, tmp_path):
    places = [tmp_path / name for name in ("a", "b")]
    for place in places:
        write_tables(EvaluateConfig(table=(str(small_grid),), out=place, resamples=200))
    files = sorted(file.relative_to(places[0]) for file in places[0].rglob("*") if file.is_file())
    assert {file.suffix for file in files} == {".md", ".tex", ".csv", ".png", ".svg"}
    for file in files:
        content = (places[0] / file).read_bytes()
        assert content == (places[1] / file).read_bytes()
        assert time.strftime("%Y-%m-%d").encode() not in content
        if file.suffix == ".png":
            with Image.open(places[0] / file) as picture:
                assert picture.width == 1800


@pytest.mark.parametrize("plot", [plot_by_rate, plot_by_fraction])
def test_collapsed_runs_are_marked_in_every_figure(write_reports, make_record, plot):
    def hollow(records, folder):
        figure = plot(table_of(write_reports(records, folder)), "pamil")
        assert "hollow: an encoder collapsed" in figure.get_suptitle()
        return [
            [line.get_markeredgecolor() for line in axes.lines if line.get_markerfacecolor() == "white"]
            for axes in figure.axes
        ]

    places = [(name, rate, seed) for name in ("simclr", "slam-ags") for rate in (0.1, 0.01) for seed in (0, 1)]
    sound = [make_record(*place) for place in places]
    fallen = [make_record(*place, collapsed=place == ("slam-ags", 0.01, 1)) for place in places]
    assert not any(hollow(sound, "sound"))
    found = hollow(fallen, "fallen")
    colours = {colour for panel in found for colour in panel}
    assert len(colours) == 1
    # Of the first, each panel is a figure; of the second, a witness rate.
    assert list(map(len, found)) == ([1, 1, 1] if plot is plot_by_rate else [0, 1])


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        ([], "2 seeds, judged"),
        ([("simclr", 0.1, 1)], "1 to 2 of 2 seeds, judged"),
        ([("simclr", 0.1, 0), ("simclr", 0.1, 1)], "0 to 2 of 2 seeds, judged"),
    ],
)
def test_a_figure_says_how_many_seeds_it_is_of(write_reports, make_record, left_out, said):
    places = [(name, rate, seed) for name in ("simclr", "slam-ags") for rate in (0.1, 0.01) for seed in (0, 1)]
    records = [make_record(*place) for place in places if place not in left_out]
    assert plot_by_fraction(table_of(write_reports(records)), "pamil").get_suptitle().startswith(said)


def test_the_command_prints_tables_of_eighty_columns_and_lists_what_failed(small_grid, tmp_path):
    line = ["evaluate", "--table", str(small_grid), "--out", str(tmp_path), "--resamples", "100", "--json"]
    done = CliRunner().invoke(app, line, env={"COLUMNS": "80"})
    assert done.exit_code == 3
    assert json.loads(done.stdout)["left_out"] == [{"which": "slam-ags, 1.00%, seed 1", "why": "DivergedError: NaN"}]
    assert "Recall@40 %" in done.stderr
    paths = re.compile(str(tmp_path)[:20])
    assert max(len(row) for row in done.stderr.splitlines() if not paths.search(row)) <= 80


def test_several_folders_stand_behind_one_option_or_several_and_no_record_counts_twice(
    write_reports, make_record, tmp_path
):
    root = write_reports([make_record("simclr", 0.1, seed) for seed in (0, 1)])
    inner = next(file.parent for file in sorted(root.rglob("*.json")))
    for folders in (
        ["--table", root, inner],
        ["--table", root, "--table", inner],
        ["--table", f"{inner},{root}"],
        [inner, "--table", root, root],
    ):
        line = ["evaluate", *map(str, folders), "--out", str(tmp_path / "out"), "--resamples", "100", "--json"]
        done = CliRunner().invoke(app, line)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["runs"] == 2


def test_the_command_refuses_in_one_line(tmp_path):
    done = CliRunner().invoke(app, ["evaluate", "--table", str(tmp_path / "none")], env={"COLUMNS": "200"})
    assert done.exit_code == 1
    assert len(done.stderr.strip().splitlines()) == 1
