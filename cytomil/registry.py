"""Which pretraining methods there are, by name; nothing of them is loaded before one is used.

A method of cytomil is one line below and one file in ``cytomil.pretrain.methods``. Another package brings its own by an
entry point of the group ``cytomil.methods``; docs/methods.md shows how.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint

from cytomil.plugins import find_foreign

GROUP = "cytomil.methods"

_BUILT_IN = {
    "slam-ags": "multi_task:SlamAgs",
    "weaksupcon": "multi_task:WeakSupCon",
    "simclr": "simclr:SimCLR",
    "supcon": "supcon:SupCon",
    "moco-v3": "moco:MoCoV3",
    "its2clr": "its2clr:ItS2CLR",
    "weakly-supervised": "classification:WeaklySupervised",
    "dsvdd": "dsvdd:DeepSVDD",
    "droc": "droc:DROC",
    "fully-supervised": "classification:FullySupervised",
    "none": "none:NoPretraining",
}
METHODS = {name: EntryPoint(name, f"cytomil.pretrain.methods.{place}", GROUP) for name, place in _BUILT_IN.items()}


def find_method(name: str) -> EntryPoint:
    """The method of this name, not loaded yet; cytomil's own cannot be taken. Raises `ValueError` naming those there are."""
    if name in METHODS:
        return METHODS[name]
    # Looked for only now: reading every installed package's entry points takes a moment.
    return find_foreign("method", GROUP, name, METHODS)


def known_method(name: str) -> str:
    """``name``, if a method has it. Raises `ValueError` naming those there are."""
    find_method(name)
    return name
