"""A job that is to pause while its next step is in flight ends with the step that it was at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.runs import run, same_bits, state, write_rows
from tests.training.stages import Case, Stages


@pytest.mark.multiproc
def test_pause_after_an_eval_with_the_next_step_in_flight(tmp_path: Path, tiny_base: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", rows=12, longest=4, seed=1)
    job = {
        "name": "a",
        "dataset": {"path": rows},
        "adapter": {"r": 2},
        "max_seq_len": 32,
        "global_batch_size": 1,
        "lr_scheduler": "constant",
        "max_steps": 6,
        "eval": {"val_size": 1, "every": 1},
    }
    settings = {"dtype": "float64", "deterministic": True}
    with Stages(tmp_path, tiny_base) as stages:
        for step in (1, 5):
            # An eval before, and a step and an eval for each step.
            case = Case(tmp_path / f"paused-{step}", 2, pause_after={"a": 2 * step}, timeout_s=40)
            ended = stages.run(case, [job], **settings)
            assert ended.code == 1, ended.err  # it has not succeeded
            assert ended.jobs["a"]["state"] == "paused"
            found = state(case.output / "a")
            run(tmp_path / f"alone-{step}", tiny_base, [{**job, "max_steps": step}], **settings)
            alone = state(tmp_path / f"alone-{step}" / "a")
            assert found.keys() == alone.keys()
            assert all(same_bits(found[name], tensor) for name, tensor in alone.items())
