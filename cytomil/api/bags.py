"""Bags from Python: a folder of them, opened, with the images of their cells."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from cytomil.bags.images import open_image
from cytomil.bags.made import RECORD_NAME
from cytomil.bags.manifest import BagRow, Manifest, open_listed, read_manifest

_BLOCK = 256


@dataclass(frozen=True)
class LabelledBag:
    """One bag of a folder: what bags.csv says of it, and its images.

    Attributes:
        name: the bag's id.
        label: 1 for a positive (diseased) bag, 0 for a negative one.
        split: "train" or "test".
        patient: the patient's id; empty where unknown.
        path: the bag file.
        instance_ids: one id per cell, in the order of the images.
    """

    name: str
    label: int
    split: str
    patient: str
    path: Path
    instance_ids: Sequence[str]
    _manifest: Manifest
    _row: BagRow

    def __len__(self) -> int:
        return len(self.instance_ids)

    def __fspath__(self) -> str:
        return str(self.path)

    def __iter__(self) -> Iterator[np.ndarray]:
        """The images, one by one, uint8 (H, W, 3); they are read in blocks, so a large bag needs little memory."""
        bag = open_listed(self._manifest, self._row)
        for start in range(0, len(bag), _BLOCK):
            encoded = bag.images(start, start + _BLOCK)
            for name, image in zip(bag.instance_ids[start : start + _BLOCK], encoded, strict=True):
                yield np.asarray(open_image(image, name))

    @property
    def images(self) -> list[np.ndarray]:
        """All images, uint8 (H, W, 3) each, read at each access.

        Raises:
            BagFileError: the file is damaged, or was changed since the folder was opened.
            ImageUnreadableError: an image cannot be decoded.
        """
        return list(self)

    def __repr__(self) -> str:
        return f"LabelledBag({self.name!r}, label={self.label}, split={self.split!r}, cells={len(self)})"


class Bags(Sequence[LabelledBag]):
    """A folder of bags, in the order of bags.csv. It can be passed where a path is expected."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._manifest = read_manifest(self.folder)

    def __len__(self) -> int:
        return len(self._manifest.rows)

    @overload
    def __getitem__(self, place: int) -> LabelledBag: ...
    @overload
    def __getitem__(self, place: slice) -> list[LabelledBag]: ...
    def __getitem__(self, place: int | slice) -> LabelledBag | list[LabelledBag]:
        rows = self._manifest.rows[place]
        return self._opened(rows) if isinstance(rows, BagRow) else [self._opened(row) for row in rows]

    def _opened(self, row: BagRow) -> LabelledBag:
        bag = open_listed(self._manifest, row)
        return LabelledBag(
            row.bag_id, row.label, row.split, row.patient_id, bag.path, bag.instance_ids, self._manifest, row
        )

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def names(self) -> tuple[str, ...]:
        """The bags' ids."""
        return tuple(row.bag_id for row in self._manifest.rows)

    @property
    def labels(self) -> tuple[int, ...]:
        """The bags' labels: 1 positive, 0 negative."""
        return tuple(row.label for row in self._manifest.rows)

    @property
    def left_out(self) -> tuple[tuple[str, str], ...]:
        """The images and slides that could not be used when the bags were made, each with the reason."""
        record = self.folder / RECORD_NAME
        if not record.is_file():
            return ()
        return tuple((where, why) for where, why in json.loads(record.read_text(encoding="utf-8"))["left_out"])

    def __repr__(self) -> str:
        return f"Bags({str(self.folder)!r}: {len(self)} bags, {sum(self.labels)} positive)"


def open_bags(folder: str | Path) -> Bags:
    """Open a folder of bags.

    Args:
        folder: a folder with bags.csv, as `cytomil.make_bags` or `cytomil make-bags` wrote it.

    Returns:
        A sequence of bags. Each one has a name, a label and its images.

    Raises:
        NotFoundError: there is no bags.csv.
        BagFileError: bags.csv is damaged; or, once a bag is read, that bag is.

    >>> import cytomil
    >>> bags = cytomil.open_bags("data/bags")
    >>> [(bag.label, len(bag)) for bag in bags[:2]]
    [(0, 10), (1, 10)]
    >>> bags[0].images[0].shape, bags[0].images[0].dtype
    ((24, 24, 3), dtype('uint8'))
    """
    return Bags(folder)
