from .bag_file import Bag as Bag
from .bag_file import BagInfo as BagInfo
from .bag_file import Instance as Instance
from .bag_file import open_bag as open_bag
from .bag_file import write_bag as write_bag
from .manifest import (
    BagRow as BagRow,
)
from .manifest import (
    Manifest as Manifest,
)
from .manifest import (
    read_manifest as read_manifest,
)
from .manifest import (
    write_manifest as write_manifest,
)
