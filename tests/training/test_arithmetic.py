"""What torch is told of order and threads while a run lasts, and that it is told again after."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorafusion.launch.local import LocalOptions, finish_local
from lorafusion.training.events import Events
from tests.training.runs import four_jobs, make_spec


class Modes(Events):
    def __init__(self) -> None:
        self.seen: set[tuple[bool, int]] = set()

    def step(self, *_: object, **__: object) -> None:
        self.seen.add((torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()))


@pytest.mark.parametrize("deterministic", [False, True])
def test_for_the_run_alone(
    deep_base: Path, tmp_path: Path, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels and attention on a GPU choose by torch's switch."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    modes, before = Modes(), torch.get_num_threads()
    jobs = four_jobs(tmp_path, steps=2)[:1]
    spec = make_spec(deep_base, jobs, deterministic=deterministic, threads=2)
    finish_local(spec, LocalOptions(tmp_path / "out"), modes)
    assert modes.seen == {(deterministic, 2)}
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.get_num_threads() == before
