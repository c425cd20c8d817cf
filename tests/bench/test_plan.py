"""``lorafusion bench plan``: what it prints, and what must hold on the cases."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lorafusion.bench import pages, plan_table, results
from lorafusion.bench.plan import Outcome, measure_case, reached
from lorafusion.bench.plan_case import CaseFile, Reached, allowed_places
from lorafusion.cli import build_app
from lorafusion.planner.bounds import EFFORT, tight_bound
from lorafusion.planner.plan import Limits, Place, Plan, PlannedSegment
from lorafusion.planner.search import plan_run

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "planner" / "cases"
REFERENCE = ("lognormal_0", "lognormal_1", "lognormal_2", "small_batches", "two_jobs")
OTHERS = sorted({path.stem for path in CASES.glob("*.json")} - set(REFERENCE))
HARD = [name for name in OTHERS if name.startswith("hard_")]
FIELDS = ["name", "places", "microbatches", "noops", "seconds", "bubble", "plan"]


def case_file(name: str) -> Path:
    return CASES / f"{name}.json"


def invoke(*arguments: object):
    return CliRunner().invoke(build_app(), ["bench", "plan", *map(str, arguments)])


def printed(*arguments: object) -> list[dict[str, Any]]:
    done = invoke("--json", *arguments)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


# What the command prints


def broken_rules(case: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What is wrong with a printed plan, by the case's file alone."""
    problems: list[str] = []
    seen: Counter[tuple[int, int]] = Counter()
    places: dict[tuple[int, int], list[int]] = {}
    for place, rows in enumerate(found["plan"]):
        steps: dict[int, set[int]] = {}
        for job, step, sample, tokens in rows:
            spec = case["jobs"][job]
            if (step, tokens) != (sample // spec["global_batch_size"], spec["lengths"][sample]):
                problems.append(f"place {place}: {job, step, sample, tokens}")
            seen[job, sample] += 1
            steps.setdefault(job, set()).add(step)
            places.setdefault((job, step), []).append(place)
        if sum(row[3] for row in rows) > case["capacity_tokens"]:
            problems.append(f"place {place}: too full")
        problems += [f"place {place}: two steps of {job}" for job in steps if len(steps[job]) > 1]
    due = {(job, i) for job, spec in enumerate(case["jobs"]) for i in range(len(spec["lengths"]))}
    if set(seen) != due or set(seen.values()) != {1}:
        problems.append("not each sample once")
    for (job, step), at in places.items():
        after = places.get((job, step + 1))
        if after and min(after) < max(at) + case["stages"]:
            problems.append(f"job {job}: step {step + 1} too close")
    return problems


def bubble_of(case: dict[str, Any], found: dict[str, Any]) -> float:
    """1F1B by the order of actions of each stage and what each waits for, spelled out."""
    loads = [sum(row[3] for row in rows) for rows in found["plan"]]
    count, stages = len(loads), case["stages"]
    ends: dict[tuple[str, int, int], float] = {}
    orders: list[list[tuple[str, int]]] = []
    for stage in range(stages):
        warm = min(stages - 1 - stage, count)
        order = [("F", place) for place in range(warm)]
        for place in range(count):
            order += [("F", place + warm)] if place + warm < count else []
            order.append(("B", place))
        orders.append(order)
    at, free = [0] * stages, [0.0] * stages
    while any(at[stage] < len(orders[stage]) for stage in range(stages)):
        for stage in range(stages):
            while at[stage] < len(orders[stage]):
                kind, place = orders[stage][at[stage]]
                edge = stage == (0 if kind == "F" else stages - 1)
                before = (kind, stage + (-1 if kind == "F" else 1), place)
                if not edge and before not in ends:
                    break
                start = max(free[stage], 0.0 if edge else ends[before])
                free[stage] = start + loads[place] * (1 if kind == "F" else 2)
                ends[kind, stage, place] = free[stage]
                at[stage] += 1
    return 1 - 3 * sum(loads) / max(free)


def test_json_holds_the_plans_and_nothing_else() -> None:
    names = ["two_jobs", "small_batches"]
    records = printed(*map(case_file, names))
    assert [record["name"] for record in records] == names
    for record, name in zip(records, names, strict=True):
        case = json.loads(case_file(name).read_text())
        assert list(record) == FIELDS
        assert broken_rules(case, record) == []
        assert record["places"] == len(record["plan"])
        assert record["noops"] == record["plan"].count([])
        assert record["microbatches"] + record["noops"] == record["places"]
        assert record["bubble"] == pytest.approx(bubble_of(case, record), abs=1e-9)
        assert record["seconds"] > 0


def test_the_check_of_printed_plans_finds_what_is_wrong() -> None:
    case = {"capacity_tokens": 10, "stages": 2}
    case["jobs"] = [{"global_batch_size": 1, "lengths": [6, 5]}]  # type: ignore[assignment]

    def rules(plan: list[Any]) -> list[str]:
        return broken_rules(case, {"plan": plan})

    assert rules([[[0, 0, 0, 6]], [], [[0, 1, 1, 5]]]) == []
    assert rules([[[0, 0, 0, 6]], [[0, 1, 1, 5]]]) == ["job 0: step 1 too close"]
    assert rules([[[0, 0, 0, 6]]]) == ["not each sample once"]
    assert len(rules([[[0, 0, 0, 6], [0, 1, 1, 5]]])) == 3
    assert rules([[[0, 0, 0, 6]], [], [[0, 1, 1, 4]]]) == ["place 2: (0, 1, 1, 4)"]


def test_equal_places_have_the_bubble_of_the_ramp() -> None:
    def plan(*loads: int) -> Plan:
        places = [
            Place("train", (PlannedSegment("a", 1, (i,), (n,)),)) for i, n in enumerate(loads)
        ]
        return Plan(Limits(10, stages=3), (*places, Place("noop")))

    found = reached(plan(7, 7, 7, 7))
    assert (found.places, found.noops) == (5, 1)
    assert found.bubble == pytest.approx(2 / 6)


def test_baselines_stand_beside_ours() -> None:
    (record,) = printed(case_file("two_jobs"), "--baselines")
    assert list(record) == [*FIELDS, "baselines"]
    theirs = record["baselines"]
    assert set(theirs) == {"lorafusion_greedy", "mlora", "one_after_another"}
    # 16 steps of 64 samples; a flush between two steps takes as long as three no-ops.
    assert theirs["one_after_another"]["noops"] == 3 * 15
    assert all(0 < other["bubble"] < 1 for other in theirs.values())


def test_without_cases_two_mixes_are_planned(tmp_path: Path) -> None:
    done = invoke("-o", tmp_path)
    assert done.exit_code == 0, done.output
    found = results.read(tmp_path / "cases.json")
    assert [case["stages"] for case in found["cases"]] == [4, 8, 4, 8]
    assert all(case["places"] >= case["bound"] > 50 for case in found["cases"])
    assert (tmp_path / "cases.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_for_people(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    begin, end = pages.marks(results.mark("cases"))
    page.write_text(f"before\n{begin}\n{end}\nbehind\n")
    done = invoke(case_file("two_jobs"), "-o", tmp_path / "out", "--write", page, "--rounds", 2)
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("two_jobs")]
    assert line.split()[:5] == ["two_jobs", "2", "4", "41", "41"]
    assert line.split()[-2:] == ["47,", "0.506"]
    found = results.read(tmp_path / "out" / "cases.json")
    assert found["machine"]["cpu"]
    assert found["versions"]["lorafusion"]
    (case,) = found["cases"]
    assert (case["name"], case["places"], case["bound"], case["holds"]) == (
        "two_jobs",
        41,
        41,
        True,
    )
    assert "plan" not in case
    table = pages.found_in(page, results.mark("cases"))
    assert table == plan_table.cases(found)
    assert "| two_jobs | 41 | 41 |" in table
    assert page.read_text().startswith("before\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "cannot be read as a planner case"),
        ({"stages": 0}, "stages is 0; allowed: an integer of at least 1"),
        ({"capacity_tokens": 4000}, "job 'a', step 1"),
        ({"lower_bound_places": True}, "lower_bound_places is True"),
        ({"tight_bound_places": 0}, "tight_bound_places is 0"),
        ({"lorafusion_reference": {"milp": 4}}, "lorafusion_reference is not of the form"),
    ],
)
def test_bad_files(change: dict[str, Any] | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    if change is not None:
        job = {"name": "a", "global_batch_size": 2, "lengths": [3, 4001]}
        case = {"name": "c", "stages": 2, "capacity_tokens": 5000, "jobs": [job]}
        path.write_text(json.dumps(case | change))
    done = invoke("--json", case_file("two_jobs"), path)
    assert done.exit_code == 2
    assert not done.stdout
    said = " ".join(done.stderr.split())
    assert message in said
    assert "bad.json" in said


def test_a_broken_plan_is_not_passed_off_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_short(queues: Any, limits: Limits) -> Plan:
        plan = plan_run(queues, limits)
        return Plan(limits, plan.places[1:])

    monkeypatch.setattr("lorafusion.bench.plan.plan_run", too_short)
    done = invoke("--json", case_file("two_jobs"))
    assert done.exit_code == 1
    assert "two_jobs: job 'job" in done.stderr
    assert json.loads(done.stdout)[0]["places"] == 40


def test_the_command_loads_nothing_heavy() -> None:
    code = (
        "import sys, lorafusion.cli as cli\n"
        f"sys.argv[1:] = ['bench', 'plan', '--json', {str(case_file('two_jobs'))!r}]\n"
        "try:\n    cli.main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)
    heavy = {"torch", "transformers", "numpy", "matplotlib", "ortools", "safetensors", "datasets"}
    assert not set(done.stderr.split()) & heavy


# What must hold


def holds(outcome: Outcome) -> str:
    """What a case falls short of; nothing if it holds."""
    file, ours = outcome.file, outcome.ours
    if outcome.holds is not False:
        return ""
    theirs = {mode: (one.places, one.bubble) for mode, one in file.reference.items()}
    return f"{ours.places} places of {file.aim}, bubble {ours.bubble:.4f}, {theirs}"


@pytest.mark.parametrize("name", REFERENCE)
def test_better_than_lorafusion(name: str) -> None:
    """At most 1.02 times the bound, and neither more places nor more bubble than either mode."""
    outcome = measure_case(CaseFile.read(case_file(name)))
    assert set(outcome.file.reference) == {"milp", "greedy"}
    assert outcome.violations == ()
    assert holds(outcome) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OTHERS if name not in HARD])
