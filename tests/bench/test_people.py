import numpy as np
import pytest

from bench.people import people_bags
from cytomil.bags.images import encode_image
from cytomil.bags.instance_labels import read_instance_labels
from cytomil.bags.manifest import read_manifest


@pytest.fixture
def data(tmp_path):
    """Six infected and two healthy people, 18 normal cells each, 6 parasitised ones of the infected."""
    rng = np.random.default_rng(0)
    for name in ("H1", "H2", *(f"P{i}" for i in range(6))):
        for kind, n in (("uninfected", 18), ("parasitized", 6 if name.startswith("P") else 0)):
            folder = tmp_path / "data" / "cells" / kind / name
            folder.mkdir(parents=True)
            for i in range(n):
                (folder / f"{i}.jpg").write_bytes(encode_image(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)))
    return tmp_path / "data"


@pytest.mark.parametrize(("healthy", "people", "positive"), [(False, 6, 3), (True, 8, 6)])
def test_a_bag_is_a_person_with_the_wanted_share_of_witnesses(data, tmp_path, healthy, people, positive):
    out = tmp_path / "bags"
    out.mkdir()
    rows = read_manifest(people_bags(data, out, 0.1, seed=0, healthy=healthy)).rows
    assert len({row.patient_id for row in rows}) == len(rows) == people
    assert sum(row.label for row in rows) == positive
    for row in rows:
        labels = list(read_instance_labels(out / row.path).values())
        assert (labels.count(0), labels.count(1)) == (18, 2 * row.label)
        assert row.label or not row.witness_rate
        assert healthy or row.patient_id.startswith("P")
