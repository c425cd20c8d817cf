"""The page and the picture of a run, planned above measured."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorafusion.planner.plan import Plan
from lorafusion.plans import colours, pipeline_html
from lorafusion.plans.fitted import planned
from lorafusion.plans.halves import Halves
from lorafusion.plans.pipeline_html import pipeline_page
from lorafusion.plans.pipeline_png import draw
from lorafusion.plans.pipeline_report import write_pipeline_report
from lorafusion.plans.recorded import read_recording
from tests.plans.recorded_runs import record, sweep, write_ranks
from tests.plans.samples import HOSTILE, in_seconds, large, renamed
from tests.plans.test_gantt_html import Elements, data_of, run_model

ROOT = Path(__file__).parents[2]
LANES = (
    "return model.lanes.map(l => ({...l, places: [...l.places], starts: [...l.starts], "
    "ends: [...l.ends]}))"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "trace"
    record(path, sweep(10), load_s=1e-5)
    return path


def halves(folder: Path, stages: int = 4) -> Halves:
    return Halves.of(read_recording(folder, stages), "a run")


def synthetic(folder: Path, plan: Plan, *, with_waits: bool = False) -> Halves:
    write_ranks(folder, plan, in_seconds(plan), with_waits=with_waits)
    return halves(folder, plan.limits.stages)


def test_all_three_are_written(folder: Path) -> None:
    assert write_pipeline_report(folder, 4) == ()
    for name in ("chrome.json", "pipeline.html", "pipeline.png"):
        assert (folder / name).stat().st_size > 1000
    page = (folder / "pipeline.html").read_text(encoding="utf-8")
    assert Elements(page).texts("h1") == [f"{folder.parent.name}: planned and measured"]


def test_what_goes_wrong_is_a_note(folder: Path, tmp_path: Path) -> None:
    (note,) = write_pipeline_report(tmp_path / "none", 4)
    assert "places.jsonl" in note and "no report" in note
    plan = sweep(2)
    write_ranks(tmp_path, plan, in_seconds(plan))
    (tmp_path / "pipeline.html").mkdir()
    (note,) = write_pipeline_report(tmp_path, 4)
    assert note.startswith(f"{tmp_path / 'pipeline.html'} was not written")
    assert (tmp_path / "chrome.json").exists() and (tmp_path / "pipeline.png").exists()
    with (tmp_path / "rank-1.jsonl").open("a") as file:
        file.write("{\n")
    (note,) = write_pipeline_report(tmp_path, 4)
    assert "rank-1.jsonl, line" in note


def test_without_matplotlib_the_others_are_written(folder: Path, tmp_path: Path) -> None:
    plan = sweep(2)
    write_ranks(tmp_path, plan, in_seconds(plan))
    code = (
        "import sys\n"
        "sys.modules['matplotlib'] = None\n"
        "from pathlib import Path\n"
        "from lorafusion.plans.pipeline_report import write_pipeline_report\n"
        "print(*write_pipeline_report(Path(sys.argv[1]), 4), sep='\\n')\n"
        "print(sorted({'torch', 'transformers'} & sys.modules.keys()))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    note, heavy = subprocess.check_output(command, cwd=ROOT, text=True).splitlines()
    assert "pip install" in note and "pipeline.png" in note and heavy == "[]"
    assert (tmp_path / "pipeline.html").exists() and (tmp_path / "chrome.json").exists()


def test_the_lanes_are_planned_then_measured(folder: Path, tmp_path: Path) -> None:
    found = halves(folder)
    text = pipeline_page(found)
    lanes = run_model(text, LANES, tmp_path)
    tick = data_of(text)["tick"]
    assert [(lane["replica"], lane["stage"]) for lane in lanes] == [
        (half, stage) for half in (0, 1) for stage in range(4)
    ]
    letters = {"forward of": "u", "backward o": "d", "the plan": "p"}
    for lane in lanes:
        simulation = found.run.simulation if lane["replica"] else planned(found.recording)
        expected = [
            (action.start_s, action.end_s, action.kind[0], action.place)
            for action in simulation.actions
            if action.stage == lane["stage"]
        ]
        if lane["replica"]:
            expected += [
                (b.start_s, b.end_s, "t" if b.kind == "send" else letters[b.name[:10]], b.place)
                for b in found.run.beside
                if b.stage == lane["stage"]
            ]
        expected.sort()
        assert list(zip(lane["kinds"], lane["places"], strict=True)) == [e[2:] for e in expected]
        assert lane["starts"] == pytest.approx([e[0] for e in expected], abs=0.51 * tick)
        assert lane["ends"] == pytest.approx([e[1] for e in expected], abs=0.51 * tick)
    # Both halves have one scale of time, up to the end of the longer one.
    makespans = found.run.simulation.makespan_s, found.planned.makespan_s
    assert data_of(text)["end"] == data_of(text)["makespan"] == max(makespans)


def test_what_the_hover_says_of_waits_and_halves(folder: Path, tmp_path: Path) -> None:
    code = (
        "const say = (row, kind) => m.describe(model, model.lanes[row],"
        " {index: model.lanes[row].kinds.indexOf(kind)});"
        "return [say(5, 'u'), say(4, 'd'), say(5, 't'), say(0, 'f'), say(4, 'f')]"
    )
    before, behind, send, above, below = run_model(pipeline_page(halves(folder)), code, tmp_path)
    assert before["title"] == ("Waiting for a forward of the stage before, measured, stage 1")
    assert before["rows"] == [] and "duration" in before["lines"][0]
    assert behind["title"] == "Waiting for a backward of the stage behind, measured, stage 0"
    assert send["title"] == "Sending, measured, stage 1"
    assert above["title"] == "Place 0: forward, planned, with times fitted to this run, stage 0"
    assert below["title"] == "Place 0: forward, measured, stage 0"
    assert below["rows"] == above["rows"] and len(below["rows"]) == 2


def test_waits_are_not_busy_when_zoomed_out(folder: Path, tmp_path: Path) -> None:
    found = halves(folder)
    code = (
        "return model.lanes.map(lane => [...m.columns(model, lane, "
        "{from: 0, width: model.end / 10, count: 10, only: -1})])"
    )
    text = pipeline_page(found)
    shares = run_model(text, code, tmp_path)[4:]
    for columns, busy in zip(shares, found.run.simulation.busy_s, strict=True):
        assert sum(columns) / 10 == pytest.approx(busy / data_of(text)["end"], abs=1e-3)


def test_figures_and_stages_stand_on_the_page(folder: Path) -> None:
    found = halves(folder)
    elements = Elements(pipeline_page(found))
    values = dict(zip(elements.texts("dt"), elements.texts("dd")[::2], strict=False))
    assert values["bubble"] == f"{found.run.simulation.bubble:.1%}"
    assert f"planned {found.planned.bubble:.1%}" in elements.texts("dd")
    heads, cells = elements.texts("th"), elements.texts("td")
    assert heads[:2] == ["stage", "forward"] and heads[9] == "idle, planned"
    rows = [cells[i : i + 10] for i in range(0, 40, 10)]
    assert [row[0] for row in rows] == [f"stage {stage}" for stage in range(4)]
    assert [row[4] == "–" for row in rows] == [True, False, False, False]
    assert [row[5] == "–" for row in rows] == [False, False, False, True]
    assert [row[8] for row in rows] == [f"{row.idle:.1%}" for row in found.rows()]
    legend = [span for span in elements.texts("span") if span]
    assert legend[-2:] == ["waiting", "sending"]


def test_a_name_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    plan = renamed(sweep(3), {"job-0": HOSTILE})
    record(tmp_path, plan, load_s=1e-6)
    text = pipeline_page(halves(tmp_path))
    tags = [tag for tag, _, _ in Elements(text).found]
    record(tmp_path, sweep(3), load_s=1e-6)
    assert tags == [tag for tag, _, _ in Elements(pipeline_page(halves(tmp_path))).found]
    assert HOSTILE in data_of(text)["jobs"]


@pytest.mark.parametrize("segments", [1, 12])
def test_a_long_runs_page_stays_small_and_both_halves_end_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segments: int
) -> None:
    """With a thirtieth of the budget, so that a few hundred places are enough."""
    budget = replace(pipeline_html.BUDGET, size=pipeline_html.BUDGET.size / 30)
    monkeypatch.setattr(pipeline_html, "BUDGET", budget)
    plan = sweep(450) if segments == 1 else large(300, stages=4, jobs=30, segments=segments)
    found = synthetic(tmp_path, plan, with_waits=True)
    text = pipeline_page(found)
    data = data_of(text)
    assert "The lanes show " in text and data["end"] < 0.9 * data["makespan"]
    size = sum(len(json.dumps(data[part], separators=(",", ":"))) for part in ("places", "lanes"))
    assert 0.5 * budget.size < size < budget.size < 1.2e5
    lanes = run_model(text, LANES, tmp_path)
    assert len(lanes) == 8
    for lane in lanes:
        assert lane["starts"][-1] < data["end"] and max(lane["places"]) <= len(data["places"]) + 4
        # Neither half drains at the end of what is drawn.
        assert lane["ends"][-1] > 0.9 * data["end"]


def test_the_page_says_what_was_not_read(folder: Path) -> None:
    found = halves(folder)
    said = "Everything here is of the first 15 of 99 places."
    part = replace(found, recording=replace(found.recording, places=99))
    assert said in pipeline_page(part) and "Everything here" not in pipeline_page(found)


def pixels(path: Path, found: Halves) -> Any:
    from matplotlib.image import imread

    draw(path, found)
    return np.rint(np.asarray(imread(path))[..., :3] * 255).astype(np.uint8)


def mask(picture: Any, colour: str) -> Any:
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return (picture == rgb).all(axis=-1)


def test_the_picture_has_both_halves_at_one_scale(tmp_path: Path) -> None:
    """Of a run that was as planned, both halves have as much of every job's colours."""
    plan = large(40, stages=4, segments=1)
    picture = pixels(tmp_path / "run.png", synthetic(tmp_path, plan))
    height, width, _ = picture.shape
    assert width == 2100 and 900 < height < 1300
    rows = np.flatnonzero(mask(picture, colours.backward(0)).any(axis=1))
    gap = max(range(1, len(rows)), key=lambda i: rows[i] - rows[i - 1])
    above, below = picture[: rows[gap - 1] + 1], picture[rows[gap] :]
    for job in range(5):
        first, second = (mask(half, colours.backward(job)) for half in (above, below))
        # Edges fall otherwise on rows of pixels; columns are the same times.
        assert first.sum() > 200 and first.sum() == pytest.approx(second.sum(), rel=0.05)
        left, right = (np.flatnonzero(half.sum(axis=0) > 3) for half in (first, second))
        assert len(np.setxor1d(left, right)) < 0.15 * len(left)


def test_the_picture_has_waits(folder: Path, tmp_path: Path) -> None:
    found = halves(folder)
    bare = replace(found, run=replace(found.run, beside=()))
    pictures = [pixels(tmp_path / "run.png", half) for half in (found, bare)]
    differ = np.count_nonzero((pictures[0] != pictures[1]).any(axis=-1))
    waited = sum(b.end_s - b.start_s for b in found.run.beside if b.kind == "wait")
    # A lane is about 1,980 pixels wide and 42 high.
    area = waited / found.longest * 1980 * 42
    assert 0.2 * area < differ < 1.2 * area
