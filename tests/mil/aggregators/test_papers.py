"""The published aggregators against their papers' equations, written out instance by instance."""

import math

import pytest
import torch

from cytomil.mil.aggregators.pooling import ABMIL, CLAM, DTFDMIL, pseudo_bag_of, smooth_svm_loss
from cytomil.mil.aggregators.transmil import NystromAttention, TransMIL, pseudo_inverse
from cytomil.mil.config import InstanceScore


def bag(n, seed=0, d=5):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def gated_attention(gate, hidden):
    """Eq. 9 of Ilse et al.: aₖ of every instance, with loops."""
    raw = []
    for h in hidden:
        total = gate.weight.bias[0]
        for j in range(gate.tanh_gate.out_features):
            v = gate.tanh_gate.weight[j] @ h + gate.tanh_gate.bias[j]
            u = gate.sigmoid_gate.weight[j] @ h + gate.sigmoid_gate.bias[j]
            total = total + gate.weight.weight[0, j] * v.tanh() * u.sigmoid()
        raw.append(total)
    weights = torch.stack(raw).exp()
    return weights / weights.sum()


def embedded(model, instances):
    layer = model.embed[0]
    return torch.stack([(layer.weight @ x + layer.bias).clamp(min=0) for x in instances])


def pooled(attention, hidden):
    return sum(a * h for a, h in zip(attention, hidden, strict=True))


@pytest.mark.parametrize("label", [0, 1])
def test_abmil_is_the_papers_equations(label):
    torch.manual_seed(0)
    model, instances = ABMIL(5, hidden_dim=4, attention_dim=3).eval(), bag(6)
    hidden = embedded(model, instances)
    attention = gated_attention(model.attention, hidden)
    z = pooled(attention, hidden)
    probability = torch.sigmoid(model.classifier.weight[0] @ z + model.classifier.bias[0])
    found, scores = model.assess(instances, InstanceScore.ATTENTION)
    assert found == pytest.approx(probability.item(), abs=1e-6)
    torch.testing.assert_close(scores.float(), attention.detach() * 6)
    expected = -torch.log(probability if label else 1 - probability)
    torch.testing.assert_close(model.loss(instances, torch.tensor(label), torch.Generator()), expected)
    alone = torch.tensor([model.assess(one.unsqueeze(0))[0] for one in instances])
    torch.testing.assert_close(model.assess(instances)[1].float(), alone / (1 - alone), rtol=1e-4, atol=1e-6)


def test_dtfd_in_use_is_the_papers_equations_on_its_pseudo_bags():
    torch.manual_seed(0)
    model, instances = DTFDMIL(5, n_pseudo_bags=3, hidden_dim=4, attention_dim=3).eval(), bag(11)
    of = pseudo_bag_of(instances, 3).tolist()
    hidden = embedded(model, instances)
    odds = torch.zeros(11)
    distilled = []
    for m in sorted(set(of)):
        members = [i for i in range(11) if of[i] == m]
        attention = gated_attention(model.attention[0], hidden[members])
        distilled.append(pooled(attention, hidden[members]))
        for a, i in zip(attention, members, strict=True):
            # Eq. 5 to 7: an instance's signal for a class, made a probability over the classes.
            signals = [model.classifier[0].weight[c] @ (len(members) * a * hidden[i]) for c in (0, 1)]
            p = torch.stack(signals).softmax(0)
            odds[i] = p[1] / p[0]
    distilled = torch.stack(distilled)
    z = pooled(gated_attention(model.attention[1], distilled), distilled)
    probability = (model.classifier[1].weight @ z + model.classifier[1].bias).softmax(0)[1]
    found, scores = model.assess(instances)
    assert found == pytest.approx(probability.item(), abs=1e-6)
    torch.testing.assert_close(scores.float(), odds.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("label", [0, 1])
def test_dtfds_loss_is_both_tiers_cross_entropy(label):
    torch.manual_seed(0)
    model, instances = DTFDMIL(5, n_pseudo_bags=3, hidden_dim=4, attention_dim=3), bag(11)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(7))
    hidden = embedded(model, instances)
    tier_1, distilled = [], []
    for part in (order[:4], order[4:8], order[8:]):
        feature = pooled(gated_attention(model.attention[0], hidden[part]), hidden[part])
        logits = model.classifier[0].weight @ feature + model.classifier[0].bias
        tier_1.append(-logits.log_softmax(0)[label])
        distilled.append(feature)
    distilled = torch.stack(distilled)
    z = pooled(gated_attention(model.attention[1], distilled), distilled)
    tier_2 = -(model.classifier[1].weight @ z + model.classifier[1].bias).log_softmax(0)[label]
    found = model.loss(instances, torch.tensor(label), torch.Generator().manual_seed(7))
    torch.testing.assert_close(found, sum(tier_1) / 3 + tier_2)


