from __future__ import annotations

from itertools import accumulate, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import eager_attention_forward

from lorafusion.errors import ModelError
from lorafusion.kernels.attention import samples
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


RULES: dict[str, dict[str, Any]] = {
    "window": {"sliding_window": 3},
    "window of one row": {"sliding_window": 1},
    "window longer than any sample": {"sliding_window": 40},
    "softcap": {"softcap": 0.7},
    "both": {"sliding_window": 4, "softcap": 0.7, "scaling": 0.9},
    "sinks": {"s_aux": torch.linspace(-1, 2, HEADS, dtype=torch.float64)},
    "all": {"sliding_window": 4, "softcap": 0.7, "s_aux": torch.ones(HEADS, dtype=torch.float64)},
}


def defined(tensors: list[torch.Tensor], lengths: list[int], rules: dict[str, Any]) -> torch.Tensor:
    """Row by row from the formula: no mask, no block, nothing packed."""
    query, key, value = tensors
    key, value = (t.repeat_interleave(HEADS // KV_HEADS, dim=1) for t in (key, value))
    window = rules.get("sliding_window", 10**6)
    out = []
    for start, stop in pairwise([0, *accumulate(lengths)]):
        for row in range(start, stop):
            seen = slice(max(start, row - window + 1), row + 1)
            scores = query[0, :, row, None] @ key[0, :, seen].mT * rules.get("scaling", WIDTH**-0.5)
            if "softcap" in rules:
                scores = rules["softcap"] * torch.tanh(scores / rules["softcap"])
            weights = scores.exp()
            total = weights.sum(dim=-1, keepdim=True)
            if "s_aux" in rules:
                total = total + rules["s_aux"].exp()[:, None, None]
            out.append((weights / total @ value[0, :, seen])[:, 0])
    return torch.stack(out)[None]


@pytest.mark.parametrize("block", [256, 2, 3])
@pytest.mark.parametrize("what", RULES)
def test_windows_caps_and_sinks(what: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the formula, forward and backward, also where a sample takes several blocks."""
    monkeypatch.setattr(samples, "BLOCK_ROWS", block)
    ours, theirs = inputs(), inputs()
    with bind_layout(layout()):
        found = packed_attention(nn.Module(), *ours, None, **RULES[what])[0]
    expected = defined(theirs, LENGTHS, RULES[what])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(expected)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our.grad, their.grad, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("what", RULES)
def test_rules_keep_samples_apart(what: str) -> None:
    """NaN in one sample does not reach another, forward or backward."""
    for changed in range(len(LENGTHS)):
        start = sum(LENGTHS[:changed])
        rows = slice(start, start + LENGTHS[changed])
        others = torch.ones(sum(LENGTHS), dtype=torch.bool)
        others[rows] = False
        clean, spoilt = inputs(), inputs()
        for tensor in spoilt:
            tensor.data[:, :, rows] = torch.nan
        with bind_layout(layout()):
            expected, found = (
                packed_attention(nn.Module(), *tensors, None, **RULES[what])[0]
                for tensors in (clean, spoilt)
            )
            assert torch.equal(found[:, others], expected[:, others])
            found.sum().backward()
            expected.sum().backward()
        for tensor, clean_tensor in zip(spoilt, clean, strict=True):
            assert torch.equal(tensor.grad[:, :, others], clean_tensor.grad[:, :, others])


def test_any_order_of_samples_gives_the_same_rows() -> None:
    tensors = inputs()
    pieces = [tensor.split(LENGTHS, dim=2) for tensor in tensors]
    order = [2, 0, 3, 1]
    moved = [torch.cat([piece[i] for i in order], dim=2) for piece in pieces]
    lengths = [LENGTHS[i] for i in order]
    rows = AdapterLayout.build([Segment(-1, 0, 0, range(4), lengths)], {}, training=False)
    with bind_layout(layout()):
        expected = packed_attention(nn.Module(), *tensors, None, **RULES["all"])[0]
    with bind_layout(rows):
        found = packed_attention(nn.Module(), *moved, None, **RULES["all"])[0]
    back = dict(zip(order, found.split(lengths, dim=1), strict=True))
    assert torch.equal(torch.cat([back[i] for i in range(4)], dim=1), expected)


def test_a_softcap_in_bfloat16_is_near_float64() -> None:
    rules = {"softcap": 0.7, "sliding_window": 4}
    with bind_layout(layout()):
        found = packed_attention(nn.Module(), *inputs(torch.bfloat16), None, **rules)[0]
        rounded = [t.detach().bfloat16().double() for t in inputs()]
        exact = packed_attention(nn.Module(), *rounded, None, **rules)[0]
    assert found.dtype == torch.bfloat16
    # Only the output is rounded: 2^-9 at most for each element.
    assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()


def test_equals_the_attention_of_gpt_oss() -> None:
    """transformers' own code for sinks."""
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as eager

    tensors = inputs()
    sinks = RULES["sinks"]["s_aux"]
    module = SimpleNamespace(num_key_value_groups=HEADS // KV_HEADS, training=False, sinks=sinks)
    with bind_layout(layout()):
        found = packed_attention(nn.Module(), *tensors, None, scaling=0.4, s_aux=sinks)[0]
    expected = []
    for query, key, value in zip(*(t.split(LENGTHS, dim=2) for t in tensors), strict=True):
        rows = query.shape[2]
        mask = torch.full((rows, rows), -torch.inf, dtype=query.dtype).triu(1)[None, None]
        expected.append(eager(module, query, key, value, mask, scaling=0.4)[0])
    torch.testing.assert_close(found, torch.cat(expected, dim=1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "option",
    [{"dropout": 0.1}, {"is_causal": False}, {"block_mask": object()}, {"position_bias": 1}],
)
def test_what_it_does_not_do_is_refused_by_name(option: dict[str, Any]) -> None:
    with bind_layout(layout()), pytest.raises(ModelError, match=next(iter(option))):
        packed_attention(nn.Module(), *inputs(), None, **option)


def test_a_layer_that_is_not_causal_is_refused() -> None:
    module = nn.Module()
    module.is_causal = False
    with bind_layout(layout()), pytest.raises(ModelError, match="is_causal"):
        packed_attention(module, *inputs(), None)


def test_options_that_are_off_are_no_options() -> None:
    with bind_layout(layout()):
        expected = packed_attention(nn.Module(), *inputs(), None)[0]
        found = packed_attention(
            nn.Module(),
            *inputs(),
            None,
            sliding_window=None,
            softcap=None,
            use_cache=False,
            is_causal=True,
        )[0]
    assert torch.equal(found, expected)


def test_a_sample_within_the_window_takes_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """No mask is built, so that short samples cost what they cost without a window."""
    monkeypatch.setattr(samples, "_in_blocks", lambda *_: pytest.fail("took blocks"))
    with bind_layout(layout()):
        expected = packed_attention(nn.Module(), *inputs(), None)[0]
        found = packed_attention(nn.Module(), *inputs(), None, sliding_window=max(LENGTHS))[0]
    assert torch.equal(found, expected)
