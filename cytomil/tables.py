"""CSV: tables of users, whose columns may have several names, and tables that cytomil writes.

A table is read only if it has one possible meaning. Any other table is refused in one line that gives the reason. If
the patients' column were ignored silently, one person could be on both sides of a split.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from cytomil.errors import TableError, require_file
from cytomil.text import as_text_cell

REMARK = "#"
"""A column whose name begins with this is a remark, and is not read."""

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_UTF16 = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
_SAVE_AS = "Save it as 'CSV UTF-8'."


@dataclass(frozen=True)
class Column:
    """A column that a table may have.

    ``aliases`` are other names for the very same thing. ``hints`` are names that may mean it: they are not read, and the
    message proposes ``name``.
    """

    name: str
    aliases: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    required: bool = False


@dataclass(frozen=True)
class Row:
    """One line of a table, with every requested column by name. A column is blank if the line lacks it."""

    where: str
    """File and line, to begin a message with."""
    number: int
    """The line in the file, the first being 1."""
    values: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.values[column]


def write_csv(
    file: TextIO, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], names: Collection[str] = ()
) -> None:
    """Write a header and one line per row, with commas and line feeds.

    Args:
        file: open for text with ``newline=""``.
        columns: the header. Other keys of a row are not written.
        rows: consumed one at a time.
        names: the columns whose text comes from outside, such as file names; written by `as_text_cell`.

    Raises:
        KeyError: a row lacks a column.
    """
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([as_text_cell(row[column]) if column in names else row[column] for column in columns])


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], names: Collection[str] = ()) -> str:
    """What `write_csv` would write."""
    buffer = io.StringIO(newline="")
    write_csv(buffer, columns, rows, names)
    return buffer.getvalue()


def read_table(path: Path, columns: Sequence[Column], made_by: str) -> list[Row]:
    """Read a CSV file's lines. Values lose surrounding blanks and are in Unicode's composed form (NFC).

    Case and surrounding blanks of column names do not matter. Commas, semicolons or tabs separate them; the text is
    UTF-8, or UTF-16 with its byte order mark. Lines without any value are skipped, because spreadsheets leave such
    lines.

    Raises:
        NotFoundError: the file does not exist. ``made_by`` is the command that makes it.
        TableError: the file is not such a table, lacks a required column, or has an unknown column or two of one
            meaning; or a line has too many values.
    """
    require_file(path, made_by)
    text, skipped = _without_excels_line(_decode(path))
    separator = _separator(path, text, columns)
    lines = _parse(path, text, separator, skipped)
    header = next((fields for _, fields in lines if any(map(composed, fields))), [])
    names = _known_columns(path, header, columns)
    rows = []
    for number, line in lines:
        fields = [composed(field) for field in line]
        if not any(fields):
            continue
        where = f"{path}, line {number}"
        _refuse_nameless(where, fields, header)
        given = {name: field for name, field in zip(names, fields, strict=False) if name}
        rows.append(Row(where, number, {column.name: given.get(column.name, "") for column in columns}))
    return rows


def composed(name: str) -> str:
    """``name`` without surrounding blanks, in composed Unicode: macOS writes é as two characters, others as one."""
    return unicodedata.normalize("NFC", name).strip()


def as_number(text: str) -> str:
    """A whole number as spreadsheets and pandas may write it, such as 1.0 or 1,0, without its fraction."""
    return re.sub(r"^([0-9]+)[.,]0*$", r"\1", text)


def require_one_spelling(names: Iterable[tuple[str, str]], what: str) -> None:
    """Raise `TableError` where two names differ only by case, blanks, leading zeros or a ``.0``.

    ``names`` are pairs of a name and where it stands. A person under two spellings would count as two.
    """
    seen: dict[str, tuple[str, str]] = {}
    for name, where in names:
        if not name:
            continue
        key = as_number(re.sub(r"\s+", "", name).casefold())
        key = key.lstrip("0") or "0" if key.isdecimal() else key
        other, there = seen.setdefault(key, (name, where))
        if other != name:
            raise TableError(
                f"{where}: {what} '{name}' is written '{other}' in {there}. Write the same {what} in one way; if they are "
                "two, give them names that differ by more."
            )


def _decode(path: Path) -> str:
    content = path.read_bytes()
    if content.startswith(_WORKBOOKS):
        raise TableError(f"{path} is a spreadsheet program's own file, not CSV. {_SAVE_AS}")
    encoding = _UTF16.get(content[:2], "utf-8-sig")
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            raise TableError(f"{path} begins like UTF-16 and is damaged. {_SAVE_AS}") from None
        line = content[: error.start].count(b"\n") + 1
        raise TableError(
            f"{path}, line {line}: not UTF-8; an older encoding such as Windows-1252 can only be guessed. {_SAVE_AS}"
        ) from None
    if "\0" in text:
        raise TableError(f"{path} is not a CSV file in UTF-8: it may be UTF-16 without its byte order mark. {_SAVE_AS}")
    return text


def _without_excels_line(text: str) -> tuple[str, int]:
    """The text without Excel's first line ``sep=;``, and how many lines were removed."""
    found = re.match(r'"?sep=[,;\t]"?[,;\t]*\r?\n', text, re.IGNORECASE)
    return (text[found.end() :], 1) if found else (text, 0)


