"""Labelled slides: which side of the split each stands on, and which cells several of them have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from cytomil.bags.labels import LabelledSlide
from cytomil.errors import BagFileError


def split_by_patient(slides: list[LabelledSlide], test_share: float, seed: int) -> list[LabelledSlide]:
    """Give every slide a split, about ``test_share`` of them test, both labels in both, no patient in two splits.

    Slides that carry a split keep it; slides without a patient each count as a patient of their own. Raises
    `BagFileError` where one label has too few patients to stand on both sides.
    """
    if all(slide.split for slide in slides):
        return slides
    patients = [slide.patient_id or f"slide:{slide.slide}" for slide in slides]
    labels = np.array([slide.label for slide in slides])
    n_folds = max(2, round(1 / min(test_share, 1 - test_share)))
    for label in (0, 1):
        n = len({p for p, other in zip(patients, labels, strict=True) if other == label})
        if n < 2:
            raise BagFileError(
                f"{n} patient{'s' * (n != 1)} with label {label}: at least 2 are needed to have one for training and "
                "one for testing. Add slides, or give a split column."
            )
        n_folds = min(n_folds, n)
    chosen = next(
        c for c in _candidates(labels, patients, n_folds, seed) if len({*labels[c]}) == len({*labels[~c]}) == 2
    )
    is_test = chosen if test_share <= 0.5 else ~chosen
    return [replace(slide, split="test" if test else "train") for slide, test in zip(slides, is_test, strict=True)]


def _candidates(labels: np.ndarray, patients: list[str], n_folds: int, seed: int) -> Iterator[np.ndarray]:
    """Ways to set whole patients apart, as masks, the most fitting first.

    A fold may lack a label where a patient has slides of both. Such a patient alone is then a choice that always serves.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    everyone = np.arange(len(labels))
    for n in range(n_folds, 1, -1):
        folds = StratifiedGroupKFold(n, shuffle=True, random_state=seed)
        for _, chosen in folds.split(everyone, labels, patients):
            yield np.isin(everyone, chosen)
    for patient in sorted(set(patients)):
        yield np.array(patients) == patient


class SharedCells:
    """Tells which cells of a slide stand in slides before it; training slides are to come first."""

    def __init__(self) -> None:
        self._owner: dict[bytes, LabelledSlide] = {}

    def look(self, slide: LabelledSlide, digests: Sequence[bytes]) -> tuple[list[LabelledSlide | None], str]:
        """For each cell of one slide, by its image's digest: the slide of the other split that has it, or None.

        And why the slide is a copy of an earlier one, or nothing: more than half of its cells are that one's.
        """
        owners = [self._owner.get(digest, slide) for digest in digests]
        shared = Counter(owner for owner in owners if owner is not slide)
        (owner, n_shared), *_ = shared.most_common(1) or [(slide, 0)]
        if 2 * n_shared > len(digests):
            reason = (
                f"a copy: {n_shared} of its {len(digests)} cells are those of the {owner.split} slide {owner.slide}"
            )
            return [], reason + unlike(slide, owner)
        self._owner |= {digest: slide for digest, owner in zip(digests, owners, strict=True) if owner is slide}
        return [owner if owner.split != slide.split else None for owner in owners], ""


def unlike(slide: LabelledSlide, other: LabelledSlide) -> str:
    """What the labels file says otherwise of a copy, to stand behind the reason for leaving it out."""
    found = [f"label {other.label}, here {slide.label}"] if other.label != slide.label else []
    if other.patient_id != slide.patient_id:
        found.append(f"patient '{other.patient_id}', here '{slide.patient_id}'")
    return f". BUT it is labelled otherwise there ({'; '.join(found)}): correct the labels file" if found else ""
