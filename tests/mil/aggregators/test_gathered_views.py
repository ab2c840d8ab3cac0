import pytest
import torch

from cytomil.mil.aggregators.gathered_views import ViewsReading
from cytomil.mil.aggregators.view import View


@pytest.mark.parametrize("size", [1, 7, 60])
def test_whatever_the_blocks_the_whole_bag_is_judged_at_once(size):
    cells = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    views = [View.learn(cells, start, stop, 2) for start, stop in ((0, 5), (2, 5))]
    asked = []

    def suspicion(projected):
        asked.append(projected)
        return projected[0][:, 0] + projected[1][:, 1]

    reading = ViewsReading(views, suspicion, lambda distances: float(distances.mean()))
    for block in cells.split(size):
        reading.add(block)
    probability, distances = reading.result()
    (whole,) = asked
    for view, part in zip(views, whole, strict=True):
        torch.testing.assert_close(part, view.project(cells), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(distances, (whole[0][:, 0] + whole[1][:, 1]).clamp(min=1e-6))
    assert probability == float(distances.mean())
