"""The colours are told apart by people with any of the common kinds of colour vision."""

from __future__ import annotations

from itertools import combinations

import pytest

from lorafusion.plans import colours

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
SIGHT = {
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}


def seen(colour: str, sight: str) -> tuple[float, float, float]:
    """CIELAB of the colour as seen."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    r, g, b = (
        min(1, max(0, sum(m * c for m, c in zip(row, linear, strict=True)))) for row in SIGHT[sight]
    )
    xyz = (
        (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.95047,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.08883,
    )
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def apart(first: str, second: str, sight: str) -> float:
    pairs = zip(seen(first, sight), seen(second, sight), strict=True)
    return sum((a - b) ** 2 for a, b in pairs) ** 0.5


@pytest.mark.parametrize("sight", SIGHT)
def test_any_two_jobs_differ(sight: str) -> None:
    least = 25 if sight == "normal" else 13
    for i, j in combinations(range(len(colours.PALETTE)), 2):
        for shade in (colours.base, colours.forward, colours.backward):
            assert apart(shade(i), shade(j), sight) >= least, (i, j, shade.__name__)


@pytest.mark.parametrize("sight", SIGHT)
def test_a_backward_is_darker_than_its_forward(sight: str) -> None:
    for i in range(len(colours.PALETTE)):
        assert seen(colours.forward(i), sight)[0] - seen(colours.backward(i), sight)[0] >= 20


def test_colours_repeat_after_the_last() -> None:
    count = len(colours.PALETTE)
    assert colours.base(count + 2) == colours.base(2) == colours.PALETTE[2]
    assert colours.forward(count) == colours.forward(0) != colours.forward(1)
