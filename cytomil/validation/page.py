"""The page to sign: one A4 sheet, one HTML file that needs no network and no script."""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cytomil.mil.triage_model import said_auroc
from cytomil.progress import Problem
from cytomil.validation.figures import Figure, calls_by_label
from cytomil.validation.validate import Validation

NOTICE = "Decision support, not a diagnosis."
_MOST_REASONS = 4  # more would not fit on one page
_MOST_LETTERS = 70
_LETTERS_OF_A_NAME = 30


def render_page(validation: Validation, pictures: Mapping[str, bytes]) -> str:
    """The validation as one HTML document.

    Args:
        validation: what was measured.
        pictures: PNG files of "roc" and "calibration".
    """
    style, _, _ = _loader().get_source(_environment(), "validation.css")
    style = "\n".join(style.splitlines())  # with the line ends that a browser hashes
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    lines = _by_reason(validation.left_out)
    page = (
        _environment()
        .get_template("validation.html.j2")
        .render(
            validation=validation,
            card=validation.card,
            worklist=validation.worklist,
            held_out=said_auroc(validation.card.held_out),
            calls=calls_by_label(validation.slides),
            shown=[line for line, _ in lines[:_MOST_REASONS]],
            more=sum(n for _, n in lines[_MOST_REASONS:]),
            pictures={name: base64.b64encode(picture).decode() for name, picture in pictures.items()},
            policy=f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
            style=Markup(style),
            notice=NOTICE,
            version=validation.worklist.versions["cytomil"].partition("+")[0],
        )
    )
    # A file name that is not UTF-8 arrives as lone surrogates, which no file can hold.
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def shown_value(figure: Figure) -> str:
    """A figure with its interval, such as ``0.92 [0.65, 0.99]``."""
    if figure.value is None:
        return "–"
    return f"{figure.value:.2f}" + (f" [{figure.interval[0]:.2f}, {figure.interval[1]:.2f}]" if figure.interval else "")


def shown_slides(figure: Figure) -> str:
    """The slides that a figure counts, such as ``11 of 12``; "" if it counts none."""
    return f"{figure.hits} of {figure.n}" if figure.n else ""


def _by_reason(left_out: Sequence[Problem]) -> list[tuple[str, int]]:
    """A line for each reason, with the first of its slides, and how many slides it speaks of; frequent reasons first."""
    names: dict[str, list[str]] = defaultdict(list)
    for one in left_out:
        names[one.reason].append(one.where)
    lines = sorted(names.items(), key=lambda item: -len(item[1]))
    return [
        (
            f"{_shortened(first, _LETTERS_OF_A_NAME)}{f' and {len(more)} more' if more else ''}: {_shortened(reason)}",
            1 + len(more),
        )
        for reason, (first, *more) in lines
    ]


def _shortened(text: str, letters: int = _MOST_LETTERS) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


@cache
def _loader() -> PackageLoader:
    return PackageLoader("cytomil.validation", "templates")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=_loader(), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"shown": shown_value, "slides": shown_slides, "short": _shortened}
    return environment
