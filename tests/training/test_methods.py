import inspect
import math

import pytest
import torch

from cytomil.encoders.architecture import Architecture, Encoder
from cytomil.registry import METHODS
from cytomil.training.cells import TrainingCells
from cytomil.training.config import PretrainConfig
from cytomil.training.losses import nt_xent_loss, similarity_loss, supcon_loss
from cytomil.training.methods import Batch, load_method
from cytomil.training.methods.its2clr import FIRST_FRACTION, LAST_FRACTION
from cytomil.training.processes import OneProcess
from cytomil.training.step import Step
from cytomil.training.surgery import (
    Rescale,
    Surgery,
    adaptive_gradient_surgery,
    combine,
    compute_gramian,
    pcgrad,
    priority_weights,
)

SIZE = 32
N_BAGS, BAG_SIZE = 6, 8
TRAINING = [name for name in METHODS if name != "none"]
NEGATIVES_ALONE = ("dsvdd", "droc")


@pytest.fixture
def encoder(request):
    """With a plain projector, unless the test is parametrised by another."""
    torch.manual_seed(0)
    return Encoder(Architecture(projection_dim=8, projector=getattr(request, "param", "plain"))).eval()


@pytest.fixture(scope="module")
def cells():
    generator = torch.Generator().manual_seed(2)
    bag = torch.arange(N_BAGS).repeat_interleave(BAG_SIZE)
    pixels = torch.randint(0, 256, (len(bag), SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    return TrainingCells(pixels, bag % 2 == 1, bag, bag // 2, ())


@pytest.fixture
def make(encoder, cells):
    """``make("simclr", temperature=0.3)``: the method, for the encoder and cells of this module."""

    def made(name, **changed):
        torch.manual_seed(3)
        labels = [torch.arange(len(cells)) % 8 == 1] if name == "fully-supervised" else []
        own = {key: value for key, value in changed.items() if key in load_method(name).Config.model_fields}
        shared = {key: value for key, value in changed.items() if key not in own}
        settings = PretrainConfig(method=name, **({"projection_dim": 8, "batch_size": 8} | shared), options={name: own})
        return load_method(name)(settings, encoder, cells, *[found.long() for found in labels])

    return made


def batch(is_positive, n_views=2, size=16):
    generator = torch.Generator().manual_seed(1)
    n = len(is_positive)
    views = tuple(torch.rand(n, 3, size, size, generator=generator) for _ in range(n_views))
    return Batch(views, torch.tensor(is_positive), torch.arange(n))


HALVES = [False, False, False, True, True, True]


@pytest.mark.parametrize("name", ["slam-ags", "weaksupcon"])
@pytest.mark.parametrize("scale", [1.0, 0.02, "tau"])
def test_two_task_methods_take_similarity_from_negatives_and_contrast_from_positives(encoder, make, name, scale):
    given = batch(HALVES)
    losses = make(name, objective="paper", temperature=0.1, similarity_scale=scale).losses(encoder, given)
    _, z_i = encoder(given.views[0])
    _, z_j = encoder(given.views[1])
    factor = 0.1 if scale == "tau" else scale
    expected = factor * similarity_loss(torch.cat([z_i[:3], z_j[:3]]), 0.1)
    torch.testing.assert_close(losses["similarity"], expected)
    torch.testing.assert_close(losses["nt_xent"], nt_xent_loss(z_i[3:], z_j[3:], 0.1))


@pytest.mark.parametrize(("objective", "scale"), [("paper", 1.0), ("stable", 0.04)])
@pytest.mark.parametrize("name", ["slam-ags", "weaksupcon"])
def test_the_objective_says_what_the_similarity_counts_unless_told(encoder, make, name, objective, scale):
    given = batch(HALVES)
    told, untold = (make(name, objective=objective, similarity_scale=one) for one in (scale, None))
    assert torch.equal(told.losses(encoder, given)["similarity"], untold.losses(encoder, given)["similarity"])


@pytest.mark.parametrize("surgery", [None, "sum"])
def test_stable_slam_ags_contrasts_every_cell_beside_the_negatives_similarity(encoder, make, surgery):
    given = batch(HALVES)
    method = make("slam-ags", objective="stable", temperature=0.3, surgery=surgery)
    losses = method.losses(encoder, given)
    _, z_i = encoder(given.views[0])
    _, z_j = encoder(given.views[1])
    torch.testing.assert_close(losses["nt_xent"], nt_xent_loss(z_i, z_j, 0.3))
    torch.testing.assert_close(losses["similarity"], 0.04 * similarity_loss(torch.cat([z_i[:3], z_j[:3]]), 0.3))
    assert method.chance(given) == pytest.approx(math.log(2 * 6 - 1))


@pytest.mark.parametrize(("objective", "seen"), [("stable", (True, True)), ("paper", (False, True))])
def test_each_task_s_gradient_goes_back_through_its_own_cells(make, objective, seen):
    encoder = Encoder(Architecture(projection_dim=8, projector="standardised")).train()
    given = batch(HALVES)
    views = tuple(view.requires_grad_() for view in given.views)
    losses = make("slam-ags", objective=objective).losses(encoder, Batch(views, given.is_positive, given.indices))
    for task, (negatives, positives) in (("similarity", (True, False)), ("nt_xent", seen)):
        (reached,) = torch.autograd.grad(losses[task], views[0], retain_graph=True)
        assert [bool(side.abs().sum() > 0) for side in (reached[:3], reached[3:])] == [negatives, positives]


def test_a_step_of_slam_ags_moves_the_running_statistics_of_z_once(make):
    encoder = Encoder(Architecture(projection_dim=8, projector="standardised")).train()
    given = batch(HALVES)
    make("slam-ags").losses(encoder, given)
    moved = encoder.standardise.mean.clone()
    sides = (~given.is_positive, given.is_positive)
    raw = [encoder.project(torch.cat([view[side] for view in given.views]))[1] for side in sides]
    torch.testing.assert_close(moved, 0.1 * torch.cat(raw).mean(dim=0))


def test_simclr_contrasts_every_cell(encoder, make):
    given = batch(HALVES)
    losses = make("simclr", temperature=0.3).losses(encoder, given)
    _, z_i = encoder(given.views[0])
    _, z_j = encoder(given.views[1])
    torch.testing.assert_close(losses["nt_xent"], nt_xent_loss(z_i, z_j, 0.3))


def test_supcon_takes_the_slides_labels_for_classes(encoder, make):
    given = batch(HALVES)
    _, z = encoder(torch.cat(given.views))
    expected = supcon_loss(z, torch.tensor([0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]), 0.3)
    torch.testing.assert_close(make("supcon", temperature=0.3).losses(encoder, given)["supcon"], expected)


def cross_entropy(logits, classes):
    return -logits.log_softmax(1)[torch.arange(len(logits)), classes].mean()


def test_weak_supervision_predicts_the_slides_label_and_the_ceiling_the_cells_own(encoder, make):
    given = batch(HALVES, 1)
    _, z = encoder(given.views[0])
    weak, ceiling = make("weakly-supervised"), make("fully-supervised")
    expected = cross_entropy(weak.head(z), torch.tensor([0, 0, 0, 1, 1, 1]))
    torch.testing.assert_close(weak.losses(encoder, given)["classification"], expected)
    expected = cross_entropy(ceiling.head(z), torch.tensor([0, 1, 0, 0, 0, 0]))
    torch.testing.assert_close(ceiling.losses(encoder, given)["classification"], expected)


def test_half_of_the_ceilings_cells_are_abnormal(make):
    ceiling = make("fully-supervised")
    for indices in ceiling.batches(torch.Generator().manual_seed(0)):
        assert int(ceiling.instance_labels[indices].sum()) * 2 == len(indices)


def test_moco_contrasts_predicted_queries_with_the_momentum_encoders_keys(encoder, make):
    method = make("moco-v3", temperature=0.3)
    given = batch(HALVES)
    loss = method.losses(encoder, given)["info_nce"]
    query = method.predictor(encoder(torch.cat(given.views))[1])
    key = encoder(torch.cat(given.views))[1]
    logits = torch.nn.functional.cosine_similarity(query[:, None], key[None], dim=2) / 0.3
    own = torch.arange(6)
    expected = (cross_entropy(logits[:6, 6:], own) + cross_entropy(logits[6:, :6], own)) / 2
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    loss.backward()
    assert all(weight.grad is None for weight in method.momentum_encoder.parameters())
    assert all(weight.grad is not None for weight in encoder.parameters())


def test_mocos_momentum_encoder_follows_slower_and_slower(encoder, make):
    method = make("moco-v3")
    before = next(method.momentum_encoder.parameters()).clone()
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(1)
    moved = []
    for progress in (1e-9, 0.5, 1.0):
        method.after_step(encoder, progress)
        after = next(method.momentum_encoder.parameters()).clone()
        moved.append(float((after - before).mean()))
        before = after
    assert moved == pytest.approx([0.01, 0.005 * 0.99, 0.0], abs=1e-5)


def test_dsvdd_measures_squared_distance_from_a_centre_off_zero(encoder, make):
    method = make("dsvdd", weights="none")
    assert all(float(p.abs().sum()) == 0 for n, p in encoder.named_parameters() if n.endswith("bias"))
    trained = {name for name, weight in encoder.named_parameters() if weight.requires_grad}
    assert not any("bn" in name or name.endswith("bias") for name in trained)
    assert "projector.2.weight" in trained
    method.before_epoch(0, encoder)
    centre = method.centre.clone()
    assert (centre.abs() >= 0.1 - 1e-6).all()
    method.before_epoch(1, encoder)
    assert torch.equal(method.centre, centre)
    encoder.eval()
    given = batch([False] * 4, 1)
    z = encoder(given.views[0])[1].detach()
    expected = sum(float((row - centre) @ (row - centre)) for row in z) / (4 * 8)
    assert float(method.losses(encoder, given)["distance"].detach()) == pytest.approx(expected, rel=1e-5)


class TestDeepSVDDFromAStart:
    @pytest.fixture
    def method(self, make, encoder):
        self.before = {name: weight.clone() for name, weight in encoder.state_dict().items()}
        method = make("dsvdd", weights="efficientnet-lite0")
        method.before_epoch(0, encoder)
        return method

    def test_begins_as_the_mahalanobis_distance_of_h(self, method, encoder, cells):
        encoder.eval()
        pixels = cells.pixels[~cells.is_positive].permute(0, 3, 1, 2).float() / 255
        h, z = (found.detach() for found in encoder(pixels))
        assert z.mean(dim=0).abs().max() < 1e-3
        assert torch.allclose(torch.cov(z.T), torch.eye(8), atol=1e-2)
        centred = (h - h.mean(dim=0)).double()
        u = torch.linalg.svd(centred, full_matrices=False)[0]
        wanted = (len(h) - 1) ** 0.5 * u[:, :8].norm(dim=1)
        assert torch.allclose((z - method.centre).norm(dim=1).double(), wanted, rtol=1e-2)

    def test_keeps_the_backbone_and_its_statistics(self, method, encoder, cells):
        encoder.train()
        method.losses(encoder, batch([False] * 4, 1))["distance"].backward()
        assert [name for name, weight in encoder.named_parameters() if weight.grad is not None] == [
            "projector.2.weight"
        ]
        after = encoder.state_dict()
        kept = [name for name in after if name.startswith("backbone")]
        assert kept and all(torch.equal(after[name], self.before[name]) for name in kept)

    def test_a_resumed_run_is_not_whitened_again(self, method, encoder):
        projector = [weight.clone() for weight in encoder.projector.parameters()]
        method.before_epoch(1, encoder)
        assert all(torch.equal(a, b) for a, b in zip(projector, encoder.projector.parameters(), strict=True))


def test_droc_takes_each_rotation_for_an_instance_of_its_own(encoder, make):
    given = batch([False] * 3)
    z_i, z_j = (torch.cat([encoder(view.rot90(k, (2, 3)))[1] for k in range(4)]) for view in given.views)
    method = make("droc", temperature=0.3)
    torch.testing.assert_close(method.losses(encoder, given)["nt_xent"], nt_xent_loss(z_i, z_j, 0.3))
    assert method.chance(given) == pytest.approx(math.log(2 * 12 - 1))
    assert not method.rotates


@pytest.mark.parametrize("name", NEGATIVES_ALONE)
def test_one_class_methods_see_each_negative_once_and_no_positive(make, cells, name):
    seen = torch.cat(make(name).batches(torch.Generator().manual_seed(0)))
    assert torch.equal(seen.sort().values, torch.nonzero(~cells.is_positive).flatten())


def test_its2clr_contrasts_all_cells_first_and_pseudo_labels_then(encoder, make, cells):
    method = make("its2clr", epochs=4, temperature=0.3)
    given = batch(HALVES)
    n_steps = len(method.batches(torch.Generator()))
    for epoch in (0, 1):
        method.before_epoch(epoch, encoder)
        assert set(method.losses(encoder, given)) == {"nt_xent"}
    for epoch, share in ((2, FIRST_FRACTION), (3, LAST_FRACTION)):
        assert method.fraction_at(epoch) == pytest.approx(share)
        method.before_epoch(epoch, encoder)
        chosen = method.pseudo_labels == 1
        assert torch.equal(method.pseudo_labels == 0, ~cells.is_positive)
        assert torch.bincount(cells.bag[chosen], minlength=N_BAGS).tolist() == [0, round(share * 8)] * 3
        batches = method.batches(torch.Generator().manual_seed(0))
        assert len(batches) == n_steps
        assert set(method.pseudo_labels[torch.cat(batches)].tolist()) == {0, 1}
        assert all(int((method.pseudo_labels[one] == 1).sum()) * 2 == len(one) for one in batches)
    indices = torch.cat([torch.nonzero(method.pseudo_labels == label).flatten()[:3] for label in (0, 1)])
    given = Batch(given.views, given.is_positive, indices)
    _, z = encoder(torch.cat(given.views))
    expected = supcon_loss(z, torch.tensor([0, 0, 0, 1, 1, 1]).repeat(2), 0.3)
    torch.testing.assert_close(method.losses(encoder, given)["supcon"], expected)


@pytest.mark.parametrize("rescale", list(Rescale))
def test_slam_ags_weighs_by_its_objectives_surgery_unless_told_otherwise_and_the_others_take_the_sum(make, rescale):
    gradients = torch.tensor([[10.0, 0.0], [-1.0, 0.1]])
    gramian = compute_gramian(gradients)
    adaptive = make("slam-ags", objective="paper", rescale=rescale).weighting(gramian)
    assert torch.equal(combine(gradients, adaptive), adaptive_gradient_surgery(gradients, rescale.value))
    plain = make("slam-ags", surgery="pcgrad", rescale=rescale).weighting(gramian)
    assert torch.equal(combine(gradients, plain), pcgrad(gradients))
    assert torch.equal(make("slam-ags", rescale=rescale).weighting(gramian), priority_weights(gramian))
    for name in ("weaksupcon", "simclr", "weakly-supervised"):
        assert make(name).weighting is None


LOPSIDED = {"one negative": [False, True, True, True], "one positive": [False, False, False, True]}
OBJECTIVES = ("stable", "paper")
VARIANTS = {name: (name, {}) for name in TRAINING if name != "slam-ags"}
VARIANTS |= {f"slam-ags {objective}": ("slam-ags", {"objective": objective}) for objective in OBJECTIVES}
# Of one epoch, the first is a round already.
VARIANTS |= {"its2clr in a round": ("its2clr", {"epochs": 1})}
ANY_PROJECTOR = [name for name, (method, _) in VARIANTS.items() if load_method(method).standardises]


def step_on(encoder, method, is_positive):
    """Take a step on that many cells of each side, of those that the method deals, and see that it is finite.

    Returns what it measured, and whether the encoder's weights moved.
    """
    # These are dealt negatives alone.
    is_positive = (
        [side for side in is_positive if not side] if method.settings.method in NEGATIVES_ALONE else is_positive
    )
    method.before_epoch(0, encoder)
    encoder.train()
    dealt = method.batches(torch.Generator().manual_seed(0))[0]
    n_positive = sum(is_positive)
    indices = torch.cat([dealt[: len(is_positive) - n_positive], dealt[len(dealt) - n_positive :]])
    # A single image of 16 px ends as one value a channel, which no batch norm can standardise.
    size = 16 if len(is_positive) * method.n_views > 1 else SIZE
    views = batch(is_positive, method.n_views, size).views
    step = Step(encoder, method, method.settings, OneProcess(torch.device("cpu")))
    before = step.shared.values.detach().clone()
    measured = step(Batch(views, torch.tensor(is_positive), indices), 0.01)
    assert all(math.isfinite(float(value)) for value in measured.values()), measured
    assert step.weights_are_finite()
    return measured, not torch.equal(step.shared.values, before)


@pytest.mark.parametrize("is_positive", LOPSIDED.values(), ids=LOPSIDED)
@pytest.mark.parametrize(
    ("encoder", "variant"),
    [("plain", name) for name in VARIANTS] + [("standardised", name) for name in ANY_PROJECTOR],
    indirect=["encoder"],
)
def test_every_method_survives_a_batch_with_one_cell_on_a_side(encoder, make, variant, is_positive):
    name, changed = VARIANTS[variant]
    measured, moved = step_on(encoder, make(name, batch_size=32, weight_decay=0, **changed), is_positive)
    assert moved
    assert ("loss_supcon" in measured) is (variant in ("supcon", "its2clr in a round"))


@pytest.mark.parametrize("is_positive", LOPSIDED.values(), ids=LOPSIDED)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("surgery", list(Surgery))
@pytest.mark.parametrize("encoder", ["standardised"], indirect=True)
def test_every_surgery_survives_a_batch_with_one_cell_on_a_side(encoder, make, surgery, objective, is_positive):
    measured, _ = step_on(encoder, make("slam-ags", surgery=surgery, objective=objective), is_positive)
    assert ("gradient_cosine" in measured) is (surgery is not Surgery.SUM)


@pytest.mark.parametrize("name", TRAINING)
def test_a_method_names_the_temperature_as_without_effect_if_its_code_never_reads_it(name):
    method = load_method(name)
    code = [inspect.getsource(one) for one in method.__mro__ if one.__module__.startswith("cytomil.training.methods")]
    assert ("temperature" in method.unused) != any("settings.temperature" in one for one in code)
