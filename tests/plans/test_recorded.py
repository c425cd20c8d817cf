from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorafusion.errors import OutputError
from lorafusion.planner.plan import Place
from lorafusion.plans.recorded import Span, read_recording
from lorafusion.training.trace import Trace
from lorafusion.training.trace_file import PlaceTrace
from tests.plans.recorded_runs import lines, record, rewrite, sweep, write_ranks
from tests.plans.samples import SMALL, by_load, in_seconds, large


def test_what_the_ranks_wrote_is_read(tmp_path: Path) -> None:
    plan = sweep(6)
    record(tmp_path, plan, load_s=1e-6)
    found = read_recording(tmp_path, 4)
    assert found.session == 1 and found.places == len(plan.places)
    assert found.plan == plan
    for stage, spans in enumerate(found.spans):
        written = [line for line in lines(tmp_path / f"rank-{stage}.jsonl") if "end" in line]
        assert spans == tuple(Span(**line) for line in written)
        assert {span.kind for span in spans} == {"forward", "backward", "step", "send", "wait"}


def test_each_ranks_times_are_put_on_rank_0s_clock(tmp_path: Path) -> None:
    """Clocks of other machines, with the offset told at the start or mended later."""
    record(tmp_path, sweep(4), load_s=1e-6)
    expected = read_recording(tmp_path, 4).spans
    clocks = (0.0, 5e4, -70.25, 1e-3)

    def move(stage: int, line: dict[str, Any]) -> list[dict[str, Any]]:
        if line["kind"] == "offset":
            return [{**line, "offset_s": 1.0}, {**line, "offset_s": -clocks[stage]}]
        moved = {name: line[name] + clocks[stage] for name in ("start", "end") if name in line}
        return [{**line, **moved}]

    for stage in range(4):
        rewrite(tmp_path / f"rank-{stage}.jsonl", lambda line, stage=stage: move(stage, line))
    for before, after in zip(expected, read_recording(tmp_path, 4).spans, strict=True):
        assert [span.start for span in after] == pytest.approx([s.start for s in before], abs=1e-6)
        assert [span.end for span in after] == pytest.approx([s.end for s in before], abs=1e-6)


def test_the_last_session_is_read(tmp_path: Path) -> None:
    record(tmp_path, sweep(8), load_s=1e-6)
    # Rank 2 took part in a session more: it alone was started.
    Trace(tmp_path, 2, 4).close()
    plan = sweep(3)
    record(tmp_path, plan, load_s=1e-6)
    found = read_recording(tmp_path, 4)
    assert found.session == 2 and found.plan == plan
    for stage in range(4):
        sessions = [s["session"] for s in lines(tmp_path / f"rank-{stage}.jsonl") if "session" in s]
        assert sessions == ([1, 2, 3] if stage == 2 else [1, 2])
        kinds = [s.kind for s in found.spans[stage]]
        assert (kinds.count("forward"), kinds.count("backward")) == (4, 3)


def test_lines_that_were_cut_off_are_left_out(tmp_path: Path) -> None:
    record(tmp_path, sweep(6), load_s=1e-6)
    whole = read_recording(tmp_path, 4)
    for name in ("rank-1.jsonl", "places.jsonl"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-3])
    cut = read_recording(tmp_path, 4)
    assert cut.spans[1] == whole.spans[1][:-1] and cut.spans[0] == whole.spans[0]
    assert cut.plan.places == whole.plan.places[:-1]


def test_what_a_killed_run_did_not_say_of_its_places_is_left_out(tmp_path: Path) -> None:
    record(tmp_path, sweep(12), load_s=1e-6)
    path = tmp_path / "places.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:6]))
    found = read_recording(tmp_path, 4)
    assert len(found.plan.places) == 5
    busy = [s.place for spans in found.spans for s in spans if s.kind not in ("wait", "send")]
    assert max(busy) == 4


def test_a_place_that_was_planned_anew_is_what_was_said_last(tmp_path: Path) -> None:
    record(tmp_path, SMALL, load_s=1e-6)
    with (tmp_path / "places.jsonl").open("a") as file:
        file.write(json.dumps({"number": 1, "kind": "noop", "segments": [], "completes": []}))
        file.write("\n")
    found = read_recording(tmp_path, 2)
    assert found.places == 6 and found.plan.places[1] == Place("noop")


def test_of_a_long_run_the_first_places_are_read(tmp_path: Path) -> None:
    plan = large(300, stages=4)
    write_ranks(tmp_path, plan, in_seconds(plan))
    found = read_recording(tmp_path, 4, most_spans=2800)
    assert found.places == 300 and len(found.plan.places) == 100
    whole = read_recording(tmp_path, 4)
    assert len(whole.plan.places) == 300
    for part, spans in zip(found.spans, whole.spans, strict=True):
        assert part == tuple(span for span in spans if span.place < 100)


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("rank-1.jsonl", "{", "line 3: allowed is JSON"),
        ("rank-1.jsonl", "[1]", "line 3: allowed is a JSON object"),
        ("rank-0.jsonl", '{"kind":"forward","place":0}', "line 3: allowed is a span"),
        ("rank-0.jsonl", '{"kind":"offset"}', "line 3: allowed is a span"),
        ("places.jsonl", '{"kind":"train"}', "line 2: allowed is a place"),
        ("places.jsonl", '{"number":0,"kind":"odd","segments":[],"completes":[]}', "kind"),
        ("places.jsonl", '{"number":4,"kind":"noop","segments":[],"completes":[]}', "place 0"),
    ],
)
def test_a_file_of_something_else_is_refused_by_name(
    tmp_path: Path, name: str, line: str, said: str
) -> None:
    for stage in range(2):
        Trace(tmp_path, stage, 2).close()
    PlaceTrace(tmp_path, SMALL.limits).close()
    with (tmp_path / name).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(OutputError, match=said) as caught:
        read_recording(tmp_path, 2)
    assert str(tmp_path / name) in str(caught.value)


def test_a_missing_or_empty_file_is_refused_by_name(tmp_path: Path) -> None:
    write_ranks(tmp_path, SMALL, by_load(SMALL))
    with pytest.raises(OutputError, match=r"rank-2\.jsonl cannot be read"):
        read_recording(tmp_path, 3)
    (tmp_path / "rank-1.jsonl").write_text("")
    with pytest.raises(OutputError, match=r"rank-1\.jsonl holds no session"):
        read_recording(tmp_path, 2)
