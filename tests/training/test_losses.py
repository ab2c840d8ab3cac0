import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import NTXentLoss
from torch.nn import functional as F

from cytomil.training.losses import chance_level, info_nce_loss, nt_xent_loss, similarity_loss, supcon_loss


def naive_similarity(z, temperature):
    total, pairs = 0.0, 0
    for i in range(len(z)):
        for j in range(len(z)):
            if i != j:
                total += float(F.cosine_similarity(z[i], z[j], dim=0)) / temperature
                pairs += 1
    return -total / pairs


def naive_nt_xent(z_i, z_j, temperature):
    z = torch.cat([z_i, z_j]).double()
    n = len(z_i)
    total = 0.0
    for a in range(2 * n):
        partner = (a + n) % (2 * n)
        terms = [math.exp(float(F.cosine_similarity(z[a], z[b], dim=0)) / temperature) for b in range(2 * n) if b != a]
        total -= float(F.cosine_similarity(z[a], z[partner], dim=0)) / temperature - math.log(sum(terms))
    return total / (2 * n)


def draw(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(1, 6), st.floats(0.05, 2.0), st.integers(0, 10_000))
def test_similarity_loss_equals_the_double_loop(n, d, temperature, seed):
    z = draw(n, d, seed).double()
    assert float(similarity_loss(z, temperature)) == pytest.approx(naive_similarity(z, temperature), abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(1, 6), st.floats(0.05, 2.0), st.integers(0, 10_000))
def test_nt_xent_equals_the_double_loop(n, d, temperature, seed):
    z_i, z_j = draw(n, d, seed).double(), draw(n, d, seed + 1).double()
    assert float(nt_xent_loss(z_i, z_j, temperature)) == pytest.approx(naive_nt_xent(z_i, z_j, temperature), abs=1e-5)


def test_float32_losses_stay_within_1e_5_of_the_loops_at_the_papers_temperature():
    z_i, z_j = draw(24, 16, 0), draw(24, 16, 1)
    assert float(nt_xent_loss(z_i, z_j)) == pytest.approx(naive_nt_xent(z_i, z_j, 0.07), abs=1e-5)
    assert float(similarity_loss(z_i)) == pytest.approx(naive_similarity(z_i.double(), 0.07), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 0.5])
def test_nt_xent_agrees_with_lightly(temperature):
    z_i, z_j = draw(16, 8, 2), draw(16, 8, 3)
    expected = NTXentLoss(temperature=temperature)(z_i, z_j)
    assert float(nt_xent_loss(z_i, z_j, temperature)) == pytest.approx(float(expected), abs=1e-5)


def test_closed_forms():
    point = torch.ones(10, 4)
    assert float(similarity_loss(point, 0.07)) == pytest.approx(-1 / 0.07, rel=1e-6)
    assert float(similarity_loss(torch.eye(6), 0.5)) == pytest.approx(0.0, abs=1e-6)
    # Opposite pairs: every row has one neighbour at cosine -1 … or, with two rows, only that one.
    assert float(similarity_loss(torch.tensor([[1.0, 0], [-1, 0]]), 1.0)) == pytest.approx(1.0)
    # A collapsed encoder is at chance, whatever the temperature.
    assert float(nt_xent_loss(point, point, 0.07)) == pytest.approx(chance_level(10), abs=1e-5)
    # Perfect alignment of orthogonal instances.
    n, temperature = 4, 0.5
    expected = -1 / temperature + math.log(math.exp(1 / temperature) + 2 * n - 2)
    assert float(nt_xent_loss(torch.eye(n), torch.eye(n), temperature)) == pytest.approx(expected, abs=1e-6)


def test_losses_do_not_depend_on_length_or_order():
    z_i, z_j = draw(8, 5, 4), draw(8, 5, 5)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    scale = torch.linspace(0.1, 10, 8).unsqueeze(1)
    assert float(nt_xent_loss(z_i[order], z_j[order])) == pytest.approx(float(nt_xent_loss(z_i, z_j)), abs=1e-5)
    assert float(nt_xent_loss(z_i * scale, z_j)) == pytest.approx(float(nt_xent_loss(z_i, z_j)), abs=1e-4)
    assert float(similarity_loss(z_i[order] * scale)) == pytest.approx(float(similarity_loss(z_i)), abs=1e-4)


