"""A whole file of another tool: one message that says how it would look here."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorafusion.errors import JobFileError
from lorafusion.jobs.loading import read_run_file

AXOLOTL = """\
base_model: some/model
load_in_8bit: false
datasets:
  - path: some/data
    type: alpaca
val_set_size: 0.1
output_dir: ./out
adapter: lora
lora_model_kind: x
sequence_len: 2048
lora_r: 16
bf16: auto
"""
LLAMA_FACTORY = """\
model_name_or_path: some/model
stage: sft
finetuning_type: lora
dataset: identity
cutoff_len: 2048
"""
TORCHTUNE = """\
model: {_component_: x, lora_rank: 8}
checkpointer: {checkpoint_dir: some/model}
dataset: {_component_: y}
batch_size: 2
device: cuda
"""
LITGPT = "checkpoint_dir: some/model\nlora_r: 32\ntrain: {global_batch_size: 8}\ndata: {a: 1}\n"


@pytest.mark.parametrize(
    ("text", "line", "phrases"),
    [
        (
            AXOLOTL,
            2,
            [
                "Leave `base_model`, `output_dir` and `bf16` at the top",
                "`dataset: {path: some/data, type: alpaca}` in place of `datasets`",
                "`val_set_size`, `adapter`, `sequence_len` and `lora_r`",
                "Remove `lora_model_kind`",
            ],
        ),
        (
            LLAMA_FACTORY,
            2,
            [
                "Leave `model_name_or_path` at the top",
                "`dataset: {path: FILE}` in place of `dataset`",
                "`finetuning_type` and `cutoff_len`",
            ],
        ),
        (TORCHTUNE, 2, ["Give `base_model`", "`batch_size`", "Remove `model` and `device`"]),
        (LITGPT, 2, ["`lora_r` and `train`", "Remove `data`", "`dataset: {path: FILE}`"]),
    ],
)
def test_one_message(tmp_path: Path, text: str, line: int, phrases: list[str]) -> None:
    file = tmp_path / "theirs.yaml"
    file.write_text(text)
    with pytest.raises(JobFileError) as caught:
        read_run_file(file)
    (problem,) = caught.value.problems
    assert (problem.line, problem.where) == (line, "")
    assert "no `jobs`" in problem.found
    for phrase in phrases:
        assert phrase in problem.fix


def test_the_advice_of_the_message_gives_a_job_file(tmp_path: Path) -> None:
    file = tmp_path / "ours.yaml"
    file.write_text("""\
base_model: some/model
output_dir: ./out
bf16: auto
jobs:
  - name: my-job
    dataset: {path: some/data, type: alpaca}
    load_in_8bit: false
    val_set_size: 64
    adapter: lora
    sequence_len: 2048
    lora_r: 16
""")
    (job,) = read_run_file(file).valid().jobs
    assert (job.dataset.path, job.eval.val_size, job.max_seq_len) == ("some/data", 64, 2048)
