import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cytomil.mil.aggregators.base import top_count
from cytomil.mil.aggregators.pooling import TopPooling


def model(share):
    torch.manual_seed(0)
    return TopPooling(5, share).eval()


def bag(n, seed=0):
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


def test_a_share_of_one_is_logistic_regression_of_the_mean_embedding():
    mean, instances = model(1.0), bag(30)
    expected = torch.sigmoid(mean.linear(instances.mean(dim=0)))
    assert mean.assess(instances)[0] == pytest.approx(float(expected.detach()), abs=1e-6)


def test_a_share_of_nought_is_the_greatest_instance():
    greatest, instances = model(0.0), bag(30)
    assert greatest.assess(instances)[0] == pytest.approx(greatest.linear(instances).max().sigmoid().item(), abs=1e-6)


@given(st.integers(1, 60), st.floats(0.01, 1.0), st.integers(0, 99))
def test_the_bags_logit_is_the_mean_of_its_top(n, share, seed):
    pooling, instances = model(share), bag(n, seed)
    ranked = sorted(pooling.linear(instances).flatten().tolist(), reverse=True)
    k = max(1, round(share * n))
    assert pooling.pool(pooling.instance_logits(instances)).item() == pytest.approx(sum(ranked[:k]) / k, abs=1e-5)


def test_an_instances_score_is_the_odds_of_it_alone():
    pooling, instances = model(0.2), bag(9)
    alone = torch.tensor([pooling.assess(instances[i : i + 1])[0] for i in range(9)])
    torch.testing.assert_close(pooling.assess(instances)[1].float(), alone / (1 - alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("label", [0, 1])
def test_the_loss_is_cross_entropy(label):
    pooling, instances = model(0.5), bag(9)
    probability = pooling.assess(instances)[0]
    expected = -torch.tensor(probability if label else 1 - probability).log()
    loss = pooling.loss(instances, torch.tensor(label), torch.Generator())
    torch.testing.assert_close(loss.detach(), expected.float())


@given(st.integers(1, 1000), st.floats(0, 1))
def test_at_least_one_and_at_most_all_are_pooled(n, share):
    assert 1 <= top_count(n, share) <= n
    assert top_count(n, 1.0) == n
