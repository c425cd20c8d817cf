"""Memory that runs out for real, in one job's part of a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lorafusion.training.out_of_memory import MOST_BLOCKS, bounded_snapshot, is_out_of_memory

PROGRAM = Path(__file__).with_name("full_memory.py")
ROOT = Path(__file__).parents[2]
# Megabytes that are left. The large job needs more than 750, its neighbour hardly any.
ROOM = 400


@pytest.mark.multiproc
def test_the_job_fails_and_its_reason_leads_to_the_file(deep_base: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), str(deep_base), str(tmp_path), str(ROOM)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "LORAFUSION_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    large, small = result["jobs"]
    assert (large["state"], small["state"]) == ("failed", "succeeded")
    path = tmp_path / "out" / "trace" / "out-of-memory-rank-0.json"
    assert large["reason"].endswith(f". What filled the memory stands in {path}.")
    assert "you tried to allocate" in large["reason"]
    found = json.loads(path.read_text())
    assert (found["format"], found["rank"], found["device"]) == (1, 0, "cpu")
    assert found["doing"] in large["reason"] and found["error"] in large["reason"]
    (job,) = found["place"]["jobs"]
    assert (job["job"], job["step"], job["samples"]) == ("large", 1, 1000)
    assert job["tokens"] == found["place"]["tokens"] > 10_000
    memory, limits = found["memory"], found["limits"]
    # Measured while what filled it was still there.
    kinds = ("runtime", "base", "adapters", "gradients", "optimizer")
    assert memory["total"] - sum(memory[kind] for kind in kinds) > 200e6
    assert 0 < memory["adapters"] < memory["base"] < 1e6
    assert limits["address_space"] - 64e6 < limits["address_space_used"] <= limits["address_space"]
    assert limits["most_resident"] >= memory["total"] * 0.9
    assert found["cuda"] is None


def test_what_counts_as_out_of_memory() -> None:
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("CUDA"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ZeroDivisionError())


def test_a_snapshot_is_bounded_and_json() -> None:
    """As torch.cuda.memory._snapshot() gives it; no GPU is here."""
    segment = {
        "address": 4096,
        "stream": 0,
        "total_size": 3 * 2**30,
        "blocks": [
            {"size": size, "state": "active_allocated", "frames": [object()]}
            for size in range(1, MOST_BLOCKS + 11)
        ],
    }
    found = json.loads(json.dumps(bounded_snapshot({"segments": [segment], "device_traces": []})))
    assert found["segments"] == 1 and found["reserved"] == 3 * 2**30
    assert found["blocks"] == MOST_BLOCKS + 10 and len(found["largest"]) == MOST_BLOCKS
    assert found["largest"][0]["bytes"] == MOST_BLOCKS + 10
