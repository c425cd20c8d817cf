"""A run over two hosts, each with its own address: the network fails, a host dies, both come back.

One stage a host. Whatever happens, a run that goes on ends with the adapter of one process.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.launch.conftest import PATIENCE_S, ROOT, wait_until, write_run
from tests.launch.hosts import RUN_S, Host, two_hosts, why_not

pytestmark = [
    pytest.mark.multiproc,
    pytest.mark.hosts,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

STEPS = 40
HANG_S = 5
PORT = itertools.count(29500)


def adapter(output: Path) -> bytes:
    return (output / "a" / "adapter" / "adapter_model.safetensors").read_bytes()


@dataclass
class Agent:
    """torchrun on one host, and all that it and rank 0 have printed."""

    process: subprocess.Popen[str]
    out: Path

    def end(self, timeout: float = RUN_S) -> int:
        return self.process.wait(timeout)

    def said(self) -> str:
        return self.out.read_text()


@dataclass
class Run:
    """The run over both hosts."""

    hosts: tuple[Host, Host]
    file: Path
    output: Path

    def start(self, host: Host, *options: object, port: int, restarts: int = 0) -> Agent:
        """One host's torchrun, as the launch files start it. The first host has the rendezvous."""
        first = self.hosts[0]
        torchrun = ["-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1]
        torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{first.address}:{port}"]
        torchrun += ["--rdzv-id", f"run-{port}", "--rdzv-conf", f"is_host={int(host is first)}"]
        torchrun += ["--local-addr", host.address, "--max-restarts", restarts]
        rank = ["-m", "lorafusion.launch", self.file, "--stages", 2, "--output", self.output]
        hang = ["--hang-timeout", HANG_S]
        out = self.output.with_name(f"{host.name}-{port}.txt")
        command = [sys.executable, *torchrun, *rank, *hang, *options]
        process = host.start(command, out=out, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
        return Agent(process, out)

    def start_both(self, *options: object, restarts: int = 0) -> tuple[Agent, Agent, int]:
        """On both, and the port at which they meet."""
        port = next(PORT)
        first, second = (
            self.start(host, *options, port=port, restarts=restarts) for host in self.hosts
        )
        return first, second, port

    def steps(self) -> int:
        metrics = self.output / "a" / "metrics.jsonl"
        return metrics.read_text().count('"train"') if metrics.exists() else 0

    def log(self, rank: int) -> str:
        return (self.output / "logs" / f"rank-{rank}.log").read_text()

    def finish(self) -> bytes:
        """Start both hosts anew; what the run then ends with."""
        assert 0 < self.steps() < STEPS, "it was to be stopped in the middle"
        first, second, _ = self.start_both("--resume")
        assert [first.end(), second.end()] == [0, 0], first.said() + second.said() + self.log(1)
        return adapter(self.output)


@pytest.fixture(scope="module")
def file(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job file; what came of it in one process lies beside it."""
    folder = tmp_path_factory.mktemp("hosts")
    rows = [json.dumps({"prompt": f"the {i}", "completion": " fox"}) for i in range(8)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    job = {
        "name": "a",
        "dataset": {"path": str(folder / "rows.jsonl")},
        "max_steps": STEPS,
        "save_every": 2,
        "global_batch_size": 4,
    }
    return write_run(folder / "run.yaml", tiny_base, folder, jobs=[job], deterministic=True)


@pytest.fixture(scope="module")
def alone(file: Path) -> bytes:
    """The adapter that one process without stages makes of it."""
    out = file.with_name("alone")
    command = [sys.executable, "-m", "lorafusion", "train", file, "--output", out]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=PATIENCE_S)
    return adapter(out)


@pytest.fixture
def run(file: Path, tmp_path: Path) -> Iterator[Run]:
    """The run of it, not begun."""
    with two_hosts() as hosts:
        yield Run(hosts, file, tmp_path / "out")


def test_two_hosts_train_what_one_process_does(run: Run, alone: bytes) -> None:
    first, second, _ = run.start_both()
    assert [first.end(), second.end()] == [0, 0], first.said() + second.said()
    assert "rank 0 of 2 on host-a" in run.log(0)
    assert "rank 1 of 2 on host-b" in run.log(1)
    assert adapter(run.output) == alone


def cut(run: Run, first: Agent) -> None:
    """Cut the link in the middle of the run, and wait until both ranks have seen it."""
    wait_until(lambda: run.steps() >= 5, RUN_S)
    run.hosts[1].link("down")
    told = f"(stage 0) has not answered for {HANG_S} s"
    wait_until(lambda: f"error: rank 1 (stage 1) has not answered for {HANG_S} s" in first.said())
    wait_until(lambda: f"LostRankError: rank 0 {told}" in run.log(1))
    assert 0 < run.steps() < STEPS


def test_a_cut_link_is_told_on_both_sides(run: Run, alone: bytes) -> None:
    first, second, _ = run.start_both()
    cut(run, first)
    assert first.end() == 1
    # Until then torchrun's agent asks the first host's: it has no timeout for that.
    run.hosts[1].link("up")
    assert second.end() == 1
    assert run.finish() == alone


def test_a_link_that_comes_back(run: Run, alone: bytes) -> None:
    first, second, _ = run.start_both("--resume", restarts=2)
    cut(run, first)
    run.hosts[1].link("up")
    assert [first.end(), second.end()] == [0, 0], first.said() + second.said() + run.log(1)
    assert adapter(run.output) == alone


def test_a_host_that_dies_comes_back(run: Run, alone: bytes) -> None:
    first, second, port = run.start_both("--resume", restarts=1)
    wait_until(lambda: run.steps() >= 5, RUN_S)
    run.hosts[1].kill()
    second.end()
    wait_until(lambda: "rank 1 (stage 1) is gone" in first.said())
    assert 0 < run.steps() < STEPS
    second = run.start(run.hosts[1], "--resume", port=port, restarts=1)
    assert [first.end(), second.end()] == [0, 0], first.said() + second.said() + run.log(1)
    assert "going on from the newest checkpoints" in first.said()
    assert adapter(run.output) == alone


def test_the_host_of_rank_0_dies(run: Run, alone: bytes) -> None:
    first, second, _ = run.start_both()
    wait_until(lambda: run.steps() >= 5, RUN_S)
    run.hosts[0].kill()
    first.end()
    assert second.end() == 1
    assert "rank 0 (stage 0) is gone" in run.log(1)
    assert run.finish() == alone
