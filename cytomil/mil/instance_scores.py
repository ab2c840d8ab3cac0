"""What an aggregator says of one instance: the number by which a slide's cells are ranked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from cytomil.mil.pamil import PAMIL
from cytomil.settings import InstanceScore

MEANING = {
    InstanceScore.EVIDENCE: "× the average cell of a normal training slide",
    InstanceScore.ATTENTION: "× the attention of this slide's average cell",
}


@torch.inference_mode()
def odds_alone(model: PAMIL, instances: Tensor) -> Tensor:
    """The odds that a bag of one instance alone is positive, (N, D) standardised → (N,).

    PAMIL's attention says how an instance is weighed, not which way it points; its odds alone say which way.
    """
    logits = model.instance_logits(instances)
    return (logits[:, 1] - logits[:, 0]).exp()


@torch.inference_mode()
def reference_odds(model: PAMIL, negative_bags: Sequence[Tensor]) -> float:
    """The mean odds alone over the instances of negative training bags, each (N, D) standardised: the unit of evidence."""
    return float(torch.cat([odds_alone(model, bag) for bag in negative_bags]).mean())


@torch.inference_mode()
def instance_scores(
    kind: InstanceScore, model: PAMIL, reference: float, blocks: Iterable[Tensor], attention: Tensor
) -> np.ndarray:
    """One score an instance, above 0, in the unit that `MEANING` names.

    ``blocks`` hold the bag's instances, each (n, D) standardised; ``attention`` (2, N) is the bag's. Returns (N,).
    """
    if kind is InstanceScore.EVIDENCE:
        return torch.cat([odds_alone(model, block) for block in blocks]).div(reference).numpy()
    return attention[1].numpy() * attention.shape[1]