def test_close_to_the_bound(name: str) -> None:
    file = CaseFile.read(case_file(name))
    assert file.tight is not None, "tests/planner/make_cases.py writes it"
    outcome = measure_case(file)
    assert outcome.violations == ()
    assert holds(outcome) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", HARD)
def test_not_far_from_the_bound_where_it_is_hard(name: str) -> None:
    """Large samples, and few of them free at a time: what is proven may be out of reach."""
    file = CaseFile.read(case_file(name))
    assert file.tight is not None
    outcome = measure_case(file)
    assert outcome.violations == ()
    assert outcome.ours.places <= allowed_places(file.tight, percent=10)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_the_tight_bounds_are_what_is_proven(name: str) -> None:
    file = CaseFile.read(case_file(name))
    effort = 0 if file.roomy else EFFORT
    bound = tight_bound(file.case.queues(), file.case.limits(), effort=effort)
    assert file.tight is not None
    assert bound.places >= file.tight
    assert bound.simple == file.bound


def test_the_aim() -> None:
    assert [allowed_places(n, percent=2) for n in (41, 59, 60, 100, 150)] == [42, 60, 61, 102, 153]
    assert [allowed_places(n, percent=5) for n in (10, 59, 60, 100)] == [11, 61, 63, 105]
    two = CaseFile.read(case_file("two_jobs"))
    assert (two.by_load, two.by_chain, two.roomy, two.aim) == (23, 41, False, 42)
    roomy = CaseFile.read(case_file("summaries_4_jobs_batch_32_s4"))
    assert (roomy.roomy, roomy.aim) == (True, allowed_places(roomy.bound, percent=2))
    tight = CaseFile.read(case_file("real_demo_s4"))
    assert not tight.roomy
    assert tight.aim == (tight.tight and allowed_places(tight.tight, percent=5))


@pytest.mark.parametrize(
    ("places", "bubble", "expected"),
    [(41, 0.4, True), (43, 0.4, False), (41, 0.5057, False), (42, 0.5056, True)],
)
def test_what_holding_means(places: int, bubble: float, expected: bool) -> None:
    file = CaseFile.read(case_file("two_jobs"))
    plan = Plan(file.case.limits(), ())
    assert Outcome(file, plan, Reached(places, 0, bubble), 0.1).holds is expected
    assert Outcome(file, plan, Reached(places, 0, bubble), 0.1, ("a rule",)).holds is False


@pytest.mark.slow
def test_the_page_holds_what_the_planner_does_now() -> None:
    """All but the seconds come out the same on any machine."""
    result = results.read(ROOT / "docs" / "planner" / "cases.json")
    for found in result["cases"]:
        now = measure_case(CaseFile.read(case_file(found["name"]))).figures()
        same = ("places", "noops", "bound", "tight", "aim", "holds")
        assert {name: found[name] for name in same} == {name: now[name] for name in same}
        assert math.isclose(found["bubble"], now["bubble"], rel_tol=1e-9)
