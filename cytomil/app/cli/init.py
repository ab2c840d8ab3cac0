"""cytomil init."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from cytomil.app.cli.console import console, plain_errors
from cytomil.errors import CytomilError, NotFoundError

FILES = ("params.yaml", "dvc.yaml")
_IN_A_WHEEL = Path(__file__).parents[1] / "pipeline"
_IN_A_CHECKOUT = Path(__file__).parents[3]


def init(
    folder: Annotated[Path, typer.Argument(help="folder of the new project; it is made if needed")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="replace a params.yaml or dvc.yaml that is there")] = False,
) -> None:
    """Start a project: write params.yaml, with every setting, and dvc.yaml, the pipeline for DVC."""
    with plain_errors():
        write_project(folder, force)
        where = "" if folder.resolve() == Path.cwd() else f"cd {folder} && "
        console.print(
            f"{', '.join(str(folder / name) for name in FILES)} written. Next: edit params.yaml, then "
            f"`{where}git init && dvc init && dvc repro` (pip install 'cytomil[dvc]'), or one command after the other, "
            "`cytomil make-bags` first.",
            soft_wrap=True,
        )


def write_project(folder: Path, force: bool = False) -> None:
    """Write the two files into ``folder``, both or none.

    Raises:
        CytomilError: one of them is there, and not ``force``; or ``folder`` is a file.
    """
    from cytomil.files import write_text

    if folder.exists() and not folder.is_dir():
        raise CytomilError(f"{folder} is a file. Name a folder.")
    there = [str(folder / name) for name in FILES if (folder / name).exists()]
    if there and not force:
        raise CytomilError(f"{' and '.join(there)} would be replaced. Use --force, or name another folder.")
    texts = {name: _shipped(name) for name in FILES}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)


def _shipped(name: str) -> str:
    """The text of the repository's own file, which the build copies into the wheel (pyproject.toml, force-include)."""
    for place in (_IN_A_WHEEL, _IN_A_CHECKOUT):
        if (place / name).is_file():
            return _without_source((place / name).read_text(encoding="utf-8"))
    raise NotFoundError(f"{name} is missing from this installation. Install cytomil again.")


def _without_source(text: str) -> str:
    """The text without cytomil's source folders among the dependencies: a user's project does not contain them."""
    return re.sub(r", cytomil/[^],\s]+", "", text)