def test_pseudo_bags_are_even_and_follow_the_instance():
    instances = bag(5000)
    of = pseudo_bag_of(instances, 5)
    assert torch.bincount(of, minlength=5).min() > 850
    assert torch.equal(pseudo_bag_of(instances.flip(0), 5), of.flip(0))


def test_smooth_svm_loss_is_its_formula():
    logits = torch.tensor([[0.3, -0.2], [1.5, 2.0]])
    expected = [math.log(1 + math.exp(1 - 0.2 - 0.3)), math.log(1 + math.exp(1 + 2.0 - 1.5))]
    assert smooth_svm_loss(logits, torch.tensor([0, 0])).item() == pytest.approx(sum(expected) / 2)


@pytest.mark.parametrize("label", [0, 1])
def test_clams_loss_weighs_bag_and_clustered_instances(label):
    torch.manual_seed(0)
    model, instances = CLAM(5, hidden_dim=4, attention_dim=3), bag(30)
    hidden = embedded(model, instances)
    attention = gated_attention(model.attention, hidden)
    z = pooled(attention, hidden)
    p = torch.sigmoid(model.classifier.weight[0] @ z + model.classifier.bias[0])
    ranked = attention.argsort(descending=True).tolist()
    losses = []
    for i, speaks in [(i, 1) for i in ranked[:8]] + [(i, 0) for i in ranked[-8:]]:
        s = model.clusters[label].weight @ hidden[i] + model.clusters[label].bias
        losses.append(torch.log(1 + (1 + s[1 - speaks] - s[speaks]).exp()))
    expected = 0.7 * -torch.log(p if label else 1 - p) + 0.3 * sum(losses) / 16
    torch.testing.assert_close(model.loss(instances, torch.tensor(label), torch.Generator()), expected)


def test_the_pseudo_inverse_inverts():
    matrix = (torch.randn(20, 20, generator=torch.Generator().manual_seed(0)) + 8 * torch.eye(20)).softmax(1)
    torch.testing.assert_close(pseudo_inverse(matrix) @ matrix, torch.eye(20), atol=1e-3, rtol=0)


def test_attention_of_few_tokens_is_the_exact_softmax_and_of_many_near_it():
    torch.manual_seed(0)
    layer = NystromAttention(8, 2)
    for n, tolerance in ((40, 1e-6), (300, 0.02)):
        tokens = 0.5 * torch.randn(1, n, 8)
        q, k, v = (part.view(n, 2, 4).transpose(0, 1) for part in layer.to_qkv(tokens)[0].chunk(3, dim=1))
        exact = (q @ k.mT / 2).softmax(2)
        mixed, first = layer(tokens)
        torch.testing.assert_close(mixed[0], layer.out((exact @ v).transpose(0, 1).flatten(1)), atol=tolerance, rtol=0)
        torch.testing.assert_close(first[0], exact[:, 0].mean(0), atol=tolerance, rtol=0)


def test_transmils_attention_belongs_to_the_instances_and_its_evidence_to_each_alone():
    torch.manual_seed(0)
    model, instances = TransMIL(5, dim=16, heads=2).eval(), bag(10)
    logits, attention = model(instances.unsqueeze(0))
    assert logits.shape == (1, 2)
    assert attention.shape == (1, 10)
    probability, scores = model.assess(instances)
    assert probability == pytest.approx(logits.softmax(1)[0, 1].item(), abs=1e-6)
    alone = torch.tensor([model.assess(one.unsqueeze(0))[0] for one in instances])
    torch.testing.assert_close(scores.float(), alone / (1 - alone), rtol=1e-3, atol=1e-5)
