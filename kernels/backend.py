"""Which implementation an op runs: by device, or by ``LORAFUSION_BACKEND``.

Every op is a folder with one module per backend, and each module has a function of the op's name.
"""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType

import torch

from lorafusion.errors import KernelError

BACKENDS = ("reference", "cpu", "triton")
VARIABLE = "LORAFUSION_BACKEND"


def choose_backend(device: torch.device) -> str:
    """The name of the backend for tensors on ``device``.

    Raises:
        KernelError: ``LORAFUSION_BACKEND`` names none.
    """
    name = os.environ.get(VARIABLE) or ("cpu" if device.type == "cpu" else "triton")
    if name not in BACKENDS:
        raise KernelError(
            f"{VARIABLE} is {name!r}; allowed: {', '.join(BACKENDS)}. "
            "Unset it to let the device decide."
        )
    return name


@functools.cache
def implementation(op: str, backend: str) -> ModuleType:
    """The module of one op for one backend. Triton is imported here and nowhere earlier.

    Raises:
        KernelError: The backend's library is not installed.
    """
    try:
        return importlib.import_module(f"lorafusion.kernels.{op}.{backend}")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise KernelError(
            f"the op {op!r} needs triton for tensors on a GPU, and it is not installed; "
            f"`pip install triton` installs it, and {VARIABLE}=reference runs without it, slowly."
        ) from error
