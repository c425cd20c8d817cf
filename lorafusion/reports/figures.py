"""The figures of a run: what ``report.json`` holds and the page shows. Plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from lorafusion.planner.plan import Plan
from lorafusion.plans.halves import Halves
from lorafusion.plans.overview import shares
from lorafusion.plans.summary import job_names
from lorafusion.reports.flops import FORMULA, Shape, Work, stage_work
from lorafusion.reports.rank_lines import KINDS, MemorySample
from lorafusion.reports.reading import JobReading, Reading
from lorafusion.reports.sweep_section import rankings_of
from lorafusion.training.records import EvalRecord, StepRecord

__all__ = ["FORMAT", "figures"]

FORMAT = 1
_RUN = (
    "started base_model dtype device machine versions threads stages layers recompute "
    "deterministic capacity peak_flops peak_source shape"
).split()


def figures(reading: Reading) -> dict[str, Any]:
    """All figures, for JSON: what is not known is None, and ``missing`` says why."""
    halves, missing = reading.halves, list(reading.missing)
    if halves is not None and halves.read:
        missing.append(f"The trace is long. {halves.read} Losses and results are of the whole run.")
    document: dict[str, Any] = {
        "format": FORMAT,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "title": reading.folder.resolve().name,
        "ended": bool(reading.result),
        "run": {name: reading.facts.get(name) for name in _RUN},
        "speed": _speed(reading),
        "mfu": None if halves is None else _mfu(reading.facts, halves, missing),
        "fill": None if halves is None else _fill(halves.recording.plan),
        "pipeline": None if halves is None else _pipeline(halves),
        "stages": [] if halves is None else _stages(halves),
        "operations": [{"stage": n, **found} for n, found in reading.operations.items()],
        "memory": [_memory(stage, samples) for stage, samples in enumerate(reading.memory)],
        "jobs": [],
        "sweeps": [],
    }
    compute = {} if halves is None else _compute_seconds(halves)
    document["jobs"] = [_job(job, compute.get(job.name)) for job in reading.jobs]
    document["sweeps"] = [ranking.to_dict() for ranking in rankings_of(document["jobs"])]
    if halves is not None and not any(reading.memory):
        missing.append("The trace has no samples of memory.")
    if not reading.operations:
        missing.append(
            "Time is not told by kind of operation: there is no trace/operations-N.json. "
            "`lorafusion train --trace` writes them."
        )
    return _finite({**document, "missing": missing})


def _speed(reading: Reading) -> dict[str, Any]:
    """Real tokens: no padding exists. Of a run without a result, as the trace has them."""
    result, halves = reading.result, reading.halves
    if result:
        return {
            "tokens": sum(int(job.get("tokens") or 0) for job in result.get("jobs", ())),
            "tokens_per_s": result.get("tokens_per_s"),
            "training_s": result.get("training_s"),
            "wall_s": result.get("wall_s"),
            "peak_rss_mb": result.get("peak_rss_mb"),
            "source": "result.json: training tokens over the seconds of training",
        }
    seconds = halves.run.simulation.makespan_s if halves else None
    tokens = sum(record.tokens for job in reading.jobs for record in _steps(job))
    rate = None
    if halves is not None and seconds:
        traced = sum(p.tokens for p in halves.recording.plan.places if p.kind == "train")
        rate = traced / seconds
    return {
        "tokens": tokens,
        "tokens_per_s": rate,
        "training_s": seconds,
        "wall_s": None,
        "peak_rss_mb": None,
        "source": "trace: tokens of the train places over first forward to last action",
    }


def _mfu(facts: Mapping[str, Any], halves: Halves, missing: list[str]) -> dict[str, Any] | None:
    shape, peak = Shape.of(facts), facts.get("peak_flops")
    if shape is None:
        why = "has no shape of the base" if facts else "is missing"
        missing.append(f"MFU cannot be computed: trace/run.json {why}.")
        return None
    if len(shape.layers) != halves.summary.stages:
        missing.append("MFU cannot be computed: trace/run.json is of a run with other stages.")
        return None
    if not peak:
        missing.append(f"MFU cannot be computed: the peak is not known ({facts['peak_source']}).")
    seconds, busy = halves.run.simulation.makespan_s, halves.run.simulation.busy_s
    by_stage = stage_work(shape, halves.recording.plan.places)
    whole = sum(by_stage, Work())
    possible = float(peak) * seconds if peak else None

    def share(work: float, most: float | None) -> float | None:
        return work / most if most else None

    return {
        "formula": FORMULA,
        "mfu": share(whole.total, possible and possible * len(by_stage)),
        "operations": whole.total,
        "by_kind": {
            "linears": whole.linears,
            "head": whole.head,
            "attention": whole.attention,
            "lora": whole.lora,
        },
        "seconds": seconds,
        "peak_flops": peak,
        "peak_source": facts.get("peak_source"),
        "stages": [
            {
                "operations": work.total,
                "mfu": share(work.total, possible),
                "mfu_busy": share(work.total, float(peak) * took if peak else None),
            }
            for work, took in zip(by_stage, busy, strict=True)
        ],
    }


def _fill(plan: Plan) -> dict[str, Any]:
    loads = {
        kind: [p.load(plan.limits) for p in plan.places if p.kind == kind]
        for kind in ("train", "eval")
    }
    every = loads["train"] + loads["eval"]
    return {
        "capacity": plan.limits.capacity,
        "microbatches": len(every),
        "noops": len(plan.places) - len(every),
        "mean": _mean_share(every, plan.limits.capacity),
        "train": _mean_share(loads["train"], plan.limits.capacity),
        "eval": _mean_share(loads["eval"], plan.limits.capacity),
    }


def _mean_share(loads: Sequence[int], capacity: int) -> float | None:
    return sum(loads) / len(loads) / capacity if loads else None


def _pipeline(halves: Halves) -> dict[str, Any]:
    run, plan = halves.run.simulation, halves.planned
    waits = sum(b.end_s - b.start_s for b in halves.run.beside if b.kind == "wait")
    return {
        "session": halves.recording.session,
        "places": halves.recording.places,
        "places_read": len(halves.recording.plan.places),
        "measured_s": run.makespan_s,
        "planned_s": plan.makespan_s,
        "bubble": run.bubble,
        "planned_bubble": plan.bubble,
        "bubble_without_ramp": run.bubble_without_ramp,
        "planned_bubble_without_ramp": plan.bubble_without_ramp,
        "waits": waits / (halves.summary.stages * run.makespan_s) if run.makespan_s else None,
        "steps": halves.summary.steps,
        "tokens": halves.summary.tokens,
    }


def _stages(halves: Halves) -> list[dict[str, Any]]:
    """Where each stage's time went, in seconds that add up to those of the run."""
    found: list[dict[str, Any]] = []
    for stage, row in enumerate(halves.rows()):
        beside = [b for b in halves.run.beside if b.stage == stage and b.kind == "send"]
        send = sum(b.end_s - b.start_s for b in beside)
        found.append(
            {
                "stage": stage,
                "forward_s": row.forward_s,
                "backward_s": row.backward_s,
                "step_s": row.step_s,
                "send_s": send,
                "wait_before_s": row.before_s,
                "wait_behind_s": row.after_s,
                "wait_plan_s": row.plan_s,
                "other_s": max(0.0, row.other_s - send),
                "idle": row.idle,
                "planned_idle": row.planned_idle,
                "busy_s": halves.run.simulation.busy_s[stage],
                "planned_busy_s": halves.planned.busy_s[stage],
            }
        )
    return found


