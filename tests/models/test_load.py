"""Where the weights of a loaded base lie."""

from __future__ import annotations

from pathlib import Path

import torch

from lorafusion.models.load import load_base
from tests.conftest import make_llama
from tests.models.askew import make_askew


def test_aligned_weights_lie_where_torch_would_put_them(tmp_path: Path) -> None:
    make_llama(tmp_path)
    make_askew(tmp_path)
    mapped = load_base(str(tmp_path), "float32").tensors
    aligned = load_base(str(tmp_path), "float32", aligned=True).tensors
    assert {weight.data_ptr() % 16 for weight in mapped.values()} == {8}
    assert {weight.data_ptr() % 64 for weight in aligned.values()} == {0}
    assert all(torch.equal(aligned[name], weight) for name, weight in mapped.items())
