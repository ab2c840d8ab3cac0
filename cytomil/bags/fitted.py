"""Which bags an encoder or a model was fitted to, as its card records them: hashes, and no names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from cytomil.cards import Card, Text


class FittedBag(Card):
    """A training bag: the ``sha256`` of its content, and the `patient_key` of its patient, "" if unknown."""

    sha256: Text
    patient: Text = ""


def patient_key(patient_id: str) -> str:
    """A hash that stands for a patient, 32 hexadecimal digits; "" if the patient is unknown.

    It is no secret: who can guess the id can compute the hash too.
    """
    return hashlib.sha256(f"cytomil patient {patient_id}".encode()).hexdigest()[:32] if patient_id else ""


class Fitted:
    """Finds bags again among those that something was fitted to."""

    def __init__(self, bags: Iterable[FittedBag]) -> None:
        bags = tuple(bags)
        self._bags = {bag.sha256 for bag in bags}
        self._patients = {bag.patient for bag in bags if bag.patient}

    def seen(self, sha256: str, patient_id: str) -> str:
        """What of a bag had a part in fitting: "it", "its patient", or "" for neither."""
        if sha256 in self._bags:
            return "it"
        return "its patient" if patient_key(patient_id) in self._patients else ""
