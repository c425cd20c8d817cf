"""Which engine a GPU takes: all combinations of rules, dtypes, packages and GPUs."""

from __future__ import annotations

import itertools

import pytest
import torch

from lorafusion.kernels.attention import engines, flash, flex, gpu
from lorafusion.kernels.attention.engines import (
    ENGINES,
    FLASH,
    FLEX,
    SAMPLES,
    VARLEN,
    Asked,
    Machine,
    choose,
    why_not,
)

ALL = frozenset({VARLEN, FLASH, FLEX, SAMPLES})
PLAIN = frozenset({VARLEN, FLEX, SAMPLES})
BARE = frozenset({VARLEN, SAMPLES})
AMPERE, TURING, AMD = (8, 0), (7, 5), None
HALVES = (torch.float16, torch.bfloat16)
FLAGS = list(itertools.product([False, True], repeat=3))


def expected(asked: Asked, capability: tuple[int, int] | None, packages: frozenset[str]) -> str:
    """The table of docs/kernels.md, once more and in another form."""
    flash = asked.dtype in HALVES and capability == AMPERE
    flash = flash and asked.width == asked.value_width and asked.width in (8, 64, 256)
    if flash and not asked.softcap and not asked.sinks:
        return VARLEN
    if flash and not asked.sinks and FLASH in packages:
        return FLASH
    wide = 16 <= min(asked.width, asked.value_width) and asked.width == asked.value_width <= 256
    fits = asked.dtype != torch.float64 and not asked.deterministic and wide
    return FLEX if fits and FLEX in packages else SAMPLES


@pytest.mark.parametrize("packages", [ALL, PLAIN, BARE], ids=["all", "no flash-attn", "no triton"])
@pytest.mark.parametrize("capability", [AMPERE, TURING, AMD], ids=["sm_80", "sm_75", "AMD"])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_every_combination(dtype, capability, packages):
    seen = set()
    for softcap, sinks, deterministic in FLAGS:
        for width, value_width in [(64, 64), (8, 8), (20, 20), (256, 256), (512, 512), (64, 128)]:
            asked = Asked(dtype, width, value_width, softcap, sinks, deterministic)
            engine = choose(asked, Machine(capability, packages))
            assert engine.name == expected(asked, capability, packages), asked
            seen.add(engine.name)
    assert SAMPLES in seen


def test_the_last_engine_does_everything():
    engine = ENGINES[-1]
    for softcap, sinks, deterministic in FLAGS:
        asked = Asked(torch.float64, 7, 9, softcap, sinks, deterministic)
        assert why_not(engine, asked, Machine(None, frozenset({SAMPLES}))) is None


def test_every_engine_has_a_function():
    assert set(gpu.RUN) == {engine.name for engine in ENGINES} == ALL


def test_reasons_are_said():
    by_name = {engine.name: engine for engine in ENGINES}
    asked = Asked(torch.float32, 64, 64, softcap=True, sinks=False, deterministic=True)
    reasons = {
        name: why_not(engine, asked, Machine((9, 0), PLAIN)) for name, engine in by_name.items()
    }
    assert reasons == {
        VARLEN: "does no torch.float32",
        FLASH: "no flash is installed",
        FLEX: "is not deterministic",
        SAMPLES: None,
    }


@pytest.mark.parametrize(
    ("version", "there"), [("2.6.3", False), ("2.7.0.post2", True), (None, False)]
)
def test_an_old_flash_attn_is_not_used(version, there, monkeypatch):
    def lookup(name: str) -> str:
        assert name == "flash-attn"
        if version is None:
            raise engines.importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(engines.importlib.metadata, "version", lookup)
    assert (FLASH in engines.installed.__wrapped__()) == there


def test_torchs_own_takes_what_it_is_passed():
    """The installed torch's signature, without a GPU to run it on."""
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    parameters = inspect.signature(varlen_attn).parameters
    assert list(parameters)[:7] == [
        *("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k")
    ]
    assert {"scale", "window_size", "enable_gqa"} <= set(parameters)


@pytest.mark.parametrize("window", [None, 1, 2, 128, 129, 130, 300, 5000])
def test_blocks_of_flex_attention(window):
    """No block lies in two samples; what is seen is in a block, and of a whole one all is."""
    lengths, block = (1, 0, 128, 300, 129, 700), flex.BLOCK
    apart = flex._apart(
        tuple(itertools.accumulate(lengths, initial=0)), window, torch.device("cpu")
    )
    mask = apart.mask
    sample = torch.full((apart.rows,), -1)
    sample[apart.row] = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    of_block = sample.view(-1, block).amax(dim=1)
    assert ((sample.view(-1, block) == of_block[:, None]) | (sample.view(-1, block) < 0)).all()
    assert (apart.row[1:] > apart.row[:-1]).all()
    row, column = torch.arange(apart.rows)[:, None], torch.arange(apart.rows)
    seen = (column <= row) & (row - column < (window or 10**6))
    seen &= of_block.repeat_interleave(block)[:, None] == of_block.repeat_interleave(block)
    assert torch.equal(mask.mask_mod(None, None, row, column), seen)
    tiles = seen.view(len(of_block), block, len(of_block), block).transpose(1, 2).flatten(2)
    partly, wholly = (
        _dense(mask.kv_num_blocks, mask.kv_indices),
        _dense(mask.full_kv_num_blocks, mask.full_kv_indices),
    )
    assert torch.equal(wholly, tiles.all(dim=2))
    assert torch.equal(partly, tiles.any(dim=2) & ~wholly)


def _dense(counts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    found = torch.zeros(indices.shape[2:], dtype=torch.bool)
    for row, (count, columns) in enumerate(zip(counts[0, 0], indices[0, 0], strict=True)):
        found[row, columns[:count].long()] = True
    return found


def test_a_block_mask_is_built_once_for_all_layers():
    device = torch.device("cpu")
    assert flex._apart((0, 5, 9), 3, device) is flex._apart((0, 5, 9), 3, device)
    assert flash._offsets((0, 5, 9), device) is flash._offsets((0, 5, 9), device)
    assert flash._offsets((0, 5, 9), device).dtype == torch.int32
