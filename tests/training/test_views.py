import pytest
import torch

from cytomil.training.views import ViewMaker, _hue_rotation


def cells(n=6, size=32):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [16, 32, 224])
def test_views_keep_shape_and_range(size):
    batch = cells(4, size)
    view = ViewMaker(0.4, 0.5)(batch, generator())
    assert view.shape == batch.shape
    assert 0 <= float(view.min()) <= float(view.max()) <= 1
    assert torch.isfinite(view).all()


def test_the_same_seed_gives_the_same_views_and_another_gives_others():
    make, batch = ViewMaker(0.4, 0.5), cells()
    assert torch.equal(make(batch, generator(1)), make(batch, generator(1)))
    assert not torch.equal(make(batch, generator(1)), make(batch, generator(2)))


def test_every_instance_gets_a_view_of_its_own():
    batch = cells(1).expand(16, -1, -1, -1).clone()
    views = ViewMaker(0.4, 0.5, blur_probability=0)(batch, generator())
    different = [not torch.allclose(views[0], views[i], atol=1e-3) for i in range(1, 16)]
    assert all(different)


def test_without_change_of_scale_or_colour_a_view_is_one_of_the_eight_orientations():
    batch = cells(24)
    views = ViewMaker(1.0, 0.0, grayscale_probability=0, blur_probability=0)(batch, generator())
    seen = set()
    for cell, view in zip(batch, views, strict=True):
        errors = {
            (turns, mirrored): float(
                (torch.rot90(cell.flip(2) if mirrored else cell, turns, (1, 2)) - view).abs().mean()
            )
            for turns in range(4)
            for mirrored in (False, True)
        }
        best = min(errors, key=errors.get)
        seen.add(best)
    assert len(seen) >= 6


def test_crops_of_a_constant_cell_stay_inside_it():
    batch = torch.full((8, 3, 32, 32), 0.5)
    views = ViewMaker(0.2, 0.0, grayscale_probability=0, blur_probability=0)(batch, generator())
    torch.testing.assert_close(views, batch)


def test_grayscale_views_have_no_colour():
    views = ViewMaker(0.5, 0.0, grayscale_probability=1.0, blur_probability=0)(cells(), generator())
    torch.testing.assert_close(views[:, 0], views[:, 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(views[:, 1], views[:, 2], atol=1e-5, rtol=0)


def test_hue_rotation_keeps_greys_and_a_full_turn_is_nothing():
    turn = _hue_rotation(torch.tensor([0.0, 1.0, 2 * torch.pi]))
    grey = torch.full((3, 3, 1), 0.3)
    torch.testing.assert_close(turn @ grey, grey, atol=1e-5, rtol=0)
    torch.testing.assert_close(turn[2], torch.eye(3), atol=1e-5, rtol=0)


def test_blur_lowers_contrast_between_neighbours():
    sharp = ViewMaker(1.0, 0.0, grayscale_probability=0, blur_probability=0)(cells(), generator())
    blurred = ViewMaker(1.0, 0.0, grayscale_probability=0, blur_probability=1)(cells(), generator())
    assert blurred.diff(dim=3).abs().mean() < sharp.diff(dim=3).abs().mean()
