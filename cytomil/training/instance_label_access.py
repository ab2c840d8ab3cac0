"""The only place where training reads instance labels: for a method that is an upper bound, at the user's request."""

from __future__ import annotations

import torch
from torch import Tensor

from cytomil.bags.bag_file import ALL, Draw
from cytomil.bags.manifest import BagRow, Manifest
from cytomil.errors import BagFileError
from cytomil.training.cells import TrainingCells


def read_training_instance_labels(
    manifest: Manifest, rows: tuple[BagRow, ...], cells: TrainingCells, draw: Draw = ALL
) -> Tensor:
    """The label of each of ``cells``, which ``draw`` chose: int64 (N,) on the CPU, 1 abnormal, 0 normal.

    Cells of negative bags count as normal, regardless of their instance labels.

    Raises:
        BagFileError: a positive bag has no instance labels, or no cell is abnormal.
    """
    # Imported here, so that no other training loads the reader of instance labels.
    from cytomil.bags.instance_labels import read_instance_labels

    unreadable = {problem.where for problem in cells.problems}
    labels: list[int] = []
    for row in rows:
        labelled = list(read_instance_labels(manifest.file_of(row)).items())
        drawn = [labelled[i] for i in draw.indices(row.bag_id, len(labelled))]
        of_bag = [label for name, label in drawn if f"{row.bag_id}/{name}" not in unreadable]
        if row.label == 1 and any(label not in (0, 1) for label in of_bag):
            raise BagFileError(
                f"{manifest.file_of(row)} has no instance labels. Only class folders and synthetic cells have them. "
                "Choose a method that learns from slide labels."
            )
        labels += of_bag if row.label == 1 else [0] * len(of_bag)
    if 1 not in labels:
        raise BagFileError(f"{manifest.folder}: no training cell is abnormal by its instance label.")
    return torch.tensor(labels)
