"""Memory that runs out above so many tokens: what is cut changes no result, and is learned."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lorafusion.kernels.layout import AdapterLayout
from lorafusion.launch.local import LocalOptions, finish_local
from lorafusion.launch.stopping import StopRequest
from lorafusion.models.stage import Stage
from lorafusion.planner.plan import Place, PlannedSegment
from lorafusion.training.events import Events
from lorafusion.training.microbatch import apart, at_most, in_two
from lorafusion.training.room import Room
from lorafusion.training.site import Site
from tests.training import runs
from tests.training.planted import Fault, plant
from tests.training.stages import LONGEST, Case, Stages
from tests.training.test_out_of_memory import run_places, samples_of, step_of, tokens_of
from tests.training.timetable import Timetable

Jobs = list[dict[str, Any]]
Plant = Callable[..., None]
CAPACITY = 400
FITS = 110
"""Tokens; the longest sample of all has less, and most places more."""


class Notes(Events):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    @property
    def capacities(self) -> list[int]:
        """What is said to be set in the file, note by note."""
        return [int(n) for note in self.notes for n in re.findall(r"`capacity: (\d+)`", note)]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """They evaluate too, in the midst."""
    four = runs.four_jobs(tmp_path_factory.mktemp("rows"), steps=6)
    four[1] |= {"eval": {"val_size": 12, "every": 2}}
    return four


@pytest.fixture(scope="module", params=[False, True], ids=["ordinary", "deterministic"])
def deterministic(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="module")
def undisturbed(
    deterministic: bool, jobs: Jobs, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    runs.run(folder, tiny_base, jobs, **settings(deterministic))
    return folder


def settings(deterministic: bool) -> dict[str, Any]:
    return {"dtype": "float64", "capacity": CAPACITY, "deterministic": deterministic}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Plants faults in this process until the test ends."""
    monkeypatch.setattr(Site, "join", Site.join)
    monkeypatch.setattr(Stage, "forward", Stage.forward)
    monkeypatch.setattr(Stage, "_run_layer", Stage._run_layer)
    return lambda *faults: plant(list(faults))


def same(found: Path, expected: Path, names: list[str], *, bits: bool) -> None:
    for name in names:
        if bits:
            runs.assert_same_bytes(found / name, expected / name)
            continue
        ours, theirs = runs.losses(found / name), runs.losses(expected / name)
        assert runs.loss_difference(ours, theirs) <= 1e-9
        ours, theirs = runs.state(found / name), runs.state(expected / name)
        assert runs.worst_difference(ours, theirs) <= 1e-9


@pytest.mark.parametrize("phase", ["full", "full-backward", "full-backward-midway", "held"])
def test_what_is_cut_changes_no_result(
    phase: str,
    deterministic: bool,
    jobs: Jobs,
    undisturbed: Path,
    planted: Plant,
    tiny_base: Path,
    tmp_path: Path,
) -> None:
    planted(Fault(0, phase, "wide", FITS))
    notes = Notes()
    result = runs.run(tmp_path, tiny_base, jobs, events=notes, **settings(deterministic))
    assert [job.state for job in result.jobs] == ["succeeded"] * 4, result
    names = [job["name"] for job in jobs]
    same(tmp_path, undisturbed, names, bits=deterministic)
    places = run_places(tmp_path)
    if deterministic and phase != "held":
        assert not notes.capacities  # each sample runs by itself
        return
    # Half of what did not fit, or what is known to.
    (learned, *lower) = notes.capacities
    assert FITS / 4 < min(learned, *lower, FITS) and lower == sorted(lower, reverse=True)
    assert f"instead of {CAPACITY}, " in notes.notes[0]
    kinds = ("train", "eval") if phase == "full" else ("train",)
    large = [n for n, p in enumerate(places) if p["kind"] in kinds and tokens_of(p) > FITS]
    first = large[0]
    wide = [place for place in places[first + 2 :] if tokens_of(place) > learned]
    assert len(places) > first + 10
    assert all(samples_of(place) == 1 for place in wide), "later places are planned to what fits"


