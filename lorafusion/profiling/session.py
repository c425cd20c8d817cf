"""A whole profile of a job file: its jobs' samples, the base, the measurements, the advice."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from lorafusion.adapters.lora import LoraConfig
from lorafusion.adapters.targets import match_targets
from lorafusion.errors import ProfileError
from lorafusion.jobs.schema import RunSpec
from lorafusion.models.load import Base, check_base, load_base
from lorafusion.module_names import ModuleNames
from lorafusion.planner.queue import JobQueue
from lorafusion.profiling.advice import Advice, advise
from lorafusion.profiling.jobs import queues_of
from lorafusion.profiling.key import ProfileKey
from lorafusion.profiling.measuring import Scope
from lorafusion.profiling.profile import Profile
from lorafusion.profiling.profiler import Subject, make_profile
from lorafusion.training.memory import device_memory

__all__ = ["Found", "Wish", "profile_run", "profiled_device", "run_key", "stage_threads"]

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Wish:
    """How to profile.

    Attributes:
        stages: Numbers of pipeline stages to advise on.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU where there is one.
        seconds: About, in which microbatches are measured; for each number of threads.
    """

    stages: tuple[int, ...] = (1,)
    device: str = "auto"
    seconds: float = 100.0


@dataclass(frozen=True)
class Found:
    """What came of it."""

    profile: Profile
    advice: Advice


def profile_run(
    spec: RunSpec, wish: Wish, *, progress: Progress = lambda _what, _share: None
) -> Found:
    """Measure the base of a run, fit the costs, and simulate the run's jobs with them.

    Args:
        spec: The run.
        wish: How.
        progress: Told what is being done, and the share of it that is.

    Raises:
        ProfileError: No such device, or too little memory to measure anything.
        PlanError: The jobs fit no capacity; says what would.
    """
    device = profiled_device(wish.device)
    config = check_base(spec.base_model)
    layers: int = config.get_text_config().num_hidden_layers
    if max(wish.stages) > layers:
        raise ProfileError(
            f"{max(wish.stages)} stages, and the base has {layers} layers; allowed: 1 to {layers}."
        )
    queues = queues_of(spec, lambda what: progress(what, 0.0))
    progress("loading the base", 0.0)
    base = load_base(spec.base_model, spec.dtype, device=device)
    progress("loading the base", 1.0)
    threads = {stages: stage_threads(spec, stages) for stages in wish.stages}
    subject = _subject(base, spec, queues, tuple(dict.fromkeys(threads.values())), wish.seconds)
    profile = make_profile(subject, run_key(spec, base.names, device), progress=progress)
    advice = advise(
        queues,
        {stages: profile.parts(threads[stages]) for stages in wish.stages},
        row_bytes=base.dtype.itemsize * config.get_text_config().hidden_size,
        memory_bytes=_memory(profile, threads, device),
        error=max(one.error for one in profile.passes),
    )
    return Found(profile, advice)


def profiled_device(name: str) -> torch.device:
    """What ``cpu``, ``cuda`` or ``auto`` mean here.

    Raises:
        ProfileError: Another name, or a GPU where there is none.
    """
    gpu = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda"):
        raise ProfileError(f"--device is {name!r}; allowed: auto, cpu, cuda.")
    if name == "cuda" and not gpu:
        raise ProfileError(
            "torch sees no GPU here (`lorafusion doctor` says why). Measure the CPU with --device "
            "cpu; of a GPU that is not here, `lorafusion plan FILE --device h100` says what is to "
            "be expected."
        )
    return torch.device("cuda" if gpu and name != "cpu" else "cpu")


def stage_threads(spec: RunSpec, stages: int) -> int:
    """CPU threads that each stage of a run on this machine alone has."""
    return spec.threads or max(1, len(os.sched_getaffinity(0)) // stages)


def run_key(spec: RunSpec, names: ModuleNames, device: torch.device) -> ProfileKey:
    """Under which the profile of a run is kept."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    ends = {name.rsplit(".", 1)[-1] for name in _targets(spec, names)}
    config = check_base(spec.base_model).to_dict()
    return ProfileKey.here(config, spec.dtype, tuple(ends), gpu=gpu)


def _memory(profile: Profile, threads: Mapping[int, int], device: torch.device) -> dict[int, float]:
    """What each stage may use; on a CPU the base of this process is no longer there by then."""
    loaded = 0.0
    if device.type == "cpu":
        parts = profile.parts(next(iter(threads.values())))
        loaded = sum(part.static_bytes for part in (parts.embedding, parts.head))
        loaded = parts.layers * parts.layer.static_bytes + loaded
    return {stages: device_memory(device, stages) + loaded / stages for stages in threads}


def _subject(
    base: Base,
    spec: RunSpec,
    queues: Sequence[JobQueue],
    threads: tuple[int, ...],
    seconds: float,
) -> Subject:
    ranks = tuple(queue.rank for queue in queues)
    adapters = [job.adapter for job in spec.jobs if isinstance(job.adapter, LoraConfig)]
    dropout = max(adapter.lora_dropout for adapter in adapters)
    adapter = LoraConfig(
        r=max(ranks), lora_dropout=dropout, target_modules=_targets(spec, base.names)
    )
    batches = [batch for queue in queues for batch in queue.batches]
    scope = Scope(
        ranks=tuple(sorted({4, *ranks, 32})),
        longest=max(max(batch.lengths) for batch in batches),
        capacity=sum(max(sum(batch.lengths) for batch in queue.batches) for queue in queues),
    )
    return Subject(base, adapter, scope, ranks, threads, seconds)


def _targets(spec: RunSpec, names: ModuleNames) -> tuple[str, ...]:
    """Full names of the linears that any job adapts."""
    found = {
        name
        for job in spec.jobs
        if isinstance(job.adapter, LoraConfig)
        for name in match_targets(names, job.adapter.target_modules)
    }
    return tuple(name for name in names.linears if name in found)
