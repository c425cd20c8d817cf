"""A rank behind rank 0: it does what the revisions of the plan say, on its own stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorafusion.data.tokenizer import Tokenizer, load_tokenizer
from lorafusion.errors import LorafusionError
from lorafusion.jobs.schema import JobSpec, RunSpec
from lorafusion.models.load import check_base
from lorafusion.models.part import Part
from lorafusion.training.base import load_own
from lorafusion.training.checkpoint import at_step
from lorafusion.training.executor import Executor
from lorafusion.training.folders import CHECKPOINTS
from lorafusion.training.job_setup import load_data, resolve
from lorafusion.training.memory_kinds import runtime_bytes
from lorafusion.training.options import RunOptions
from lorafusion.training.residents import Residents
from lorafusion.training.revision import Leave, Revision, Track
from lorafusion.training.site import Site
from lorafusion.training.team import Message, Team
from lorafusion.training.turn import Turn

Enter = Callable[[list[dict[str, Any]]], None]


def follow(spec: RunSpec, options: RunOptions, team: Team) -> None:
    """Hold this rank's stage until rank 0 ends the run.

    Raises:
        LorafusionError: This rank cannot do its part; the launcher ends all then.
    """
    start = _next(team, "start")
    team = replace(team, together=start["together"])
    first, stop = start["layers"][team.stage]
    part = Part(range(first, stop), start["layers"][-1][1])
    check_base(spec.base_model)  # imports what belongs to no base
    runtime = runtime_bytes(team.device)
    base = load_own(spec, part, team)
    hashes = base.tensor_hashes()
    team.post.report({"kind": "base", "hashes": base.whole_hashes()})
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints") as writers:
        site = Site(
            base,
            team,
            writers,
            recompute=start["recompute"],
            deterministic=spec.deterministic,
        )
        site.watch(runtime, options.traces)
        tokenizer = load_tokenizer(spec.base_model)

        def enter(wanted: list[dict[str, Any]]) -> None:
            here = [entry for entry in wanted if entry["home"] in (None, team.replica)]
            failed = _join_jobs(site, here, tokenizer)
            names = [entry["name"] for entry in wanted]
            team.post.report({"kind": "ready", "jobs": names, "failed": failed})

        enter(_next(team, "jobs")["jobs"])
        follow_places(site.executor, site.residents, team, enter)
    assert base.tensor_hashes() == hashes, "the base's weights changed during the run"
    team.recorder.close()
    times = replace(team.recorder.summary(), layers=(first, stop))
    team.post.report(
        {
            "kind": "done",
            "held_bytes": site.held_bytes,
            "times": times.to_dict(),
            "problem": team.recorder.problem,
        }
    )


def _join_jobs(site: Site, wanted: list[dict[str, Any]], tokenizer: Tokenizer) -> dict[str, str]:
    """Put the jobs on this stage; returns why some cannot be."""
    failed: dict[str, str] = {}
    for entry in wanted:
        try:
            _join(site, entry, tokenizer)
        except LorafusionError as error:
            failed[entry["name"]] = str(error)
    return failed


def _join(site: Site, entry: dict[str, Any], tokenizer: Tokenizer) -> None:
    spec = JobSpec.model_validate_json(entry["spec"])
    spec, data = load_data(spec, site.base.model.config, tokenizer)
    spec, adapter = resolve(spec, site.base.names)
    folder, step = Path(entry["folder"]), entry["step"]
    checkpoint = at_step(folder / CHECKPOINTS, step) if step else None
    site.join(spec, data, adapter, folder, checkpoint)


def follow_places(
    executor: Executor, residents: Residents, team: Team, enter: Enter | None = None
) -> None:
    """Run the places of rank 0's revisions until one of them is the last.

    ``enter`` puts jobs on this stage that come meanwhile; they are in no place before. None: no job
    comes.
    """
    _Follower(executor, residents, team, enter).run()


class _Follower:
    """Runs the places of rank 0's revisions on this stage."""

    def __init__(
        self, executor: Executor, residents: Residents, team: Team, enter: Enter | None
    ) -> None:
        self._executor = executor
        self._residents = residents
        self._team = team
        self._enter = enter
        self._track = Track(team.replicas)

    def run(self) -> None:
        """Until a revision is the last."""
        executor = self._executor
        while (turn := self._next_turn()) is not None:
            executor.forward(turn, self._upcoming)
            if executor.full:
                executor.backward()
        while not executor.empty:
            executor.backward()
        self._leave(self._track.leaves(executor.position))

    def _next_turn(self) -> Turn | None:
        self._leave(self._track.leaves(self._executor.position))
        turn = self._track.take(self._executor.position, self._wait)
        self._leave(self._track.leaves(self._executor.position))
        return turn

    def _upcoming(self) -> Turn | None:
        for _, message in self._team.post.poll():
            revision = self._read(message)
            if revision is not None:
                self._track.add(revision)
        return self._track.peek(self._executor.position)

    def _wait(self) -> Revision:
        while True:
            with self._team.recorder.span("wait", self._executor.position, "the plan"):
                _, message = self._team.post.wait()
            revision = self._read(message)
            if revision is not None:
                if revision.start <= self._executor.position:  # no place may follow for long
                    self._leave(revision.leaves)
                return revision

    def _read(self, message: Message) -> Revision | None:
        if message["kind"] == "jobs":
            assert self._enter is not None, "no job was to come"
            self._enter(message["jobs"])
            return None
        assert message["kind"] == "revision", f"rank 0 sent {message['kind']!r}"
        revision = Revision.read(message)
        for leave in revision.leaves:
            # A first stage does a step as soon as rank 0, which does none of this job any more.
            self._residents.stop_at(leave)
        return revision

    def _leave(self, leaves: Iterable[Leave]) -> None:
        for leave in leaves:
            self._residents.leave(leave)


def _next(team: Team, kind: str) -> Message:
    _, message = team.post.wait()
    assert message["kind"] == kind, f"rank 0 sent {message['kind']!r} instead of {kind!r}"
    return message
