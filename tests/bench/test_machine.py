import pytest

from bench.machine import FEATURES, cpu_features, layer_gflop
from cytomil.encoders.architecture import Architecture, Encoder
from cytomil.layer import Layer


def test_processor_features(tmp_path):
    told = tmp_path / "cpuinfo"
    told.write_text("model name\t: Some Processor\nflags\t\t: fpu avx2 fma avx512_vnni nx\nflags\t\t: fpu\n")
    assert cpu_features(told) == ["avx2", "fma", "avx512_vnni"]
    assert cpu_features(tmp_path / "none") == []
    assert set(cpu_features()) <= set(FEATURES)


def test_work_of_a_forward_pass():
    # ResNet-18 at 224 px: 1.81 G multiply-adds by the paper's table 1 (arXiv 1512.03385), two operations each.
    encoder = Encoder(Architecture(stem="standard", projection_dim=0))
    assert layer_gflop(encoder, Layer("h"), 224) == pytest.approx(2 * 1.81, rel=0.02)
    assert layer_gflop(encoder, Layer("h"), 64) == pytest.approx(4 * layer_gflop(encoder, Layer("h"), 32), rel=0.02)
