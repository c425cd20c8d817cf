"""What libraries say themselves. Run in child processes, by :mod:`lorafusion.doctor.children`."""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorafusion.doctor.requirements import core, installed


def tell(probe: Callable[[], dict[str, Any]]) -> None:
    """Print what ``probe`` finds as the last line, as JSON. The libraries print what they like."""
    try:
        answer = probe()
    except BaseException as error:  # a library that calls sys.exit, too
        answer = {"error": describe(error)}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)  # broken libraries may hang or crash at the end


def describe(error: BaseException) -> str:
    """An exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def libraries() -> dict[str, Any]:
    """Import every package that is needed but torch: its error, or None."""
    found: dict[str, Any] = {}
    for requirement in core():
        if requirement.name == "torch":
            continue
        try:
            importlib.import_module(requirement.module)
            found[requirement.name] = None
        except BaseException as error:
            found[requirement.name] = describe(error)
    return found


def torch() -> dict[str, Any]:
    """Version, build, threads and devices of torch."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        devices = [_device(i) for i in range(torch.cuda.device_count())]
        available = torch.cuda.is_available()
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "loops": _loops(),
        "devices": devices if available else [],
        "reason": " ".join(str(each.message) for each in caught)[:300],
    }


def _loops() -> dict[str, str | None]:
    """The compiled loops of the CPU backend: the build that was loaded, or why none was."""
    from lorafusion.kernels.native.library import library

    try:
        loaded = library()
    except OSError as error:
        return {"build": None, "error": describe(error)}
    return {"build": Path(loaded._name).name if loaded else None, "error": None}


def _device(index: int) -> dict[str, Any]:
    import torch

    about = torch.cuda.get_device_properties(index)
    try:
        ones = torch.ones(64, 64, device=f"cuda:{index}")
        error = None if float((ones @ ones).sum()) == 64**3 else "a product came out wrong"
    except RuntimeError as problem:
        error = describe(problem)
    return {
        "name": about.name,
        "bytes": about.total_memory,
        "capability": f"{about.major}.{about.minor}",
        "error": error,
    }


def triton() -> dict[str, Any]:
    """Run a small kernel: on the device, or interpreted where there is none."""
    import torch

    on_device = torch.cuda.is_available()
    if not on_device:
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
    from lorafusion.doctor.triton_kernel import doubles_rightly

    right = doubles_rightly("cuda" if on_device else "cpu")
    return {"version": installed("triton"), "on_device": on_device, "right": right}


def self_test() -> dict[str, Any]:
    """Train two tiny jobs, and compare."""
    from lorafusion.launch.environment import prepare_environment

    prepare_environment()
    from lorafusion.doctor.tiny_run import train_and_compare

    return train_and_compare()
