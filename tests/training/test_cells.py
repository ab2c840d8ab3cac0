import numpy as np
import torch

from cytomil.bags.bag_file import ALL, Draw
from cytomil.bags.manifest import read_manifest
from cytomil.encoders.transform import CellTransform
from cytomil.progress import Silent
from cytomil.training.cells import bytes_needed, count, load_training_cells
from cytomil.training.instance_label_access import read_training_instance_labels

TRANSFORM = CellTransform(16, 0.8)


def test_of_each_bag_the_drawn_cells_are_decoded(bags_folder):
    manifest = read_manifest(bags_folder)
    rows, draw = manifest.select("train"), Draw(4, 7)
    whole, drawn = (load_training_cells(manifest, rows, TRANSFORM, Silent(), some) for some in (ALL, draw))
    places = np.concatenate(
        [
            np.flatnonzero(whole.bag.numpy() == i)[draw.indices(row.bag_id, row.n_instances)]
            for i, row in enumerate(rows)
        ]
    )
    assert len(drawn) == 4 * len(rows) == count(rows, draw)
    assert torch.equal(drawn.pixels, whole.pixels[places])
    assert torch.equal(drawn.bag, whole.bag[places])
    assert torch.equal(drawn.is_positive, whole.is_positive[places])
    assert bytes_needed(rows, TRANSFORM.image_size, draw) == drawn.pixels.numel()
    labels = [
        read_training_instance_labels(manifest, rows, cells, some) for cells, some in ((whole, ALL), (drawn, draw))
    ]
    assert torch.equal(labels[1], labels[0][places])
