"""Find the compiled loops: the widest build beside this file that the processor runs."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.machinery
import os
from pathlib import Path

from lorafusion.errors import KernelError

BUILDS = {4: "lora_v4", 3: "lora_v3", 0: "lora_generic"}
"""Level of x86-64 -> build. v4 has AVX-512, v3 AVX2; generic runs anywhere."""
VARIABLE = "LORAFUSION_NATIVE"
FUNCTIONS = (
    *("down", "up", "grad_down", "grad_input", "grad_a"),
    *("attention", "attention_backward"),
    "cross_entropy",
    *("rms_norm", "rms_norm_backward", "rotary", "gated", "gated_backward"),
)


def library() -> ctypes.CDLL | None:
    """The loops, or None where they were not built or ``LORAFUSION_NATIVE=0`` turns them off.

    Raises:
        KernelError: They were built from older code.
    """
    return None if os.environ.get(VARIABLE) == "0" else _load()


@functools.cache
def _load() -> ctypes.CDLL | None:
    importlib.import_module("torch")  # its OpenMP must come first: ours then shares its threads
    generic = _path(BUILDS[0])
    if generic is None:
        return None
    level = ctypes.CDLL(str(generic)).lorafusion_level()
    path = _path(BUILDS[level]) or generic
    found = ctypes.CDLL(str(path))
    for name in FUNCTIONS:
        function = getattr(found, f"lorafusion_{name}", None)
        if function is None:
            raise KernelError(
                f"{path.name} was built from older code: it has no {name}. Install lorafusion "
                f"anew (`pip install -e .` in a checkout), or set {VARIABLE}=0 to run without it."
            )
        function.restype = None
    return found


def _path(build: str) -> Path | None:
    endings = importlib.machinery.EXTENSION_SUFFIXES
    files = (Path(__file__).with_name(build + ending) for ending in endings)
    return next((file for file in files if file.is_file()), None)
