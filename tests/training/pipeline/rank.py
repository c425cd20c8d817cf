"""One stage of a run that goes through courses, and what it writes down of each."""

from __future__ import annotations

import copy
import functools
import json
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor as Pool
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lorafusion.jobs.schema import JobSpec
from lorafusion.launch.team import TeamOptions, join_team
from lorafusion.launch.world import World
from lorafusion.models.load import Base, load_base
from lorafusion.models.part import Part
from lorafusion.training import follow
from lorafusion.training import site as site_module
from lorafusion.training.alone import team_of_one
from lorafusion.training.grid import Grid
from lorafusion.training.job_setup import resolve
from lorafusion.training.judge import Report
from lorafusion.training.revision import Revision, Track
from lorafusion.training.shard import JobShard
from lorafusion.training.site import Site
from lorafusion.training.team import Peers, Team
from lorafusion.training.trace import Trace
from tests.training.pipeline.courses import Course
from tests.training.pipeline.faults import plant
from tests.training.pipeline.jobs import LAYERS, make_data

# Unevenly, where there is a choice.
CUTS = {1: (0, 4), 2: (0, 3, 4), 3: (0, 1, 2, 4), 4: (0, 1, 2, 3, 4)}


@dataclass(frozen=True)
class Duty:
    """What a rank is to do.

    Attributes:
        base: Folder.
        output: Folder for what it found.
        rank: Its number.
        grid: Stages and replicas.
        port: Where they meet.
        fault: See :mod:`tests.training.pipeline.faults`.
    """

    base: str
    output: str
    rank: int
    grid: Grid
    port: int
    fault: str = ""


class Steps(Trace):
    """Keeps the steps."""

    def __init__(self) -> None:
        super().__init__(None)
        self.steps: list[tuple[int, str, int, Sequence[int]]] = []

    def stepped(self, place: int, job: str, step: int, samples: Sequence[int]) -> None:
        self.steps.append((place, job, step, samples))


