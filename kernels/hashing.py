"""The 64-bit hash behind everything random: dropout masks, initial weights.

SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
A value is a pure function of what it is for, so nothing here has state.
"""

from __future__ import annotations

import hashlib

import torch

GOLDEN = 0x9E3779B97F4A7C15
MASK64 = (1 << 64) - 1
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)


def hash64(*words: int) -> int:
    """Fold integers, in order, into 64 bits: ``h = finalise((h ^ word) + GOLDEN)`` from h = 0."""
    state = 0
    for word in words:
        state = _finalise(((state ^ (word & MASK64)) + GOLDEN) & MASK64)
    return state


def module_key(name: str) -> int:
    """64 bits of a module's full name in the base: the same on every stage and in every slot."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def signed(word: int) -> int:
    """The int64 with the bits of an unsigned 64-bit word: torch has no uint64 arithmetic."""
    word &= MASK64
    return word - (1 << 64) if word >> 63 else word


def fold(state: torch.Tensor, word: torch.Tensor | int) -> torch.Tensor:
    """One step of :func:`hash64` on int64 tensors of any (broadcastable) shapes."""
    if isinstance(word, int):
        word = torch.tensor(signed(word), device=state.device)
    return finalise_((state ^ word).add_(signed(GOLDEN)))


def finalise_(z: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser on an int64 tensor, in place."""
    shifted = torch.empty_like(z)
    for shift, multiplier in zip(_SHIFTS, (*_MULTIPLIERS, None), strict=True):
        # torch shifts int64 arithmetically: the mask clears the copies of the sign.
        torch.bitwise_right_shift(z, shift, out=shifted)
        z ^= shifted.bitwise_and_((1 << (64 - shift)) - 1)
        if multiplier is not None:
            z *= signed(multiplier)
    return z


def _finalise(z: int) -> int:
    z = ((z ^ (z >> 30)) * _MULTIPLIERS[0]) & MASK64
    z = ((z ^ (z >> 27)) * _MULTIPLIERS[1]) & MASK64
    return z ^ (z >> 31)
