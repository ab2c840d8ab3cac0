import pytest
import torch

from cytomil.errors import SettingsError
from cytomil.precision import pick_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("vectors", "tiles"), [(True, False), (False, True), (True, True)])
def test_auto_is_bfloat16_where_the_processor_has_it(vectors, tiles, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: vectors)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    assert pick_precision("auto", CPU) is torch.bfloat16
    assert pick_precision("float32", CPU) is torch.float32


def test_auto_is_float32_where_it_would_be_emulated_and_bf16_is_to_be_had_all_the_same(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert pick_precision("auto", CPU) is torch.float32
    assert pick_precision("bf16", CPU) is torch.bfloat16


def test_a_gpu_without_bfloat16_computes_in_float16_and_refuses_bfloat16_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert pick_precision("auto", CUDA) is torch.float16
    assert pick_precision("float16", CPU) is torch.float16
    with pytest.raises(SettingsError, match="--precision float16 or float32"):
        pick_precision("bf16", CUDA)