def _memory(stage: int, samples: Sequence[MemorySample]) -> dict[str, Any]:
    """The fullest moment that was sampled."""
    if not samples:
        return {"stage": stage, "samples": 0, "peak_bytes": None, "peak_at_s": None, "peak": None}
    most = max(samples, key=lambda sample: sample.total)
    return {
        "stage": stage,
        "samples": len(samples),
        "peak_bytes": most.total,
        "peak_at_s": most.at_s,
        "peak": dict(zip(KINDS, most.kinds, strict=True)),
    }


def _compute_seconds(halves: Halves) -> dict[str, float]:
    """Each job's part of the forwards, backwards and steps of all stages, by its share of loads."""
    plan = halves.recording.plan
    names = job_names(plan)
    indices = {name: index for index, name in enumerate(names)}
    places: dict[int, float] = {}
    for action in halves.run.simulation.actions:
        took = action.end_s - action.start_s
        places[action.place] = places.get(action.place, 0.0) + took
    seconds = [0.0] * len(names)
    for number, took in places.items():
        if plan.places[number].load(plan.limits):
            for job, share in shares(plan.places[number], plan, indices):
                seconds[job] += share * took
    return dict(zip(names, seconds, strict=True))


def _job(job: JobReading, compute_s: float | None) -> dict[str, Any]:
    steps, result = _steps(job), job.result
    evals = [record for record in job.records if isinstance(record, EvalRecord)]
    before = [record.loss for record in evals if record.step == 0]
    after = [record.loss for record in evals if record.step > 0]
    return {
        "name": job.name,
        "state": result.get("state", "unfinished"),
        "reason": result.get("reason"),
        "rank": job.facts.get("rank"),
        "adapter_parameters": job.facts.get("adapter_parameters"),
        "steps": result.get("steps", steps[-1].step if steps else 0),
        "total_steps": result.get("total_steps"),
        "loss_first": result.get("loss_first", steps[0].loss if steps else None),
        "loss_last": result.get("loss_last", steps[-1].loss if steps else None),
        "eval_before": result.get("eval_before", before[0] if before else None),
        "eval_after": result.get("eval_after", after[-1] if after else None),
        "skipped": sum(record.skipped for record in steps),
        "tokens": result.get("tokens", sum(record.tokens for record in steps)),
        "tokens_per_s": result.get("tokens_per_s", steps[-1].tokens_per_s if steps else None),
        "compute_s": compute_s,
        "sweep": result.get("sweep") or job.facts.get("sweep"),
    }


def _steps(job: JobReading) -> list[StepRecord]:
    return [record for record in job.records if isinstance(record, StepRecord)]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
