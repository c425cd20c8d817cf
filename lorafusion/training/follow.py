"""A rank behind rank 0: it does what the revisions of the plan say, on its own stage."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorafusion.data.tokenizer import load_tokenizer
from lorafusion.errors import LorafusionError
from lorafusion.jobs.schema import JobSpec, RunSpec
from lorafusion.models.load import check_base, load_base
from lorafusion.models.part import Part
from lorafusion.planner.plan import Place
from lorafusion.training.checkpoint import at_step
from lorafusion.training.executor import Executor
from lorafusion.training.folders import CHECKPOINTS
from lorafusion.training.job_setup import load_data, resolve
from lorafusion.training.memory_kinds import runtime_bytes
from lorafusion.training.options import RunOptions
from lorafusion.training.residents import Residents
from lorafusion.training.revision import Revision, Track
from lorafusion.training.site import Site
from lorafusion.training.team import Message, Team


def follow(spec: RunSpec, options: RunOptions, team: Team) -> None:
    """Hold this rank's stage until rank 0 ends the run.

    Raises:
        LorafusionError: This rank cannot do its part; the launcher ends all then.
    """
    start = _next(team, "start")
    first, stop = start["layers"][team.stage]
    part = Part(range(first, stop), start["layers"][-1][1])
    check_base(spec.base_model)  # imports what belongs to no base
    runtime = runtime_bytes(team.device)
    base = load_base(spec.base_model, spec.dtype, part, team.device)
    hashes = base.tensor_hashes()
    team.post.report({"kind": "base", "hashes": hashes})
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints") as writers:
        site = Site(
            base,
            team,
            writers,
            recompute=start["recompute"],
            deterministic=spec.deterministic,
        )
        site.watch(runtime, options.traces)
        failed = _join_jobs(spec, site, _next(team, "jobs")["jobs"])
        team.post.report({"kind": "ready", "failed": failed})
        follow_places(site.executor, site.residents, team)
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


def _join_jobs(spec: RunSpec, site: Site, wanted: list[dict[str, Any]]) -> dict[str, str]:
    """Put the jobs on this stage; returns why some cannot be."""
    by_name = {job.name: job for job in spec.jobs}
    failed: dict[str, str] = {}
    tokenizer = load_tokenizer(spec.base_model)
    for entry in wanted:
        try:
            _join(by_name[entry["name"]], site, entry, tokenizer)
        except LorafusionError as error:
            failed[entry["name"]] = str(error)
    return failed


def _join(spec: JobSpec, site: Site, entry: dict[str, Any], tokenizer: Any) -> None:
    spec, data = load_data(spec, site.base.model.config, tokenizer)
    spec, adapter = resolve(spec, site.base.names)
    folder, step = Path(entry["folder"]), entry["step"]
    checkpoint = at_step(folder / CHECKPOINTS, step) if step else None
    site.join(spec, data, adapter, folder, checkpoint)


def follow_places(executor: Executor, residents: Residents, team: Team) -> None:
    """Run the places of rank 0's revisions until one of them is the last."""
    track = Track()

    def upcoming() -> Place | None:
        for _, message in team.post.poll():
            track.add(Revision.read(message))
        return track.peek(executor.position)

    def wait() -> Revision:
        with team.recorder.span("wait", executor.position, "the plan"):
            return Revision.read(_next(team, "revision"))

    while (place := track.take(executor.position, wait)) is not None:
        for leave in track.leaves(executor.position):
            residents.leave(leave)
        executor.forward(place, upcoming)
        if executor.full:
            executor.backward()
    while not executor.empty:
        executor.backward()
    for leave in track.leaves(executor.position):
        residents.leave(leave)


def _next(team: Team, kind: str) -> Message:
    _, message = team.post.wait()
    assert message["kind"] == kind, f"rank 0 sent {message['kind']!r} instead of {kind!r}"
    return message
