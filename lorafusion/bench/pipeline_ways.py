"""Real jobs on two real stages: together, one after another with a flush, and deterministic.

Each way has the same jobs, with adapters and optimizers of their own, and takes the same steps in
each round, so that all ways' losses must be the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lorafusion.adapters.bank import AdapterBank
from lorafusion.bench.pipeline_jobs import RANK, JobsStudy, make_base, make_data, make_spec
from lorafusion.bench.pipeline_turn import Rank, Turn, TurnRecorder, run_turn
from lorafusion.errors import BenchError
from lorafusion.jobs.schema import JobSpec
from lorafusion.models.load import load_base
from lorafusion.models.part import Part
from lorafusion.models.stage import Stage
from lorafusion.planner.baselines import one_after_another
from lorafusion.planner.capacity import typical_counts
from lorafusion.planner.default_cost import Setup, default_parts
from lorafusion.planner.devices import find_device
from lorafusion.planner.place_times import PlaceTimes, place_times
from lorafusion.planner.plan import Limits, Plan
from lorafusion.planner.queue import JobQueue
from lorafusion.planner.search import plan_run
from lorafusion.planner.shape import ModelShape
from lorafusion.planner.simulate import predict_bubble
from lorafusion.planner.verify import verify_plan
from lorafusion.training.compute import Compute
from lorafusion.training.data import JobData
from lorafusion.training.job_setup import resolve
from lorafusion.training.residents import Residents
from lorafusion.training.shard import JobShard
from lorafusion.training.team import Team

TOGETHER, FLUSH, DETERMINISTIC = "together", "flush", "deterministic"
WAYS = (TOGETHER, FLUSH, DETERMINISTIC)
# Of two ways' losses, relative: float32, after some ten steps.
CLOSE = 1e-3


class JobsCase:
    """A study with its base, jobs and plans."""

    def __init__(
        self,
        study: JobsStudy,
        base: str,
        shape: ModelShape,
        specs: Sequence[JobSpec],
        data: Sequence[JobData],
    ) -> None:
        """``specs`` and ``data``: of each job, whatever the way."""
        self.study = study
        self._base = base
        self._specs = specs
        self._data = data
        self._limits = Limits(study.capacity, stages=study.stages)
        typical = typical_counts(self._queues(TOGETHER, 0))
        setup = Setup("all-linear", (RANK,) * study.jobs, recompute=False)
        device = find_device("cpu")
        parts = default_parts(shape, device, setup)
        self._cut = parts.cut(typical, stages=study.stages)
        self._cost = parts.model(self._cut)
        turns = range(study.rounds + 1)
        self._plans = {way: [self._plan(way, turn) for turn in turns] for way in WAYS}

    @classmethod
    def make(cls, study: JobsStudy, folder: Path) -> JobsCase:
        """Write the base into ``folder``, and make the data and all plans."""
        shape = ModelShape.from_config(make_base(study, folder), "float32")
        specs = [make_spec(study, folder, job) for job in range(study.jobs)]
        data = [make_data(study, spec) for spec in specs]
        return cls(study, str(folder), shape, specs, data)

    def run(self, team: Team, recorder: TurnRecorder) -> dict[str, Any] | None:
        """All rounds on one rank; rank 0 returns the figures."""
        rank, computes = self._build(team, recorder)
        turns: dict[str, list[Turn | None]] = {way: [] for way in WAYS}
        for number in range(self.study.rounds + 1):
            # In turns, and each time in another order.
            for way in WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]:
                turns[way].append(run_turn(rank, computes[way], self._plans[way][number]))
        if not team.first:
            return None
        found = {
            way: [turn for turn in of_way if turn is not None] for way, of_way in turns.items()
        }
        return {
            **asdict(self.study),
            "capacity": self.study.capacity,
            "layers_of_stages": [len(layers) for layers in self._cut],
            "rank": RANK,
            "loss_difference": self._compare(found),
            "first_loss": self._losses(TOGETHER, found[TOGETHER])["job0", 1],
            "ways": {way: self._figures(way, of_way) for way, of_way in found.items()},
        }

    def _build(self, team: Team, recorder: TurnRecorder) -> tuple[Rank, dict[str, Compute]]:
        """This rank's stage with every way's jobs on it."""
        part = Part(self._cut[team.stage], self.study.layers)
        base = load_base(self._base, "float32", part)
        stage = Stage(base)
        bank = AdapterBank(base.model, base.names, stage.shared_inputs)
        residents = Residents(bank, lambda _: None)
        for way in WAYS:
            for spec, data in zip(self._specs, self._data, strict=True):
                spec, adapter = resolve(spec, base.names)
                own = [name for name in adapter.targets if name in bank.linears]
                resident = bank.add(adapter.config, own, seed=spec.seed)
                spec = spec.model_copy(update={"name": _name(spec.name, way)})
                shard = JobShard(spec, data, resident, deterministic=way == DETERMINISTIC)
                residents.join(shard)
        computes = {
            way: Compute(
                stage,
                bank,
                residents,
                deterministic=way == DETERMINISTIC,
                on_failed=_raise,
            )
            for way in WAYS
        }
        return Rank(team, recorder, residents, stage.width), computes

    def _queues(self, way: str, turn: int) -> list[JobQueue]:
        first = turn * self.study.steps + 1
        return [
            JobQueue(
                _name(spec.name, way),
                tuple(data.batch(step) for step in range(first, first + self.study.steps)),
                rank=RANK,
            )
            for spec, data in zip(self._specs, self._data, strict=True)
        ]

    def _plan(self, way: str, turn: int) -> Plan:
        queues = self._queues(way, turn)
        if way == FLUSH:
            # A flush is a no-op for each stage but one: the pipeline is empty behind them.
            plan = one_after_another(queues, self._limits).unflushed()
        else:
            plan = plan_run(queues, self._limits)
        verify_plan(plan, queues)
        return plan

    def _times(self, way: str) -> list[PlaceTimes]:
        """Of each place, as predicted for a machine that nobody has measured.

        All rounds' steps are about as long as each other, so one round stands for them.
        """
        plan = self._plans[way][1]
        return place_times(plan, self._cost, {queue.name: RANK for queue in self._queues(way, 1)})

    def _figures(self, way: str, turns: Sequence[Turn]) -> dict[str, Any]:
        times, plan = self._times(way), self._plans[way][1]
        seconds, bubble = predict_bubble(times, stages=self.study.stages)
        counted = [turn.figures() for turn in turns[1:]]
        for figures, one in zip(counted, self._plans[way][1:], strict=True):
            tokens = sum(place.tokens for place in one.places)
            figures["tokens_per_s"] = tokens / figures["seconds"]
            figures["replayed_s"] = _replayed(self._times(way), figures)
        return {
            "places": len(plan.places),
            "noops": sum(place.kind == "noop" for place in plan.places),
            "predicted": {"seconds": seconds, "bubble": bubble},
            "turns": counted,
        }

    def _losses(self, way: str, turns: Sequence[Turn]) -> dict[tuple[str, int], float]:
        """Of each job and step: the mean over the trained tokens."""
        sums: dict[tuple[str, int], float] = defaultdict(float)
        data = {
            _name(spec.name, way): one for spec, one in zip(self._specs, self._data, strict=True)
        }
        for turn in turns:
            for report in turn.reports:
                losses = iter(report.losses)
                for segment in report.place.segments:
                    total = sum(next(losses) for _ in segment.samples)
                    share = total / data[segment.job].trained_tokens(segment.step)
                    sums[segment.job.removesuffix(f"-{way}"), segment.step] += share
        return sums

    def _compare(self, turns: Mapping[str, Sequence[Turn]]) -> float:
        """The greatest relative difference of any way's loss from that of the jobs together.

        Raises:
            BenchError: The ways do not train the same.
        """
        ours = self._losses(TOGETHER, turns[TOGETHER])
        worst = 0.0
        for way in WAYS[1:]:
            theirs = self._losses(way, turns[way])
            assert ours.keys() == theirs.keys()
            worst = max(worst, *(abs(theirs[key] / loss - 1) for key, loss in ours.items()))
        if not worst < CLOSE:
            raise BenchError(
                f"the ways' losses differ by {worst:.1e} of their size; allowed: {CLOSE:.0e}. They "
                "are the same jobs, so their speeds would say nothing: please report it."
            )
        return worst


def _replayed(times: Sequence[PlaceTimes], figures: Mapping[str, Any]) -> float:
    """Simulated seconds where each stage is as fast as it was in a turn, on average."""
    stages = range(len(figures["forward_s"]))

    def fitted(part: str) -> list[tuple[float, ...]]:
        columns = [getattr(place, part) for place in times]
        totals = [sum(column[stage] for column in columns) for stage in stages]
        measured = figures[f"{part}_s"]
        factors = [measured[stage] / totals[stage] if totals[stage] else 0.0 for stage in stages]
        return [tuple(column[stage] * factors[stage] for stage in stages) for column in columns]

    scaled = [
        replace(place, forward=forward, backward=backward, step=step, transfer_s=0.0)
        for place, forward, backward, step in zip(
            times, fitted("forward"), fitted("backward"), fitted("step"), strict=True
        )
    ]
    return predict_bubble(scaled, stages=len(stages))[0]


def _name(job: str, way: str) -> str:
    return f"{job}-{way}"


def _raise(job: str, why: str) -> None:
    raise BenchError(f"{job} failed: {why}")
