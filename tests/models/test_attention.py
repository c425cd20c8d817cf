from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import eager_attention_forward

from lorafusion.errors import ModelError
from lorafusion.kernels.binding import bind_layout
from lorafusion.kernels.layout import AdapterLayout, Segment
from lorafusion.models.attention import packed_attention

HEADS, KV_HEADS, WIDTH = 6, 2, 8
LENGTHS = [5, 1, 9, 2]


def layout() -> AdapterLayout:
    """Two jobs: three samples and one."""
    return AdapterLayout.build(
        [Segment(0, 1, 1, range(3), LENGTHS[:3]), Segment(-1, 0, 1, range(1), LENGTHS[3:])],
        {},
        training=True,
    )


def inputs(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    torch.manual_seed(0)
    rows = sum(LENGTHS)
    return [
        torch.randn(1, heads, rows, WIDTH, dtype=torch.float64).to(dtype).requires_grad_()
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]


def packed(tensors: list[torch.Tensor], scaling: float | None = None) -> torch.Tensor:
    with bind_layout(layout()):
        return packed_attention(nn.Module(), *tensors, None, scaling=scaling)[0]


@pytest.mark.parametrize("scaling", [None, 0.05])
def test_each_sample_alone(scaling: float | None) -> None:
    """Against the definition in float64, and transformers' eager code, whose softmax is float32."""
    ours, theirs = inputs(), inputs()
    module = SimpleNamespace(num_key_value_groups=HEADS // KV_HEADS, training=False)
    eager = []
    pieces = []
    for query, key, value in zip(*(tensor.split(LENGTHS, dim=2) for tensor in theirs), strict=True):
        length = query.shape[2]
        mask = torch.full((length, length), -torch.inf, dtype=query.dtype).triu(1)[None, None]
        scale = WIDTH**-0.5 if scaling is None else scaling
        eager.append(eager_attention_forward(module, query, key, value, mask, scale)[0])
        shared = [tensor.repeat_interleave(HEADS // KV_HEADS, dim=1) for tensor in (key, value)]
        scores = query @ shared[0].mT * scale + mask
        pieces.append((scores.softmax(dim=-1) @ shared[1]).transpose(1, 2))
    expected = torch.cat(pieces, dim=1)
    found = packed(ours, scaling)
    assert found.shape == (1, sum(LENGTHS), HEADS, WIDTH)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, torch.cat(eager, dim=1), rtol=1e-5, atol=1e-6)
    weights = torch.randn_like(expected)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our.grad, their.grad, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("changed", range(len(LENGTHS)))
def test_nothing_passes_between_samples(changed: int) -> None:
    """Not a bit: NaN in one sample does not reach another, forward or backward."""
    clean, spoilt = inputs(), inputs()
    start = sum(LENGTHS[:changed])
    rows = slice(start, start + LENGTHS[changed])
    for tensor in spoilt:
        tensor.data[:, :, rows] = torch.nan
    expected, found = packed(clean), packed(spoilt)
    others = torch.ones(sum(LENGTHS), dtype=torch.bool)
    others[rows] = False
    assert torch.equal(found[:, others], expected[:, others])
    assert found[:, rows].isnan().all()
    expected.sum().backward()
    found.sum().backward()
    for tensor, clean_tensor in zip(spoilt, clean, strict=True):
        assert torch.equal(tensor.grad[:, :, others], clean_tensor.grad[:, :, others])


def test_no_row_sees_a_later_one() -> None:
    tensors, changed = inputs(), inputs()
    for tensor in changed[1:]:
        tensor.data[:, :, 3] += 1  # the fourth row of the first sample
    found, expected = packed(changed), packed(tensors)
    assert torch.equal(found[:, :3], expected[:, :3])
    assert not torch.equal(found[:, 3], expected[:, 3])
    assert not torch.equal(found[:, 4], expected[:, 4])


def test_bfloat16_is_near_float64() -> None:
    found = packed(inputs(torch.bfloat16))
    assert found.dtype == torch.bfloat16
    exact = packed(inputs())
    assert (found.double() - exact).norm() / exact.norm() < 1e-2


@pytest.mark.parametrize(
    "option",
    [{"sliding_window": 16}, {"softcap": 30.0}, {"s_aux": torch.zeros(1)}, {"dropout": 0.1}],
)
def test_what_it_does_not_do_is_refused_by_name(option: dict[str, object]) -> None:
    with bind_layout(layout()), pytest.raises(ModelError, match=next(iter(option))):
        packed_attention(nn.Module(), *inputs(), None, **option)


def test_options_that_are_off_are_no_options() -> None:
    with bind_layout(layout()):
        packed_attention(nn.Module(), *inputs(), None, sliding_window=None, use_cache=False)


def test_a_sliding_window_in_the_model_is_refused(tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    from lorafusion.models.load import load_base
    from lorafusion.models.stage import Stage

    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = MistralConfig(
        vocab_size=64, num_hidden_layers=1, num_key_value_heads=1, sliding_window=4, **small
    )
    MistralForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="sliding_window"):
        Stage(load_base(str(tmp_path), "float32"))
