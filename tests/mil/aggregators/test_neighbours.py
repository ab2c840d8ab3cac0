import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from cytomil.mil.aggregators.neighbours import nearest_distances


def cells(n, seed, d=4):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_neighbours_leave_out_the_cell_itself():
    some = cells(50, 0)
    among = NearestNeighbors(n_neighbors=4).fit(some.numpy()).kneighbors(some.numpy())[0]
    np.testing.assert_allclose(nearest_distances(some, some, 3).numpy(), among[:, 1:], rtol=1e-3)
