"""The GPU's side of ``lorafusion tune``: times one op, and a whole linear against the others."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch

from lorafusion.bench.linear import FROZEN, OURS, UNFUSED, Case, Ours, Tensors, cuda_timer, measure
from lorafusion.errors import KernelError
from lorafusion.kernels.backend import implementation
from lorafusion.kernels.config_files import HALF
from lorafusion.kernels.launch_configs import (
    LaunchConfig,
    architecture,
    default_config,
    tuned_configs,
)
from lorafusion.kernels.tune import TuneShape

ROUNDS = 20
# Of the outputs, relative by norm, against the default configuration's.
_TOLERANCE = {"bfloat16": 1e-2, "float32": 1e-5}
DROPOUT = 0.1


class GpuBench:
    """Implements :class:`lorafusion.kernels.tune.Bench` on a GPU."""

    def __init__(self, device: str) -> None:
        self._device = device

    def time(self, op: str, shape: TuneShape, config: LaunchConfig) -> float:
        """The median over some launches, with a cold cache, as triton's ``do_bench`` takes it.

        Raises:
            KernelError: The result differs from that of the default configuration.
        """
        from triton.testing import do_bench

        run, expected = self.op(op, shape)
        _compare(run(config=config), expected, _TOLERANCE[_dtype(shape)])
        milliseconds: Any = do_bench(functools.partial(run, config=config), return_mode="median")
        return milliseconds / 1e3

    def compare(self, shape: TuneShape) -> dict[str, float]:
        """Medians of rounds in turns."""
        tuned_configs.cache_clear()  # what was just found is to be used
        names = (FROZEN, UNFUSED, OURS)
        timing = measure(_case(shape), names, rounds=ROUNDS, device=self._device, timer=cuda_timer)
        return {name: statistics.median(timing.seconds(name)) for name in names}

    @functools.lru_cache(maxsize=1)  # noqa: B019 - lives as long as the command
    def op(self, name: str, shape: TuneShape) -> tuple[Callable[..., Any], Any]:
        """An op on the shape's tensors, and what it gives in its default configuration."""
        ours = Ours(Tensors(_case(shape), self._device))
        ours.prepare()
        x, dy, weight = ours.x.detach(), ours.tensors.dy, ours.tensors.weight
        on = {"layout": ours.layout, "adapters": ours.adapters}
        s = torch.ones(len(x), -(-shape.rank // 16) * 16, device=self._device)
        s[:, shape.rank :] = 0
        slots = range(shape.jobs)
        arguments: dict[str, dict[str, Any]] = {
            "down": {"x_TK": x},
            "up": {"x_TK": x, "weight_NK": weight, "bias_N": None, "s_TR": s},
            "grad_down": {"dy_TN": dy, "s_TR": s, "slots": slots},
            "grad_input": {"dy_TN": dy, "weight_NK": weight, "ds_TR": s},
            "grad_a": {"ds_TR": s, "x_TK": x, "slots": slots},
        }
        run = getattr(implementation(name, "triton"), name)
        default = default_config(name, x.dtype, architecture(x.device))
        run = functools.partial(run, **arguments[name], **on)
        return run, run(config=default)


def _case(shape: TuneShape) -> Case:
    return Case(shape.rows, shape.K, shape.N, shape.jobs, shape.rank, _dtype(shape), DROPOUT)


def _dtype(shape: TuneShape) -> str:
    return "bfloat16" if shape.dtype == HALF else "float32"


def _compare(found: Any, expected: Any, tolerance: float) -> None:
    """Tensors, or tuples or tables of them."""
    if isinstance(expected, torch.Tensor):
        difference = (found.float() - expected.float()).norm()
        if not difference <= tolerance * expected.float().norm():
            raise KernelError(f"its result is off by {difference:.2g}")
    elif isinstance(expected, dict):
        for key, tensor in expected.items():
            _compare(found[key], tensor, tolerance)
    else:
        for one, other in zip(found, expected, strict=True):
            _compare(one, other, tolerance)
