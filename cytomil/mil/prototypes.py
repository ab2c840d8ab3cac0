"""Where PAMIL's prototypes start: as the original does, at k-means centres of each bag, then of all bags' centres."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def kmeans_prototypes(bags: Sequence[np.ndarray], n_prototypes: int, seed: int) -> np.ndarray:
    """Cluster each bag (N, D), then the bags' centres → (n_prototypes, D) float32.

    A bag with fewer instances than prototypes gives all of them. Raises ValueError if all bags together hold fewer.
    """
    from sklearn.cluster import KMeans

    def centres(points: np.ndarray) -> np.ndarray:
        if len(points) <= n_prototypes:
            return points
        return KMeans(n_prototypes, n_init=1, random_state=seed).fit(points).cluster_centers_

    pooled = np.concatenate([centres(bag) for bag in bags])
    if len(pooled) < n_prototypes:
        raise ValueError(f"{n_prototypes} prototypes were asked for; all bags together hold {len(pooled)} instances")
    return centres(pooled).astype(np.float32)