def test_similarity_loss_does_not_grow_with_the_batch():
    z = draw(8, 5, 6)
    assert float(similarity_loss(torch.cat([z] * 50), 1.0)) == pytest.approx(
        float(similarity_loss(torch.cat([z] * 500), 1.0)), abs=0.02
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: similarity_loss(torch.ones(1, 3)),
        lambda: similarity_loss(torch.ones(3)),
        lambda: similarity_loss(torch.ones(3, 3), 0.0),
        lambda: nt_xent_loss(torch.ones(2, 3), torch.ones(3, 3)),
        lambda: nt_xent_loss(torch.ones(0, 3), torch.ones(0, 3)),
        lambda: nt_xent_loss(torch.ones(2, 3), torch.ones(2, 3), -1.0),
    ],
)
def test_wrong_arguments_are_refused(call):
    with pytest.raises(ValueError, match=r"shape|temperature"):
        call()


def naive_supcon(z, labels, temperature):
    total, anchors = 0.0, 0
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        partners = [p for p in others if labels[p] == labels[i]]
        if not partners:
            continue
        anchors += 1
        similarity = {a: float(F.cosine_similarity(z[i], z[a], dim=0)) / temperature for a in others}
        normaliser = math.log(sum(math.exp(value) for value in similarity.values()))
        total -= sum(similarity[p] - normaliser for p in partners) / len(partners)
    return total / anchors if anchors else 0.0


def naive_info_nce(queries, keys, temperature):
    total = 0.0
    for i, query in enumerate(queries):
        similarity = [float(F.cosine_similarity(query, key, dim=0)) / temperature for key in keys]
        total -= similarity[i] - math.log(sum(map(math.exp, similarity)))
    return total / len(queries)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(1, 4), st.floats(0.05, 2.0), st.integers(0, 10_000))
def test_supcon_equals_the_double_loop(n, n_classes, temperature, seed):
    z = draw(n, 5, seed).double()
    labels = torch.randint(0, n_classes, (n,), generator=torch.Generator().manual_seed(seed))
    assert float(supcon_loss(z, labels, temperature)) == pytest.approx(naive_supcon(z, labels, temperature), abs=1e-9)


def test_supcon_with_a_class_a_cell_is_nt_xent():
    z_i, z_j = draw(7, 4, 5), draw(7, 4, 6)
    both = supcon_loss(torch.cat([z_i, z_j]), torch.arange(7).repeat(2), 0.2)
    torch.testing.assert_close(both, nt_xent_loss(z_i, z_j, 0.2))


def test_supcon_closed_forms_and_gradients():
    labels = torch.tensor([0, 0, 1, 1])
    assert float(supcon_loss(torch.ones(4, 3), labels)) == pytest.approx(math.log(3))
    told_apart = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    assert float(supcon_loss(told_apart, labels, 1.0)) == pytest.approx(math.log(1 + 2 * math.exp(-2)))
    z = draw(4, 3, 7).requires_grad_()
    supcon_loss(z, torch.tensor([0, 1, 2, 2]), 0.07).backward()
    assert torch.isfinite(z.grad).all()
    alone = draw(3, 3, 8).requires_grad_()
    loss = supcon_loss(alone, torch.arange(3))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert torch.equal(alone.grad, torch.zeros(3, 3))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.floats(0.05, 2.0), st.integers(0, 10_000))
def test_info_nce_equals_the_double_loop(n, temperature, seed):
    queries, keys = draw(n, 5, seed).double(), draw(n, 5, seed + 1).double()
    assert float(info_nce_loss(queries, keys, temperature)) == pytest.approx(
        naive_info_nce(queries, keys, temperature), abs=1e-9
    )


def test_info_nce_of_what_tells_nothing_apart_is_chance():
    assert float(info_nce_loss(torch.ones(6, 3), torch.ones(6, 3))) == pytest.approx(math.log(6))


@pytest.mark.parametrize(
    "call",
    [
        lambda: supcon_loss(torch.zeros(1, 3), torch.zeros(1)),
        lambda: supcon_loss(torch.zeros(4, 3), torch.zeros(3)),
        lambda: supcon_loss(torch.zeros(4), torch.zeros(4)),
        lambda: info_nce_loss(torch.zeros(4, 3), torch.zeros(3, 3)),
        lambda: info_nce_loss(torch.zeros(0, 3), torch.zeros(0, 3)),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_the_contrastive_losses(call):
    with pytest.raises(ValueError, match="shape"):
        call()


def test_contrastive_losses_refuse_a_temperature_that_is_not_above_zero():
    with pytest.raises(ValueError, match="temperature"):
        supcon_loss(torch.ones(4, 3), torch.zeros(4), 0.0)
    with pytest.raises(ValueError, match="temperature"):
        info_nce_loss(torch.ones(4, 3), torch.ones(4, 3), -1.0)
