"""The instance labels of a bag file, for evaluation only. A test checks that no training code imports this module."""

from __future__ import annotations

from pathlib import Path

from cytomil.bags.bag_file import column, open_bag, reading


def read_instance_labels(path: Path) -> dict[str, int]:
    """Instance id → 1 abnormal, 0 normal, -1 unknown. Raises `BagFileError` as `open_bag` does."""
    bag = open_bag(path)
    with reading(path) as file:
        labels = column(file, "instance_label").read().astype(int)
    return dict(zip(bag.instance_ids, labels.tolist(), strict=True))


def read_instance_sources(path: Path) -> dict[str, str]:
    """Instance id → source of its image. The name of a class folder reveals the label."""
    bag = open_bag(path)
    with reading(path) as file:
        return dict(zip(bag.instance_ids, column(file, "instance_source").read(), strict=True))
