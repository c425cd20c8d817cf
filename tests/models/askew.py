"""A base whose weights a mapped file has at odd addresses, as many files do."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

# Behind the eight bytes that say how long the header is.
_PREFIX = 8


def make_askew(folder: Path) -> None:
    """Pad the header of the one file, so that its first tensor lies 8 bytes behind a 16th."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for pad in range(0, 64, 8):
        save_file(tensors, file, {"format": "pt", "pad": "x" * pad})
        header = int.from_bytes(file.read_bytes()[:_PREFIX], "little")
        if (_PREFIX + header) % 16 == 8:
            return
    raise AssertionError("no header has such a length")
