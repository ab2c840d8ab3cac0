"""cytomil validate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cytomil.app.cli.console import RichListener, console, finish, plain_errors, print_table, print_warning
from cytomil.app.cli.options import AcceptLeftOut, AsJson, ParamsFile, Profile
from cytomil.app.settings import load
from cytomil.locks import output_folder

if TYPE_CHECKING:
    from cytomil.validation.validate import Validation


def validate(
    model: Annotated[Path, typer.Argument(help="folder of the triage model")],
    slides: Annotated[Path, typer.Argument(help="folder of slides, as for `cytomil rank`")],
    labels: Annotated[
        Path, typer.Option(help="CSV with the columns slide, label and, if known, patient and mpp", show_default=False)
    ],
    positive: Annotated[
        str, typer.Option(help="words in the label column that mean diseased, comma-separated", show_default="1")
    ] = "",
    negative: Annotated[
        str, typer.Option(help="words in the label column that mean healthy, comma-separated", show_default="0")
    ] = "",
    out: Annotated[Path, typer.Option(help="folder for validation.json, validation.html and the ranked slides")] = Path(
        "validation"
    ),
    mpp: Annotated[
        float | None, typer.Option(help="as in `cytomil rank`", show_default="rank.mpp in the settings file")
    ] = None,
    crop_um: Annotated[
        float | None, typer.Option(help="as in `cytomil rank`", show_default="rank.crop_um in the settings file")
    ] = None,
    params: ParamsFile = None,
    profile: Profile = None,
    accept_left_out: AcceptLeftOut = False,
    as_json: AsJson = False,
) -> None:
    """Try a triage model on labelled slides of your own before you use it, and write one page to sign.

    Slides are read with the settings of the section rank. The model is not changed.
    """
    with plain_errors(kept="The slides that were read are kept. Run the same command again to continue."):
        chosen = {"model": model, "out": out, "mpp": mpp, "crop_um": crop_um}
        settings = load({"rank": chosen}, params, profile).rank
        from cytomil.bags.patients import label_words
        from cytomil.validation.validate import validate as run
        from cytomil.validation.write import to_document, write_validation

        listener = RichListener()
        with output_folder(out, listener.note, replaced=False):
            found = run(slides, labels, label_words(_words(positive), _words(negative)), settings, listener)
            page = write_validation(found, out)
        _show(found)
        console.print(f"to print and sign: {page}", soft_wrap=True)
        console.print("Decision support, not a diagnosis.", style="bold")
    finish(to_document(found), (*found.left_out, *found.unreadable_cells), as_json, accept_left_out)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _show(found: Validation) -> None:
    from cytomil.validation.figures import calls_by_label
    from cytomil.validation.write import shown_slides, shown_value

    for warning in found.warnings:
        print_warning(warning.title, warning.text)
    n = len(found.slides)
    title = f"{n} slides, {found.n_diseased} diseased"
    rows = [(one.name, shown_value(one), shown_slides(one), one.reason or one.meaning) for one in found.figures]
    print_table(title, ("figure", "value", "slides", "meaning"), rows)
    thresholds = found.card.thresholds
    console.print(
        f"In brackets: 95 % intervals, by patient. Review first from {thresholds.decision:.3f}, low priority below "
        f"{thresholds.low:.3f}.",
        style="dim",
    )
    counts = calls_by_label(found.slides)
    columns = ("slides", *(call.value for call in counts[1]))
    called = [(name, *map(str, counts[label].values())) for label, name in ((1, "diseased"), (0, "healthy"))]
    print_table("what the worklist says", columns, called, right=columns[1:])
    console.print(f"{found.n_unlike} of {n} slides are unlike the training slides.")
    if found.uncompared:
        console.print(
            f"Of {found.uncompared} slides, cytomil cannot tell whether the model was trained on them. Make sure that it "
            "was not."
        )
    if local := found.proposed:
        proposed = [
            (name, f"{threshold:.3f}", f"{local.sensitivities[i]:.2f}", f"{local.specificities[i]:.2f}")
            for i, (name, threshold) in enumerate(
                (("review first from", local.decision), ("low priority below", local.low))
            )
        ]
        columns = ("threshold", "value", "sensitivity", "specificity")
        print_table("thresholds that would suit these slides", columns, proposed, right=columns[1:])
        console.print(
            "Chosen on these very slides, so these figures are too good. The model was not changed.", style="dim"
        )
