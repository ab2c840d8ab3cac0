import pytest

from cytomil.mil.weakness import FEW_BAGS, weaknesses


def card(n, auroc, low, high):
    return {"trained_on": {"bags": n}, "held_out": {"auroc": auroc, "auroc_interval": [low, high]}}


@pytest.mark.parametrize(
    ("facts", "titles"),
    [
        (card(60, 0.9, 0.8, 0.95), []),
        (card(FEW_BAGS, 0.9, 0.8, 0.95), []),
        (card(18, 0.9, 0.7, 0.97), ["LEARNT FROM 18 SLIDES"]),
        (card(60, 0.55, 0.4, 0.7), ["MAY BE NO BETTER THAN CHANCE"]),
        (card(6, 1.0, 0.5, 1.0), ["MAY BE NO BETTER THAN CHANCE", "LEARNT FROM 6 SLIDES"]),
        (card(60, 0.2, 0.1, 0.3), ["WORSE THAN CHANCE"]),
    ],
)
def test_weaknesses_follow_the_interval_and_the_number_of_slides(facts, titles):
    found = weaknesses(facts)
    assert [one.title for one in found] == titles
    for one in found:
        assert f"AUROC {facts['held_out']['auroc']:.2f}, 95 % interval" in one.text
