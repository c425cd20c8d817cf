"""A colour per job, lighter for its forwards and darker for its backwards.

Found by a search over random colours of medium lightness and chroma: with 30% white or 28% black
added, any two jobs differ by at least 25 (CIE76), and by 13 as seen with protanopia, deuteranopia
or tritanopia (Machado, Oliveira and Fernandes, 2009). Of the eight colours of Okabe and Ito, two
differ by 5 there. More than eight were too alike, so colours repeat from the ninth job on; the
drawings name the jobs.
"""

from __future__ import annotations

PALETTE = (
    "#3061c2",
    "#d2b347",
    "#b03959",
    "#3b7a10",
    "#e28864",
    "#0b93a9",
    "#cba7f6",
    "#01d8bf",
)
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


def base(job: int) -> str:
    """The colour of the job with this index, as ``#rrggbb``."""
    return PALETTE[job % len(PALETTE)]


def forward(job: int) -> str:
    """The same for its forwards."""
    return _mixed(base(job), _WHITE, 0.30)


def backward(job: int) -> str:
    """The same for its backwards."""
    return _mixed(base(job), _BLACK, 0.28)


def _mixed(colour: str, other: tuple[int, int, int], share: float) -> str:
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    mixed = (round(a + (b - a) * share) for a, b in zip(parts, other, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)
