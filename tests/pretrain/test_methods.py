import pytest
import torch

from cytomil.encoders.architecture import Architecture, Encoder
from cytomil.pretrain.losses import nt_xent_loss, similarity_loss
from cytomil.pretrain.methods import METHODS, Batch
from cytomil.pretrain.surgery import adaptive_gradient_surgery
from cytomil.settings import Method, PretrainSettings, Rescale


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder(Architecture(projection_dim=8)).eval()


def batch(n_views=2):
    generator = torch.Generator().manual_seed(1)
    views = tuple(torch.rand(6, 3, 16, 16, generator=generator) for _ in range(n_views))
    return Batch(views, torch.tensor([False, False, False, True, True, True]))


@pytest.mark.parametrize("method", [Method.SLAM_AGS, Method.WEAKSUPCON])
@pytest.mark.parametrize("scale", [1.0, 0.02, "tau"])
def test_two_task_methods_take_similarity_from_negatives_and_contrast_from_positives(encoder, method, scale):
    settings = PretrainSettings(method=method, temperature=0.1, similarity_scale=scale)
    given = batch()
    losses = METHODS[method](settings).losses(encoder, given)
    _, z_i = encoder(given.views[0])
    _, z_j = encoder(given.views[1])
    factor = 0.1 if scale == "tau" else scale
    expected = factor * similarity_loss(torch.cat([z_i[:3], z_j[:3]]), 0.1)
    torch.testing.assert_close(losses["similarity"], expected)
    torch.testing.assert_close(losses["nt_xent"], nt_xent_loss(z_i[3:], z_j[3:], 0.1))


def test_simclr_contrasts_every_cell(encoder):
    given = batch()
    losses = METHODS[Method.SIMCLR](PretrainSettings(temperature=0.3)).losses(encoder, given)
    _, z_i = encoder(given.views[0])
    _, z_j = encoder(given.views[1])
    torch.testing.assert_close(losses["nt_xent"], nt_xent_loss(z_i, z_j, 0.3))


def test_weak_supervision_predicts_the_slides_label(encoder):
    torch.manual_seed(2)
    method = METHODS[Method.WEAKLY_SUPERVISED](PretrainSettings(projection_dim=8))
    given = batch(1)
    _, z = encoder(given.views[0])
    logits = method.head(z)
    expected = -logits.log_softmax(1)[torch.arange(6), given.is_positive.long()].mean()
    torch.testing.assert_close(method.losses(encoder, given)["classification"], expected)


@pytest.mark.parametrize("rescale", list(Rescale))
def test_slam_ags_combines_by_adaptive_surgery_and_the_others_by_the_sum(rescale):
    gradients = torch.tensor([[10.0, 0.0], [-1.0, 0.1]])
    combine = METHODS[Method.SLAM_AGS](PretrainSettings(rescale=rescale)).combine
    assert torch.equal(combine(gradients), adaptive_gradient_surgery(gradients, rescale.value))
    for method in (Method.WEAKSUPCON, Method.SIMCLR, Method.WEAKLY_SUPERVISED):
        assert METHODS[method](PretrainSettings(method=method)).combine is None