def _separator(path: Path, text: str, columns: Sequence[Column]) -> str:
    """The separator of the columns: the one by which the first line contains the required names."""
    first = next((line for line in text.splitlines() if re.search(r"\w", line)), "")
    required = {column.name for column in columns if column.required}
    fitting = [s for s in _SEPARATORS if required <= {_meaning(name, columns) for name in _split(first, s)}]
    if fitting:
        return fitting[0]
    used = [name for separator, name in _SEPARATORS.items() if separator in first]
    if len(used) > 1:
        raise TableError(f"{path}: its first line holds {' and '.join(used)}. Separate all columns by commas.")
    return next((separator for separator in _SEPARATORS if separator in first), ",")


def _split(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter=separator), [])


def _parse(path: Path, text: str, separator: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for fields in reader:
            yield reader.line_num + skipped, fields
    except csv.Error as error:
        raise TableError(f"{path}, line {reader.line_num + skipped}: not CSV ({error}). {_SAVE_AS}") from None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", composed(name).casefold()).strip("_")


def _meaning(name: str, columns: Sequence[Column]) -> str:
    """The column that ``name`` stands for; "" if there is none."""
    plain = _plain(name)
    return next((column.name for column in columns if plain in (column.name, *column.aliases)), "")


def _known_columns(path: Path, header: Sequence[str], columns: Sequence[Column]) -> list[str]:
    """The meaning of each column of the file; blank for remarks and for columns without a name."""
    found: dict[str, str] = {}
    names = []
    unknown = []
    for written in header:
        name = _meaning(written, columns)
        if name in found:
            raise TableError(
                f"{path}: the columns '{found[name]}' and '{written}' both mean {name}. Keep one; a column whose name "
                f"begins with {REMARK} is not read."
            )
        if name:
            found[name] = written
        elif composed(written) and not composed(written).startswith(REMARK):
            unknown.append(written)
        names.append(name)
    missing = [column.name for column in columns if column.required and column.name not in found]
    known = _listing([column.name for column in columns])
    if unknown:
        guess = _proposal(unknown[0], columns, found)
        cure = f"Did you mean {guess}?" if guess else f"There are {known}."
        lacking = f" The file needs {_listing(missing)}." if missing else ""
        raise TableError(
            f"{path}: unknown column '{unknown[0]}'. {cure}{lacking} To keep a column that cytomil must ignore, begin its "
            f"name with {REMARK}, as in '{REMARK}{composed(unknown[0])}', or remove it."
        )
    if missing:
        optional = _listing([column.name for column in columns if not column.required])
        more = f", and may have {optional}" if optional else ""
        required = _listing([column.name for column in columns if column.required])
        raise TableError(f"{path} needs the columns {required}{more}; it lacks {_listing(missing)}.")
    return names


def _proposal(written: str, columns: Sequence[Column], found: Mapping[str, str]) -> str:
    """The column that an unknown name most likely means, of those the file does not have yet."""
    words = {word: c.name for c in columns if c.name not in found for word in (c.name, *c.aliases, *c.hints)}
    plain = _plain(written)
    close = difflib.get_close_matches(plain, words, n=1, cutoff=0.7)
    parts = [word for word in words if word in plain.split("_") or (len(word) > 3 and plain.startswith(word))]
    return next((words[word] for word in (*close, *parts)), "")


def _refuse_nameless(where: str, fields: Sequence[str], header: Sequence[str]) -> None:
    if any(fields[len(header) :]):
        raise TableError(
            f"{where}: {len(fields)} values for {len(header)} columns. Put a value that holds the separator in double quotes."
        )
    for number, (field, name) in enumerate(zip(fields, header, strict=False), start=1):
        if field and not composed(name):
            raise TableError(f"{where}: '{field}' stands in column {number}, which has no name. Name it or remove it.")


def _listing(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
