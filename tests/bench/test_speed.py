import numpy as np

from bench.one_at_a_time import embed_one_at_a_time
from cytomil.bags.images import open_image
from cytomil.encoders.bundle import load_bundle
from cytomil.encoders.engines import open_engine
from cytomil.features.embed import embed_in_orientations
from cytomil.layer import Layer


def test_the_loop_gives_what_the_engines_give(encoder_folder, cell_image, tmp_path):
    bundle, layer = load_bundle(encoder_folder), Layer("h")
    files = []
    for i in range(5):
        files.append(tmp_path / f"{i}.png")
        files[-1].write_bytes(cell_image(i, size=40))
    pixels = np.stack([bundle.transform(open_image(file.read_bytes(), file.name)) for file in files])
    eager = open_engine(bundle, layer, "eager", "cpu", print)
    for n in (1, 2):
        found = embed_one_at_a_time(files, bundle.encoder, bundle.transform, layer, n)
        np.testing.assert_allclose(found, embed_in_orientations(eager.embed, pixels, n), rtol=1e-3, atol=1e-4)
