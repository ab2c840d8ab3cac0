"""What a bag is, its file, the manifest; where bags come from."""

from cytomil.bags.bag_file import Bag, BagInfo, Instance, open_bag, write_bag
from cytomil.bags.manifest import BagRow, Manifest, read_manifest, write_manifest

__all__ = [
    "Bag",
    "BagInfo",
    "BagRow",
    "Instance",
    "Manifest",
    "open_bag",
    "read_manifest",
    "write_bag",
    "write_manifest",
]
