"""What a run leaves beside its spans: what its figures depend on, and what fills its memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from lorafusion.launch.local import LocalOptions, finish_local
from lorafusion.plans.recorded import read_recording
from lorafusion.training.events import Events
from lorafusion.training.peak import gpu_peak, measured_peak
from lorafusion.training.result import RunResult
from tests.plans.recorded_runs import lines
from tests.training.places import Bench
from tests.training.runs import four_jobs, make_spec, run
from tests.training.stages import LONGEST, Case, Stages

FIELDS = {
    "format": int,
    "started": str,
    "base_model": str,
    "dtype": str,
    "device": dict,
    "machine": dict,
    "versions": dict,
    "threads": int,
    "stages": int,
    "layers": list,
    "recompute": bool,
    "deterministic": bool,
    "capacity": int,
    "peak_flops": float,
    "peak_source": str,
    "shape": dict,
    "jobs": list,
}
# Of the tiny Llama: q 32x32, k and v 16x32, o 32x32, gate and up 48x32, down 32x48.
LAYER = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32
KINDS = ("total", "runtime", "base", "adapters", "gradients", "optimizer")


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "trace" / "run.json").read_text())


def memory(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    found = lines(folder / "trace" / f"rank-{rank}.jsonl")
    return [line for line in found if line["kind"] == "memory"]


def check_facts(found: dict[str, Any], base: Path, layers: list[list[int]]) -> None:
    assert list(found) == list(FIELDS)
    wrong = [key for key, kind in FIELDS.items() if type(found[key]) is not kind]
    assert not wrong
    assert datetime.fromisoformat(found["started"]).tzinfo is not None
    assert (found["format"], found["base_model"], found["dtype"]) == (1, str(base), "float32")
    assert found["device"]["kind"] == "cpu" and found["device"]["name"]
    assert found["machine"]["cores"] > 0 and found["versions"]["torch"] == torch.__version__
    assert found["threads"] == 1 and found["capacity"] == 96
    assert found["layers"] == layers and found["stages"] == len(layers)
    assert found["peak_flops"] > 1e8 and "measured" in found["peak_source"]
    depth = layers[-1][1]
    assert found["shape"] == {
        "hidden": 32,
        "layers": depth,
        "vocab": 320,
        "query": 32,
        "layer_parameters": LAYER,
        "parameters": depth * LAYER + 320 * 32,
    }


def test_one_process(deep_base: Path, tmp_path: Path) -> None:
    jobs = four_jobs(tmp_path, steps=6)
    out = tmp_path / "out"
    result = run(out, deep_base, jobs)
    found = facts(out)
    check_facts(found, deep_base, [[0, 4]])
    assert [job["name"] for job in found["jobs"]] == ["wide", "attention", "regex", "narrow"]
    # Rank 3 on q [32, 32] and v [16, 32] of four layers.
    expected = 4 * 3 * (32 + 32 + 32 + 16)
    assert found["jobs"][1] == {
        "name": "attention",
        "folder": str(out / "attention"),
        "rank": 3,
        "adapter_parameters": expected,
        "token_flops": 6 * expected,
        "sweep": None,
    }
    recording = read_recording(out / "trace", 1)
    assert recording.places == len(recording.plan.places) > 10
    kinds = {span.kind for span in recording.spans[0]}
    assert kinds == {"forward", "backward", "step"}
    (times,) = result.stages
    assert times.forward_s > 0 and times.layers == (0, 4)


def test_what_is_kept_of_adapters_is_all_of_it(tiny_base: Path, tmp_path: Path) -> None:
    """The numbers of the file are those of the tensors that are trained."""
    jobs = four_jobs(tmp_path, steps=4)
    run(tmp_path / "out", tiny_base, jobs)
    bench = Bench(tiny_base, jobs)
    for job in facts(tmp_path / "out")["jobs"]:
        parameters = bench.jobs[job["name"]].shard.parameters.values()
        assert job["adapter_parameters"] == sum(tensor.numel() for tensor in parameters)


@pytest.mark.multiproc
def test_two_stages(stages: Stages, deep_base: Path, tmp_path: Path) -> None:
    jobs = [{**job, "max_seq_len": LONGEST} for job in four_jobs(tmp_path, steps=6)]
    out = tmp_path / "out"
    ended = stages.run(Case(out, 2, trace=None), jobs)
    assert ended.codes == [0, 0], ended.err
    found = facts(out)
    check_facts(found, deep_base, [[0, 2], [2, 4]])
    # Of both stages, though rank 0 holds one.
    assert found["jobs"][1]["adapter_parameters"] == 4 * 3 * (32 + 32 + 32 + 16)
    first, second = memory(out, 0)[0], memory(out, 1)[0]
    # Float32; tied: both hold the embedding, the second alone the final norm.
    layers = 4 * (2 * LAYER + 2 * 2 * 32)
    assert first["base"] == layers + 4 * 320 * 32
    assert second["base"] == first["base"] + 4 * 32
    adapters = 4 * sum(job["adapter_parameters"] for job in found["jobs"])
    assert first["adapters"] + second["adapters"] == adapters
    read_recording(out / "trace", 2)


def test_memory_is_measured_where_activations_are_alive(tiny_base: Path, tmp_path: Path) -> None:
    jobs = four_jobs(tmp_path, steps=20)
    run(tmp_path / "out", tiny_base, jobs)
    found = memory(tmp_path / "out")
    assert found
    all_lines = lines(tmp_path / "out" / "trace" / "rank-0.jsonl")
    for line in found:
        assert list(line) == ["kind", "at", *KINDS]
        before = all_lines[all_lines.index(line) - 1]
        assert before["kind"] == "forward" and before["end"] == line["at"]
        assert line["total"] > 10e6 and line["runtime"] > 10e6
    times = [line["at"] for line in found]
    assert all(later - earlier >= 0.5 for earlier, later in pairwise(times))
    assert found[0]["optimizer"] == 0  # no step yet


def test_the_kinds_are_those_of_the_tensors(tiny_base: Path, tmp_path: Path) -> None:
    bench = Bench(tiny_base, four_jobs(tmp_path, steps=4), deterministic=True)
    meter = bench.site.meter(1)
    jobs = list(bench.jobs.values())
    parameters = {
        name: sum(tensor.nbytes for tensor in job.shard.parameters.values())
        for name, job in bench.jobs.items()
    }
    before = meter()
    assert before.runtime == 1 and before.total > 10e6
    assert before.base == sum(p.nbytes for p in bench.base.tensors.values())
    assert before.adapters == sum(parameters.values())
    assert before.gradients == before.optimizer == 0
    bench.run(bench.place("wide"))
    assert meter().optimizer == 2 * parameters["wide"]
    assert meter().optimizer == sum(
        tensor.nbytes
        for job in jobs
        for name, tensor in job.shard.tensors().items()
        if name not in job.shard.parameters
    )
    # The second of three samples is held, then the first makes the sum of both.
    shard = bench.jobs["attention"].shard
    order = bench.jobs["attention"].data.order.batch(1).tolist()
    for sample, count in ((order[1], 1), (order[0], 1), (order[3], 2)):
        for parameter in shard.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        shard.collect([sample])
        assert meter().gradients == count * parameters["attention"]


def test_nothing_is_kept_where_nothing_is_asked(tiny_base: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny_base, four_jobs(tmp_path, steps=4))
    result = finish_local(spec, LocalOptions(tmp_path / "out", trace="off"), Events())
    assert isinstance(result, RunResult) and (tmp_path / "out" / "wide" / "adapter").exists()
    assert not (tmp_path / "out" / "trace").exists()


def test_a_base_that_the_planner_does_not_know(tiny_base: Path, tmp_path: Path) -> None:
    """Its sizes stand in no shape; the rest is written."""
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "num_experts": 2}))
    run(tmp_path / "out", base, four_jobs(tmp_path, steps=4)[:1])
    assert facts(tmp_path / "out")["shape"] is None


def test_a_run_that_fails_early_closes_its_trace(tiny_base: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.training.runs import four_jobs, run\n"
        "from lorafusion.training.events import Events\n"
        "class Bad(Events):\n"
        "    def step(self, *_, **__): raise ZeroDivisionError\n"
        "out, base = map(Path, sys.argv[1:])\n"
        "try:\n"
        "    run(out / 'out', base, four_jobs(out, steps=4), events=Bad())\n"
        "except ZeroDivisionError:\n"
        "    print('raised')\n"
    )
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", code]
    done = subprocess.run(
        [*command, str(tmp_path), str(tiny_base)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "raised\n"
    found = lines(tmp_path / "out" / "trace" / "rank-0.jsonl")
    assert found[-1]["kind"] in {"step", "backward", "forward", "memory"}


def test_the_peak_of_known_gpus() -> None:
    names = {
        "NVIDIA H100 80GB HBM3": 989.4e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA A100 80GB PCIe": 312e12,
        "NVIDIA H200": 989.4e12,
        "NVIDIA B200": 2250e12,
        "AMD Instinct MI300X": 1307.4e12,
        "NVIDIA H100 PCIe": None,
        "NVIDIA H100 NVL": None,
        "NVIDIA H200 NVL": None,
        "NVIDIA GB200": None,
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb": None,
        "NVIDIA GeForce RTX 4090": None,
    }
    assert {name: gpu_peak(name, torch.bfloat16).flops for name in names} == names
    assert gpu_peak("NVIDIA A100-SXM4-80GB", torch.float32).flops == 19.5e12
    assert gpu_peak("NVIDIA B200", torch.float32).flops is None
    assert "data sheet" in gpu_peak("NVIDIA H200", torch.bfloat16).source
    assert "RTX 4090" in gpu_peak("NVIDIA GeForce RTX 4090", torch.bfloat16).source


def test_a_measured_peak_says_what_it_is_of() -> None:
    peak = measured_peak(torch.float32)
    assert peak.flops is not None and peak.flops > 1e8
    assert "float32" in peak.source and "1 thread" in peak.source
    # With no time there is one product, the smallest.
    assert "64 x 64" in measured_peak(torch.float64, 0.0).source
