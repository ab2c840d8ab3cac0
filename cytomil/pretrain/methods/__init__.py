"""The pretraining methods by name. To add one: a file here, an entry below, a name in `cytomil.settings.Method`."""

from cytomil.pretrain.methods.base import Batch, MethodMaker
from cytomil.pretrain.methods.base import Method as Method
from cytomil.pretrain.methods.multi_task import slam_ags, weaksupcon
from cytomil.pretrain.methods.simclr import simclr
from cytomil.pretrain.methods.weakly_supervised import weakly_supervised
from cytomil.settings import Method as Name

METHODS: dict[Name, MethodMaker] = {
    Name.SLAM_AGS: slam_ags,
    Name.WEAKSUPCON: weaksupcon,
    Name.SIMCLR: simclr,
    Name.WEAKLY_SUPERVISED: weakly_supervised,
}

__all__ = ["METHODS", "Batch", "Method", "MethodMaker"]
