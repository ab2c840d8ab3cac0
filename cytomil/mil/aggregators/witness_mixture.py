"""Suspects as a kind of cells of their own, against the kinds that negative bags hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cytomil.mil.aggregators.discriminant import shrunk
from cytomil.mil.aggregators.kinds import Kinds, find_kinds, squared_to_each
from cytomil.mil.aggregators.pacing import Paced

_TINY = 1e-9


@dataclass(frozen=True)
class Whitened:
    """Negatives' kinds, whitened: ``whitening`` (K, K), ``means`` (J, K), ``shares`` (J,)."""

    whitening: Tensor
    means: Tensor
    shares: Tensor

    @classmethod
    def of(cls, kinds: Kinds) -> Whitened:
        """With the covariance shrunk as the discriminant's."""
        whitening = torch.linalg.cholesky(torch.linalg.inv(shrunk(kinds.covariance)))
        return cls(whitening, kinds.means @ whitening, kinds.shares)


class WitnessMixture(Paced[Whitened]):
    """The log ratio of two densities of one covariance: the suspects' Gaussian over the mixture of negatives' kinds.

    Normal cells are of several kinds, which a single linear border would treat as one. In the manner of PAMIL's prototypes,
    fitted generatively.
    """

    whitening: Tensor
    normal: Tensor
    normal_log_share: Tensor
    witness: Tensor

    def __init__(self, n_components: int, n_normal: int) -> None:
        super().__init__()
        shapes = {
            "whitening": (n_components, n_components),
            "normal": (n_normal, n_components),
            "normal_log_share": (n_normal,),
            "witness": (1, n_components),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    @classmethod
    def study(cls, negatives: Tensor, seed: int) -> Whitened:
        """See `Paced`."""
        return Whitened.of(find_kinds(negatives, seed))

    @classmethod
    def against(cls, known: Whitened, suspects: Tensor) -> WitnessMixture:
        """See `Paced`."""
        model = cls(suspects.shape[1], len(known.means))
        model.whitening.copy_(known.whitening)
        model.normal.copy_(known.means)
        model.normal_log_share.copy_(known.shares.clamp(min=_TINY).log())
        model.witness.copy_(suspects.mean(dim=0, keepdim=True) @ known.whitening)
        return model

    def forward(self, cells: Tensor) -> Tensor:
        """See `Paced`."""
        white = cells @ self.whitening
        normal = (self.normal_log_share - squared_to_each(white, self.normal) / 2).logsumexp(dim=1)
        return -squared_to_each(white, self.witness).squeeze(1) / 2 - normal
