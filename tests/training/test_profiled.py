"""Torch's profile of some places: what it names, what it adds up to, and that it changes no bit."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AttentionInterface

from lorafusion.kernels.lora_linear import op
from lorafusion.launch.local import LocalOptions, finish_local
from lorafusion.models import attention
from lorafusion.training import operations, profiled
from lorafusion.training.events import Events
from lorafusion.training.options import Traces
from lorafusion.training.profiled import ProfiledRecorder
from lorafusion.training.ranges import named_ranges
from lorafusion.training.recorders import make_recorder
from lorafusion.training.trace import Trace
from tests.training.places import Bench
from tests.training.runs import assert_same_bytes, four_jobs, make_spec, run, write_rows
from tests.training.stages import LONGEST, Case, Stages

HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class Notes(Events):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def events_of(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    packed = (folder / f"profile-rank-{rank}.json.gz").read_bytes()
    return json.loads(gzip.decompress(packed))["traceEvents"]


def names_of(events: Sequence[Mapping[str, Any]]) -> set[str]:
    return {event["name"] for event in events if event.get("ph") == "X"}


def by_kind(document: Mapping[str, Any]) -> dict[str, tuple[float, int]]:
    return {entry["name"]: (entry["seconds"], entry["calls"]) for entry in document["operations"]}


def profile_run(output: Path, base: Path, jobs: Any, **settings: Any) -> list[str]:
    events = Notes()
    spec = make_spec(base, jobs, **settings)
    finish_local(spec, LocalOptions(output, trace="profile"), events)
    return events.notes


def assert_bytes(found: Path, expected: Path, jobs: Sequence[Mapping[str, Any]]) -> None:
    for job in jobs:
        assert_same_bytes(found / job["name"], expected / job["name"])
        adapters = [
            (folder / job["name"] / "adapter" / "adapter_model.safetensors").read_bytes()
            for folder in (found, expected)
        ]
        assert adapters[0] == adapters[1]


def test_one_process(deep_base: Path, tmp_path: Path) -> None:
    jobs = four_jobs(tmp_path, steps=6)
    run(tmp_path / "plain", deep_base, jobs, deterministic=True)
    out = tmp_path / "out"
    profile_run(out, deep_base, jobs, deterministic=True)
    assert_bytes(out, tmp_path / "plain", jobs)
    traces = out / "trace"
    assert not [path for path in traces.iterdir() if path.name.startswith(".")]
    names = names_of(events_of(traces))
    assert {"attention", "loss", "lora down", "lora up 3", "lora up", "lora grad_input 2"} <= names
    assert {f"layer {index}" for index in range(4)} <= names
    document = json.loads((traces / "operations-0.json").read_text())
    first, behind = document["places"]
    assert document["format"] == 1 and first == profiled.WARM_UP < behind
    spans = [json.loads(line) for line in (traces / "rank-0.jsonl").read_text().splitlines()]
    forwards = [span for span in spans if span["kind"] == "forward"]
    inside = [span for span in forwards if first <= span["place"] < behind]
    expected = {f"forward {span['name']} (place {span['place']})" for span in inside}
    assert {name for name in names if name.startswith("forward ")} == expected
    assert any(name.startswith("step wide#") for name in names)
    kinds = by_kind(document)
    assert tuple(kinds) == operations.KINDS
    idle = {operations.COMMUNICATION}
    assert not [kind for kind, (seconds, _) in kinds.items() if (seconds > 0) == (kind in idle)]
    assert sum(seconds for seconds, _ in kinds.values()) <= document["seconds"]


@pytest.mark.multiproc
def test_two_stages(stages: Stages, deep_base: Path, tmp_path: Path) -> None:
    jobs = [{**job, "max_seq_len": LONGEST} for job in four_jobs(tmp_path, steps=6)]
    run(tmp_path / "plain", deep_base, jobs, deterministic=True)
    out = tmp_path / "out"
    ended = stages.run(Case(out, 2, trace=True), jobs, deterministic=True)
    assert ended.codes == [0, 0], ended.err
    assert_bytes(out, tmp_path / "plain", jobs)
    for rank, (layers, others) in enumerate([((0, 1), (2, 3)), ((2, 3), (0, 1))]):
        names = names_of(events_of(out / "trace", rank))
        assert {f"layer {index}" for index in layers} <= names
        assert not {f"layer {index}" for index in others} & names
        assert ("loss" in names) == (rank == 1)
        # A receive may end after the profile, and torch would write its end to freed memory.
        assert not {name for name in names if name.startswith("gloo:")}
        kinds = by_kind(json.loads((out / "trace" / f"operations-{rank}.json").read_text()))
        assert kinds[operations.COMMUNICATION][0] > 0
        assert (kinds[operations.HEAD][0] > 0) == (rank == 1)


def test_products_are_those_of_the_layers(tiny_base: Path, tmp_path: Path) -> None:
    """One a linear in the forward, and one in the backward where a gradient goes on."""
    bench = Bench(tiny_base, four_jobs(tmp_path, steps=4))
    recorder = ProfiledRecorder(Trace(tmp_path), tmp_path, 0)
    recorder.look_at(bench.site.stage, bench.site.meter(0))
    for place in range(profiled.WARM_UP + 1):
        with recorder.span("forward", place, "wide#1"):
            pass
    place = bench.place("wide")
    with recorder.span("forward", place=profiled.WARM_UP + 1, name="wide#1"):
        bench.run(place)
    recorder.close()
    assert recorder.problem is None
    document = json.loads((tmp_path / "operations-0.json").read_text())
    assert document["places"] == [profiled.WARM_UP, profiled.WARM_UP + 2]
    kinds = by_kind(document)
    # 14 linears; below q, k and v of layer 0 nothing is adapted, and no gradient goes on.
    assert kinds[operations.BASE][1] == 14 + 14 - 3
    # Of each layer q, k, v run together, and gate, up; o and down alone. Layer 0's q, k, v have an
    # input whose gradient nobody wants. dS and dB are made linear by linear.
    names = [event["name"] for event in events_of(tmp_path) if event.get("ph") == "X"]
    for part in ("down", "up", "grad_a"):
        assert [names.count(f"lora {part}{n}") for n in ("", " 2", " 3")] == [4, 2, 2]
    assert [names.count(f"lora grad_input{n}") for n in ("", " 2", " 3")] == [4, 2, 1]
    assert names.count("lora grad_down") == 14
    assert names.count("attention") == names.count("layer 0") + names.count("layer 1") == 2


def test_few_places_where_they_are_large(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiled, "MOST_LAYERS", 4)  # two places of two layers
    profile_run(tmp_path / "out", tiny_base, four_jobs(tmp_path, steps=8)[:1])
    document = json.loads((tmp_path / "out" / "trace" / "operations-0.json").read_text())
    assert document["places"] == [profiled.WARM_UP, profiled.WARM_UP + 2]


def test_a_run_that_is_too_short_says_so(tiny_base: Path, tmp_path: Path) -> None:
    job = {
        "name": "short",
        "dataset": {"path": write_rows(tmp_path / "rows.jsonl", rows=4, longest=3, seed=1)},
        "max_steps": 2,
        "global_batch_size": 1,
    }
    notes = profile_run(tmp_path / "out", tiny_base, [job])
    assert any("no profile was written: the run has no place 5" in note for note in notes)
    assert not list((tmp_path / "out" / "trace").glob("profile*"))


def test_a_profile_that_cannot_be_written_ends_nothing(tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "trace"
    (folder / "profile-rank-0.json.gz").mkdir(parents=True)
    notes = profile_run(tmp_path / "out", tiny_base, four_jobs(tmp_path, steps=6)[:2])
    assert any("the profile of rank 0 was not written" in note for note in notes)
    assert (tmp_path / "out" / "wide" / "adapter").exists()


def test_nothing_is_left_of_the_ranges(tiny_base: Path, tmp_path: Path) -> None:
    stage = Bench(tiny_base, four_jobs(tmp_path, steps=4)).site.stage
    before = dict(vars(op))
    seen: list[int] = []
    with pytest.raises(ZeroDivisionError), named_ranges(stage, lambda: seen.append(1)):
        assert AttentionInterface()[attention.NAME] is not attention.packed_attention
        assert vars(op)["up"] is not before["up"] and "loss" in vars(stage)
        raise ZeroDivisionError
    assert vars(op) == before and "loss" not in vars(stage)
    assert AttentionInterface()[attention.NAME] is attention.packed_attention
    hooks = [vars(layer)[name] for layer in stage.layers for name in HOOKS]
    assert len(hooks) == 4 and not any(hooks)


def test_nobody_profiles_unasked(tmp_path: Path) -> None:
    assert type(make_recorder(None)) is Trace
    assert type(make_recorder(Traces(tmp_path, "spans"))) is Trace
    assert type(make_recorder(Traces(tmp_path, "profile"))) is ProfiledRecorder


def event(name: str, start: float, end: float, cat: str = "cpu_op", **args: Any) -> dict[str, Any]:
    thread = {"pid": 1, "tid": args.pop("tid", 1)}
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": end - start, "args": args} | (
        thread
    )


SPAN = "user_annotation"
STEP = [
    event("forward a#1 (place 5)", 0, 100, SPAN),
    event("layer 0", 10, 90, SPAN),
    event("aten::linear", 11, 20),
    event("aten::addmm", 12, 19),
    event("aten::mul", 20, 24),
    event("aten::to", 24, 26),
    event("_LoraLinear", 30, 60),
    event("lora down", 31, 40, SPAN),
    event("lora up", 41, 59, SPAN),
    event("aten::linear", 42, 50),
    event("aten::mm", 43, 49),
    event("aten::matmul", 51, 53),
    event("attention", 60, 80, SPAN),
    event("aten::mm", 61, 70),
    event("backward a#1 (place 5)", 100, 200, SPAN),
    event("autograd::engine::evaluate_function: MulBackward0", 101, 110),
    event("aten::mul", 102, 108),
    event("autograd::engine::evaluate_function: _WeightedCrossEntropyBackward", 110, 120),
    event("aten::mul", 111, 119),
    event("aten::add_", 130, 140),
    event("step a#1 (place 5)", 200, 210, SPAN),
    event("aten::mul_", 201, 203),
    event("wait forward of stage 0 (place 6)", 210, 230, SPAN),
]


def test_own_time_counts_by_what_it_lies_in() -> None:
    found = {
        entry["name"]: (round(entry["seconds"] * 1e6), entry["calls"])
        for entry in operations.sum_operations(STEP)
    }
    assert found == {
        operations.BASE: (9 + 8, 2),
        # _LoraLinear without its up's product, which is the first in it.
        operations.ADAPTERS: (30 - 8, 1),
        operations.ATTEND: (20, 1),
        operations.POINTWISE: (4 + 6, 2),
        operations.HEAD: (10, 1),
        operations.COPIES: (2, 1),
        operations.OPTIMIZER: (10 + 10, 2),
        operations.COMMUNICATION: (20, 1),
        operations.OTHER: (230 - 9 - 8 - 22 - 20 - 10 - 10 - 2 - 20 - 20, 2),
    }


def test_kernels_count_where_they_were_launched() -> None:
    launches = [
        event("cudaLaunchKernel", 13, 14, "cuda_runtime", correlation=1),  # linear
        event("cudaLaunchKernel", 32, 33, "cuda_runtime", correlation=2),  # down
        event("cuLaunchKernel", 54, 55, "cuda_driver", correlation=3),  # up
        event("cudaLaunchKernel", 103, 104, "cuda_runtime", correlation=4),  # mul
    ]
    kernels = [
        event("sm90_gemm", 500, 530, "kernel", correlation=1, tid=7),
        event("down_kernel", 530, 535, "kernel", correlation=2, tid=7),
        event("gemm_kernel", 535, 560, "kernel", correlation=3, tid=7),
        event("elementwise_kernel", 560, 561, "kernel", correlation=4, tid=7),
        event("ncclDevKernel_SendRecv", 600, 640, "kernel", correlation=9, tid=8),
        event("Memcpy HtoD", 640, 642, "gpu_memcpy", correlation=10, tid=7),
    ]
    found = operations.sum_operations([*STEP, *launches, *kernels], on_gpu=True)
    seconds = {entry["name"]: round(entry["seconds"] * 1e6) for entry in found}
    assert seconds == dict.fromkeys(operations.KINDS, 0) | {
        operations.BASE: 30 + 25,  # Triton's has LoRA's product in it
        operations.ADAPTERS: 5,
        operations.POINTWISE: 1,
        operations.COMMUNICATION: 40,
        operations.COPIES: 2,
    }
