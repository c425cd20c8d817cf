"""Measures a profile of a run: the base is loaded, its jobs' data are not needed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from lorafusion.adapters.lora import LoraConfig
from lorafusion.launch.local import pinned_arithmetic
from lorafusion.machine import describe_machine
from lorafusion.models.load import Base
from lorafusion.planner.cost import Linear
from lorafusion.planner.devices import find_device
from lorafusion.profiling.fitting import Fit, fit_parts
from lorafusion.profiling.key import ProfileKey
from lorafusion.profiling.measuring import Budget, Measured, Scope, measure
from lorafusion.profiling.profile import Pass, Profile
from lorafusion.profiling.sizes import base_bytes
from lorafusion.profiling.transfer import measure_transfer
from lorafusion.profiling.workbench import Workbench
from lorafusion.training.memory import device_memory
from lorafusion.training.peak import device_peak

__all__ = ["Subject", "make_profile"]


@dataclass(frozen=True)
class Subject:
    """What is profiled.

    Attributes:
        base: Whole, where it computes.
        adapter: As the jobs', but for the rank.
        scope: Ranks and lengths of interest.
        ranks: Of the adapters of all jobs.
        threads: A pass is measured with each number.
        seconds: About, for each pass.
    """

    base: Base
    adapter: LoraConfig
    scope: Scope
    ranks: tuple[int, ...]
    threads: tuple[int, ...]
    seconds: float


def make_profile(
    subject: Subject,
    key: ProfileKey,
    *,
    progress: Callable[[str, float], None] = lambda _what, _share: None,
) -> Profile:
    """Measure and fit.

    Args:
        subject: What.
        key: Under which it will be found.
        progress: Told what is being done, and the share of it that is.

    Raises:
        ProfileError: Too little memory, or the two processes that measure transfers failed.
    """
    began = time.perf_counter()
    base = subject.base
    device = next(base.model.parameters()).device
    progress("transfers between stages", 0.0)
    fixed, each = measure_transfer()
    row = base.dtype.itemsize * base.model.config.get_text_config().hidden_size
    profile = find_device("cpu" if device.type == "cpu" else "h100")
    sizes = base_bytes(base, subject.adapter.target_modules, subject.ranks, profile)
    bench = Workbench(base, subject.adapter)
    passes: list[Pass] = []
    for threads in subject.threads:
        with pinned_arithmetic(threads):
            what = f"microbatches, {threads} thread{'s' if threads > 1 else ''} a stage"
            budget = Budget(subject.seconds, device_memory(device, 1))
            measured = measure(
                bench, subject.scope, budget, progress=lambda share, w=what: progress(w, share)
            )
        source = f"measured with {threads} threads on {key.processor}"
        fit = fit_parts(measured, sizes, Linear(fixed=fixed, token=each * row), source)
        passes.append(_pass(threads, measured, fit))
    peak = device_peak(device, base.dtype)
    return Profile(
        key=key,
        base_model=base.name,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine(),
        seconds=round(time.perf_counter() - began, 1),
        peak_flops=peak.flops,
        peak_source=peak.source,
        passes=tuple(passes),
    )


def _pass(threads: int, measured: Sequence[Measured], fit: Fit) -> Pass:
    stage = fit.parts.model([range(fit.parts.layers)]).stages[0]
    probes = tuple(
        {
            **dataclasses.asdict(one.probe.counts),
            "held_out": one.held,
            "forward_s": one.timing.forward,
            "backward_s": one.timing.backward,
            "loss_s": one.timing.loss,
            "steps_s": one.timing.steps,
            "predicted_s": stage.seconds(one.probe.counts),
            "saved_bytes": one.layer_bytes + one.head_bytes,
        }
        for one in measured
    )
    return Pass(threads, fit.parts, fit.error, probes)
