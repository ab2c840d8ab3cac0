"""PAMIL against its equations written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cytomil.mil.config import InstanceScore
from cytomil.mil.pamil import PAMIL, PrototypeBranch, UnitHidden, kmeans_prototypes


def model(seed=0, **arguments):
    torch.manual_seed(seed)
    return PAMIL(**({"in_dim": 6, "n_prototypes": 4} | arguments)).eval()


def bag(n, seed=0, d=6):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.integers(0, 999))
def test_attention_sums_to_one_over_the_bag(n, seed):
    logits, attention = model()(bag(n, seed))
    assert logits.shape == (2,)
    assert attention.shape == (2, n)
    assert (attention >= 0).all()
    torch.testing.assert_close(attention.sum(dim=1), torch.ones(2))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.integers(0, 999))
def test_attention_follows_a_permutation_and_logits_do_not_change(n, seed):
    instances = bag(n, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    logits, attention = model()(instances)
    moved_logits, moved_attention = model()(instances[order])
    torch.testing.assert_close(moved_attention, attention[:, order])
    torch.testing.assert_close(moved_logits, logits)


def test_forward_equals_the_equations_written_out():
    pamil, instances = model(), bag(5)
    h = F.normalize(F.relu(F.linear(instances, pamil.shared[0].weight, pamil.shared[0].bias)), dim=1)
    p = F.normalize(F.relu(F.linear(pamil.prototypes, pamil.shared[0].weight, pamil.shared[0].bias)), dim=1)
    logits = torch.empty(2)
    for c in range(2):
        raw = torch.empty(5)
        for n in range(5):
            affinity = torch.stack(
                [
                    (torch.tanh(pamil.prototype_gate[0](p[k])) * torch.sigmoid(pamil.instance_gate[0](h[n]))).sum()
                    for k in range(4)
                ]
            )
            raw[n] = pamil.attention.weight[c] @ affinity + pamil.attention.bias[c]
        weights = raw.exp() / raw.exp().sum()
        torch.testing.assert_close(pamil(instances)[1][c], weights)
        pooled = sum(weights[n] * h[n] for n in range(5))
        logits[c] = pamil.classifiers[c](pooled / pooled.norm())
    torch.testing.assert_close(pamil(instances)[0], logits)


@pytest.mark.parametrize("size", [1, 3, 10, 100])
@torch.inference_mode()
def test_a_bag_read_in_blocks_of_any_size_gives_what_forward_gives(size):
    pamil, instances = model(), bag(40)
    logits, attention = pamil(instances)
    reading = pamil.read(InstanceScore.ATTENTION)
    for block in instances.split(size):
        reading.add(block)
    probability, scores = reading.result()
    assert probability == pytest.approx(float(logits.softmax(0)[1]), abs=1e-6)
    torch.testing.assert_close(scores.float(), attention[1] * 40)


def loss(pamil, instances, label, cluster_weight):
    pamil.cluster_weight = cluster_weight
    return pamil.loss(instances, label)


def without_branches(pamil):
    """The same weights, attention branch alone."""
    plain = model()
    plain.load_state_dict(pamil.state_dict(), strict=False)
    return plain


def affinities(pamil, instances):
    unit = [
        F.normalize(F.relu(F.linear(rows, pamil.shared[0].weight, pamil.shared[0].bias)), dim=1)
        for rows in (instances, pamil.prototypes)
    ]
    return unit, torch.sigmoid(pamil.instance_gate[0](unit[0])) @ torch.tanh(pamil.prototype_gate[0](unit[1])).T


def test_the_prototype_branch_equals_its_equations_written_out():
    pamil, instances = model(prototype_branch=True), bag(5)
    (_, prototypes), affinity = affinities(pamil, instances)
    presence = [max(float(affinity[n, p].detach()) for n in range(5)) for p in range(4)]
    scaled = torch.tensor(presence) / abs(max(presence))
    weights = scaled.exp() / scaled.exp().sum()
    pooled = sum(weights[p] * prototypes[p] for p in range(4))
    own = pamil.by_prototypes.classifier(pooled)
    attended = without_branches(pamil)(instances)[0]
    torch.testing.assert_close(pamil(instances)[0], 0.5 * attended + 0.5 * own)

    q, p = own.softmax(0), attended.softmax(0)
    divergence = sum(q[c] * (q[c] / p[c]).log() for c in range(2))
    expected = -pamil(instances)[0].log_softmax(0)[1] + 0.1 * divergence
    torch.testing.assert_close(loss(pamil, instances, torch.tensor(1), 0.0), expected)


@pytest.mark.parametrize("shift", [0.0, -50.0])
def test_the_prototype_that_is_most_present_counts_most_whatever_the_sign(shift):
    branch = PrototypeBranch(3, 3)
    greatest = torch.tensor([1.0, 3.0, 2.0]) + shift
    torch.nn.init.eye_(branch.classifier.weight)
    counted = branch(greatest, torch.eye(3)) - branch.classifier.bias
    assert counted.argmax() == 1
    assert (counted > 0).all()


def test_agreeing_branches_have_nothing_to_reconcile_and_the_prototypes_take_no_gradient_of_it():
    attended, own = torch.tensor([0.3, -1.0], requires_grad=True), torch.tensor([2.0, 0.7], requires_grad=True)
    assert float(PrototypeBranch.consistency(attended, own).detach()) == pytest.approx(0, abs=1e-6)
    PrototypeBranch.consistency(attended, own * 2).backward()
    assert own.grad is None
    assert attended.grad is not None


@pytest.mark.parametrize("label", [0, 1])
def test_the_instance_branch_asks_its_pseudo_labels_of_every_class(label):
    pamil, instances = model(instance_branch=True), bag(40)
    plain = without_branches(pamil)
    attention = plain(instances)[1]
    (hidden, _), _ = affinities(pamil, instances)
    losses = []
    for c in range(2):
        order = sorted(range(40), key=lambda n: -float(attention[c, n].detach()))
        asked = [(n, int(c == label)) for n in order[:8]] + [(n, 0) for n in order[-8:] if c == label]
        logits = [pamil.by_instances.classifiers[c](hidden[n]) for n, _ in asked]
        losses.append(sum(-one.log_softmax(0)[y] for one, (_, y) in zip(logits, asked, strict=True)) / len(asked))
    expected = loss(plain, instances, torch.tensor(label), 0.0) + 0.5 * (losses[0] + losses[1]) / 2
    torch.testing.assert_close(loss(pamil, instances, torch.tensor(label), 0.0), expected)
    torch.testing.assert_close(pamil(instances)[0], plain(instances)[0])


@pytest.mark.parametrize("size", [1, 7, 40])
@torch.inference_mode()
def test_a_bag_read_in_blocks_has_the_prototype_branchs_say(size):
    pamil, instances = model(prototype_branch=True), bag(40)
    reading = pamil.read(InstanceScore.EVIDENCE)
    for block in instances.split(size):
        reading.add(block)
    probability, scores = reading.result()
    assert probability == pytest.approx(float(pamil(instances)[0].softmax(0)[1]), abs=1e-6)
    alone = torch.stack([pamil(instances[n : n + 1])[0] for n in range(40)])
    torch.testing.assert_close(scores.float().log(), alone[:, 1] - alone[:, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("n", [1, 2, 15, 100])
def test_both_branches_train_on_a_bag_of_any_size(n):
    pamil = model(prototype_branch=True, instance_branch=True)
    loss(pamil, bag(n), torch.tensor(1), 0.005).backward()
    assert all(weight.grad is None or bool(weight.grad.isfinite().all()) for weight in pamil.parameters())


def test_identical_instances_share_the_attention_evenly():
    _, attention = model()(bag(1).expand(8, -1))
    torch.testing.assert_close(attention, torch.full((2, 8), 1 / 8))


def test_the_loss_without_clusters_is_cross_entropy():
    pamil, instances = model(), bag(7)
    logits, _ = pamil(instances)
    for label in (0, 1):
        expected = -logits.log_softmax(0)[label]
        torch.testing.assert_close(loss(pamil, instances, torch.tensor(label), 0.0), expected)
        assert loss(pamil, instances, torch.tensor(label), 1.0) > expected


def test_number_of_classes_and_prototypes_are_as_asked():
    logits, attention = model(n_classes=3, n_prototypes=7)(bag(4))
    assert logits.shape == (3,)
    assert attention.shape == (3, 4)


@pytest.mark.parametrize("shape", [(0, 6), (6,)])
def test_an_empty_bag_or_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="shape"):
        model()(torch.zeros(shape))


def test_kmeans_prototypes_find_the_clusters():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[10.0, 0], [0, 10], [-10, -10]])
    bags = [
        (
            centres[torch.randint(0, 3, (40,), generator=generator)] + 0.1 * torch.randn(40, 2, generator=generator)
        ).numpy()
        for _ in range(4)
    ]
    found = torch.from_numpy(kmeans_prototypes(bags, 3, seed=0))
    assert found.shape == (3, 2)
    assert float(torch.cdist(centres, found).min(dim=1).values.max()) < 0.2
    assert (kmeans_prototypes(bags, 3, seed=0) == found.numpy()).all()


def test_kmeans_prototypes_need_enough_instances():
    with pytest.raises(ValueError, match="all bags together have 3"):
        kmeans_prototypes([bag(3).numpy()], 5, seed=0)


def layer(n, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((n, 5), (7, 5), (7,))
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def written_out(x, weight, bias):
    return F.normalize(F.relu(F.linear(x, weight, bias)), dim=1)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(0, 999))
def test_values_and_gradients_are_those_of_the_parts(n, seed):
    given_to_it, given_to_parts = layer(n, seed), layer(n, seed)
    found, expected = UnitHidden.apply(*given_to_it), written_out(*given_to_parts)
    torch.testing.assert_close(found, expected)
    seen = torch.randn(found.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    (found * seen).sum().backward()
    (expected * seen).sum().backward()
    for one, other in zip(given_to_it, given_to_parts, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_gradients_are_the_differences_quotients():
    torch.autograd.gradcheck(UnitHidden.apply, layer(4))


def test_a_row_that_the_relu_cuts_off_whole_stays_nought_and_passes_nothing_on():
    x, weight, bias = layer(3)
    with torch.no_grad():
        bias.fill_(-1e6)
    UnitHidden.apply(x, weight, bias).sum().backward()
    for tensor in (x, weight, bias):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_computes_in_the_instances_format_and_gradients_are_in_the_weights(dtype):
    x, weight, bias = layer(40, dtype=torch.float32)
    exact = written_out(x, weight, bias)
    found = UnitHidden.apply(x.detach().to(dtype), weight, bias)
    assert found.dtype is dtype
    torch.testing.assert_close(found.float(), exact, atol=0.02, rtol=0.02)
    found.float().square().mul(torch.arange(7)).sum().backward()
    assert weight.grad.dtype is bias.grad.dtype is torch.float32
    reached = weight.grad, bias.grad
    expected = torch.autograd.grad(exact.square().mul(torch.arange(7)).sum(), (weight, bias))
    for one, other in zip(reached, expected, strict=True):
        assert F.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.99