class Nowhere(Pool):
    """Writes nothing: what is to be saved is looked at by hand."""

    def submit(self, *_arguments: Any, **_named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.cancel()
        return future


@dataclass
class _Here:
    """A course on this stage."""

    course: Course
    site: Site
    team: Team
    shards: dict[str, JobShard]
    reports: list[Report] = field(default_factory=list[Report])
    snapshots: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    def keep(self, job: str, step: int) -> None:
        """On one process a job goes on where others have left: keep its state at their last."""
        if self.course.final.get(job) == step and not self.team.others:
            tensors = self.shards[job].tensors()
            self.snapshots[job] = {name: tensor.clone() for name, tensor in tensors.items()}

    def states(self) -> dict[str, torch.Tensor]:
        """Parameters and moments of the jobs at their last steps."""
        ends = {job: self.snapshots.get(job, self.shards[job].tensors) for job in self.course.final}
        return {
            f"{job} {name}": tensor.detach().contiguous().clone()
            for job, state in ends.items()
            for name, tensor in (state if isinstance(state, dict) else state()).items()
        }


def go_through(courses: Sequence[Course], duty: Duty) -> None:
    """All courses, one behind the other."""
    plant(duty.fault)
    recorder = Steps()
    alone = nullcontext(replace(team_of_one(), recorder=recorder))
    with alone if duty.grid.ranks == 1 else join_team(_options(duty, recorder)) as team:
        base = load_part(duty.base, duty.grid.stages, team.stage)
        for course in courses:
            recorder.steps.clear()
            here = _put_on_stage(course, base, team)
            lead(here) if team.first else _follow(here)
            _write(here, recorder, Path(duty.output, f"{course.settings.number}-{duty.rank}"))
            _meet(team)


@functools.cache
def load_part(base: str, stages: int, stage: int) -> Base:
    """What a rank holds of it. Asked for before a fork, it is there behind it."""
    start, stop = CUTS[stages][stage : stage + 2]
    return load_base(base, "float64", Part(range(start, stop), LAYERS))


def _options(duty: Duty, recorder: Steps) -> TeamOptions:
    address = f"localhost:{duty.port}"
    rank, ranks = duty.rank, duty.grid.ranks
    world = World(rank, ranks, rank, ranks, address, "localhost", replicas=duty.grid.replicas)
    return TeamOptions(world, lambda _: recorder, start_timeout_s=30.0, hang_timeout_s=20.0)


def _put_on_stage(course: Course, base: Base, team: Team) -> _Here:
    model = copy.deepcopy(base.model)  # banks wrap its linears
    base = replace(base, model=model, tensors=dict(model.named_parameters()))
    deterministic = course.settings.deterministic
    # A fault replaces the module's Executor.
    site = site_module.Site(base, team, Nowhere(), recompute=False, deterministic=deterministic)
    here = _Here(course, site, team, {})
    for settings in course.jobs:
        spec = JobSpec.model_validate(settings)
        spec, adapter = resolve(spec, base.names)
        shard = site.join(spec, make_data(spec), adapter, Path("none"), None)
        here.shards[spec.name] = shard
        here.keep(spec.name, 0)
        if course.poison and course.poison[0] == spec.name:
            _poison(shard, *course.poison[1:])
    return here


def _poison(shard: JobShard, step: int, layer: int) -> None:
    """Make the gradient of a step infinite in one layer, wherever that is."""
    add_up = shard.add_up

    def poisoned(peers: Peers) -> None:
        add_up(peers)
        assert shard._whole is not None
        gradients = shard.gradients.flat.views(shard._whole)
        for name, gradient in zip(shard.parameters, gradients, strict=True):
            if shard.step + 1 == step and f"layers.{layer}." in name:
                gradient.fill_(torch.inf)

    shard.add_up = poisoned


def lead(here: _Here) -> None:
    """Rank 0 in a course: as :class:`lorafusion.training.loop.TrainingLoop`, by heart."""
    site, executor = here.site, here.site.executor
    track = Track(here.team.replicas)
    coming = deque((at, Revision.read(message)) for at, message in here.course.revisions)
    while True:
        while coming and coming[0][0] == executor.position:
            revision = coming.popleft()[1]
            while revision.last and not executor.empty:
                _hear(here)
            here.team.post.publish(revision.message())
            track.add(revision)
            for leave in revision.leaves:
                site.residents.stop_at(leave)
        turn = track.take(executor.position, _never)
        for leave in track.leaves(executor.position):
            site.residents.leave(leave)
        if turn is None:
            return
        executor.forward(turn, _unknown)
        if executor.full:
            _hear(here)


def _follow(here: _Here) -> None:
    follow.follow_places(here.site.executor, here.site.residents, here.team)


def _hear(here: _Here) -> None:
    for report in here.site.executor.backward():
        here.reports.append(report)
        if report.place.kind == "train":
            for job, step in report.place.completes:
                here.keep(job, step)


def _write(here: _Here, recorder: Steps, path: Path) -> None:
    """What this stage found, for the test to compare."""
    names = ("losses", "failed", "squares", "verdicts")
    reports = [{name: list(getattr(report, name)) for name in names} for report in here.reports]
    gave_up = sorted(here.site.executor._compute.failed)
    steps = {job: here.shards[job].step for job in here.course.final}
    found = {"reports": reports, "stepped": recorder.steps, "gave_up": gave_up, "steps": steps}
    path.with_suffix(".json").write_text(json.dumps(found))
    save_file(here.states(), path.with_suffix(".safetensors"))


def _meet(team: Team) -> None:
    """Rank 0 begins the next course once all others are through: they poll for revisions."""
    if not team.first:
        team.post.report({"kind": "through"})
    waiting = team.others if team.first else 0
    while waiting:
        waiting -= team.post.wait()[1]["kind"] == "through"


def _never() -> Revision:
    raise AssertionError("the course ends before its places")


def _unknown() -> None:
    return None