def test_a_sample_that_never_fits_fails_its_job_and_says_nothing_of_others(
    deterministic: bool,
    jobs: Jobs,
    undisturbed: Path,
    planted: Plant,
    tiny_base: Path,
    tmp_path: Path,
) -> None:
    rows = [{"prompt": " yes", "completion": f" no {'fox ' * n}"} for n in (1, 2, 120, 3)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    giant = {**jobs[0], "name": "giant", "dataset": {"path": str(file)}, "global_batch_size": 4}
    giant = {**giant, "max_seq_len": 200, "eval": {}}
    planted(Fault(0, "full", "giant", 115))
    notes = Notes()
    # No place is too large but for the sample.
    company = [giant, *jobs]
    result = runs.run(
        tmp_path / "run",
        tiny_base,
        company,
        events=notes,
        **{**settings(deterministic), "capacity": 130},
    )
    assert [job.state for job in result.jobs] == ["failed"] + ["succeeded"] * 4
    reason = result.jobs[0].reason or ""
    assert (
        "the forward of step 1: OutOfMemoryError: planted: no memory (sample 2, row 3 of" in reason
    )
    assert re.search(r"rows.jsonl, 1\d\d tokens\)", reason), reason
    assert not (tmp_path / "run" / "giant" / "adapter").exists()
    names = [job["name"] for job in jobs]
    same(tmp_path / "run", undisturbed, names, bits=deterministic)
    if deterministic:
        assert not notes.capacities


class Learning(Timetable, Notes):
    def __init__(self, *arguments: Any) -> None:
        Timetable.__init__(self, *arguments)
        Notes.__init__(self)


def test_a_newcomer_with_longer_samples_than_what_was_learned_is_tried_alone(
    jobs: Jobs, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places of it are above the capacity; those of others are not."""
    run = Stage.forward

    def forward(stage: Stage, entering: torch.Tensor, layout: AdapterLayout) -> torch.Tensor:
        if len(entering) > 40 and len(layout.sample_starts) > 2:
            raise torch.OutOfMemoryError("planted")
        return run(stage, entering, layout)

    monkeypatch.setattr(Stage, "forward", forward)
    short = {**jobs[3], "max_steps": 40, "eval": {}, "global_batch_size": 12}
    table = Learning(tmp_path, {short["name"]: [(4, jobs[2])]})
    spec = runs.make_spec(tiny_base, [short], **settings(deterministic=False))
    options = LocalOptions(tmp_path, stop=StopRequest(), arrivals=table)
    result = finish_local(spec, options, table)
    assert [job.state for job in result.jobs] == ["succeeded"] * 2, result
    learned = table.capacities[-1]
    assert learned <= 40
    places = run_places(tmp_path)
    joined = next(n for n, p in enumerate(places) if step_of(p, jobs[2]["name"]) == 1)
    above = [place for place in places[joined:] if tokens_of(place) > learned]
    assert above and all(samples_of(place) == 1 for place in above)


@pytest.mark.multiproc
@pytest.mark.parametrize("stage", [0, 1])
def test_a_stage_of_two(
    stage: int,
    deterministic: bool,
    jobs: Jobs,
    deep_base: Path,
    stages: Stages,
    tmp_path: Path,
) -> None:
    """The first holds the graphs of two places, of which it lets one go."""
    jobs = [{**job, "max_seq_len": LONGEST} for job in jobs]
    runs.run(tmp_path / "alone", deep_base, jobs, **settings(deterministic))
    fits = FITS if stage == 0 else 60
    faults = [Fault(stage, phase, "wide", fits) for phase in ("held", "full-backward")]
    case = Case(tmp_path / "out", 2, faults, trace=True)
    ended = stages.run(case, jobs, **settings(deterministic))
    assert ended.codes == [0, 0], ended.err
    same(tmp_path / "out", tmp_path / "alone", [job["name"] for job in jobs], bits=deterministic)
    said = " ".join(ended.err.split())
    assert f"stage {stage} ran out of memory" in said
    learned = int(re.findall(r"`capacity: (\d+)`", said)[-1])
    late = run_places(tmp_path / "out")[-12:]
    assert all(tokens_of(place) <= learned or samples_of(place) == 1 for place in late)


@pytest.mark.multiproc
@pytest.mark.parametrize("stage", [0, 1])
def test_a_replica_of_two(
    stage: int,
    deterministic: bool,
    jobs: Jobs,
    deep_base: Path,
    stages: Stages,
    tmp_path: Path,
) -> None:
    """The other one goes on with whole places, and all plan with less."""
    jobs = [{**job, "max_seq_len": LONGEST} for job in jobs]
    runs.run(tmp_path / "alone", deep_base, jobs, **settings(deterministic))
    faults = [Fault(2 + stage, "full-backward", "wide", 60)]
    case = Case(tmp_path / "out", 2, faults, trace=True, replicas=2)
    ended = stages.run(case, jobs, **settings(deterministic))
    assert ended.codes == [0] * 4, ended.err
    same(tmp_path / "out", tmp_path / "alone", [job["name"] for job in jobs], bits=deterministic)
    if not deterministic:
        said = " ".join(ended.err.split())
        assert f"stage {stage} of replica 1 ran out of memory" in said


def make_place() -> Place:
    """Samples of 5, 1, 4 and of 2, 8 tokens."""
    a = PlannedSegment("a", 3, (7, 8, 9), (5, 1, 4), (2, 1, 3), (6, 2, 5))
    return Place("eval", (a, PlannedSegment("b", 1, (0, 3), (2, 8))), (("b", 1),))


def lengths(parts: Sequence[Place]) -> list[list[tuple[int, ...]]]:
    return [[segment.lengths for segment in part.segments] for part in parts]


def test_cuts_keep_the_order_and_all_columns() -> None:
    place = make_place()
    assert lengths(in_two(place)) == [[(5, 1, 4)], [(2, 8)]]
    assert lengths(in_two(in_two(place)[0])) == [[(5,)], [(1, 4)]]
    assert lengths(at_most(place, 20)) == [[(5, 1, 4), (2, 8)]]
    assert lengths(at_most(place, 7)) == [[(5, 1)], [(4,), (2,)], [(8,)]]
    assert lengths(apart([place], {"b"})) == [[(5, 1, 4)], [(2, 8)]]
    assert apart([place], {"c"}) == [place]
    parts = at_most(place, 7)
    assert {part.kind for part in parts} == {"eval"}
    for name in ("samples", "lengths", "labelled", "loads"):
        found = [v for part in parts for segment in part.segments for v in getattr(segment, name)]
        assert found == [v for segment in place.segments for v in getattr(segment, name)]


def test_what_is_known_to_fit() -> None:
    room = Room()
    assert room.limit is None
    room.ran(700)
    room.ran_out(1000)
    assert room.limit == 700
    room.ran(990)  # a long sample
    room.ran(2000)  # there was more memory then
    assert room.limit == 990
    room.ran_out(600)  # and now there is less
    assert room.limit == 300
    room.ran(400)
    assert room.limit == 400
    for _ in range(20):
        room.ran_out(room.limit or 0)
    assert room.limit == 1
