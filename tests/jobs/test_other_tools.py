"""What each tool calls our fields, written out by hand: the tables of the code are not asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lorafusion.errors import JobFileError
from lorafusion.jobs.loading import load_run_file, read_run_file
from lorafusion.jobs.schema import RunSpec

# Theirs and ours: lines of the top, then lines of a job (flow mappings keep them short).
TOPS = [
    ("model_name_or_path: m", "base_model: m"),  # PEFT, TRL, LLaMA-Factory
    ("checkpointer: {checkpoint_dir: m}", "base_model: m"),  # torchtune
    ("checkpoint_dir: m", "base_model: m"),  # litgpt
    ("{base_model: m, bf16: true}", "{base_model: m, dtype: bfloat16}"),
    ("{base_model: m, bf16: auto, fp16: null}", "{base_model: m, dtype: bfloat16}"),
    ("{base_model: m, bf16: false, fp16: false}", "{base_model: m, dtype: float32}"),
    ("{base_model: m, torch_dtype: bfloat16}", "{base_model: m, dtype: bfloat16}"),
    ("{base_model: m, torch_dtype: torch.float32}", "{base_model: m, dtype: float32}"),
    ("{base_model: m, dtype: bf16}", "{base_model: m, dtype: bfloat16}"),
    ("{base_model: m, precision: bf16-true}", "{base_model: m, dtype: bfloat16}"),
    ("{base_model: m, precision: 32-true}", "{base_model: m, dtype: float32}"),
    ("{base_model: m, out_dir: o}", "{base_model: m, output_dir: o}"),
]
JOBS = [
    ("lora_r: 16", "adapter: {r: 16}"),  # TRL, axolotl, litgpt
    ("lora_rank: 16", "adapter: {r: 16}"),  # LLaMA-Factory, torchtune
    ("{lora_alpha: 3, lora_dropout: 0.5}", "adapter: {lora_alpha: 3, lora_dropout: 0.5}"),
    ("lora_target_modules: [q_proj]", "adapter: {target_modules: [q_proj]}"),
    ("lora_target_modules: all-linear", "adapter: {target_modules: all-linear}"),
    (
        "{lora_target_linear: true, lora_target_modules: null}",
        "adapter: {target_modules: all-linear}",
    ),
    ("lora_target: all", "adapter: {target_modules: all-linear}"),
    ("lora_target: 'k_proj, q_proj'", "adapter: {target_modules: [k_proj, q_proj]}"),
    ("use_rslora: true", "adapter: {use_rslora: true}"),
    ("{use_peft: true, lora_r: 4}", "adapter: {r: 4}"),
    ("{adapter: lora, lora_r: 4}", "adapter: {type: lora, r: 4}"),
    ("{finetuning_type: lora, lora_rank: 4}", "adapter: {type: lora, r: 4}"),
    ("adapter: {peft_type: LORA, r: 4, task_type: CAUSAL_LM, bias: none}", "adapter: {r: 4}"),
    ("lora_model_dir: d", "adapter: {init_from: d}"),
    ("lr_scheduler_type: cosine", "lr_scheduler: cosine"),
    ("lr_scheduler_type: linear", "lr_scheduler: linear"),
    ("lr_scheduler_type: constant", "lr_scheduler: constant"),
    (
        "{lr_scheduler_type: constant_with_warmup, warmup_steps: 3}",
        "{lr_scheduler: constant, warmup_steps: 3}",
    ),
    (
        "optimizer: {_component_: torch.optim.AdamW, lr: 1e-3, weight_decay: 0.5, fused: true}",
        "{learning_rate: 1e-3, weight_decay: 0.5}",
    ),
    (
        "optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1e-3, betas: [0.5, 0.25]}}",
        "{learning_rate: 1e-3, adam_beta1: 0.5, adam_beta2: 0.25}",
    ),
    ("{optimizer: adamw_torch, lr: 1e-3}", "learning_rate: 1e-3"),
    (
        "train: {lr_warmup_steps: 5, epochs: 2, max_seq_length: 64}",
        "{warmup_steps: 5, num_epochs: 2, max_seq_len: 64}",
    ),
    ("{per_device_train_batch_size: 2, gradient_accumulation_steps: 8}", "global_batch_size: 16"),
    ("{micro_batch_size: 2, gradient_accumulation_steps: 4}", "global_batch_size: 8"),
    ("{batch_size: 2, gradient_accumulation_steps: 16}", "global_batch_size: 32"),
    ("per_device_train_batch_size: 2", "global_batch_size: 2"),
    ("max_length: 64", "max_seq_len: 64"),
    ("sequence_len: 64", "max_seq_len: 64"),
    ("cutoff_len: 64", "max_seq_len: 64"),
    ("tokenizer: {max_seq_len: 64}", "max_seq_len: 64"),
    ("max_seq_length: 64", "max_seq_len: 64"),
    ("{num_train_epochs: 3.0, max_steps: -1}", "num_epochs: 3"),
    ("epochs: 2", "num_epochs: 2"),
    ("{packing: true, eval_packing: true, packing_strategy: bfd}", "{}"),
    ("{sample_packing: true, eval_sample_packing: false}", "{}"),
    ("{neat_packing: true, dataset: {packed: true}}", "{}"),
    ("{val_set_size: 8, eval_strategy: steps, eval_steps: 5}", "eval: {val_size: 8, every: 5}"),
    ("val_size: 8", "eval: {val_size: 8}"),
    ("val_set_size: 0.0", "eval: {val_size: 0}"),
    ("eval: {val_size: 8, interval: 5}", "eval: {val_size: 8, every: 5}"),
    ("{save_steps: 5, save_total_limit: 3}", "save_every: 5"),
    ("{out_dir: o, resume_from_checkpoint: null}", "output_dir: o"),
    ("{gradient_checkpointing: true, per_device_eval_batch_size: 4}", "{}"),
    ("{train_on_inputs: true}", "dataset: {train_on_inputs: true}"),
    ("completion_only_loss: true", "dataset: {train_on_inputs: false}"),
    ("completion_only_loss: false", "dataset: {train_on_inputs: true}"),
    ("mask_history: true", "dataset: {train_on: last}"),
    ("assistant_only_loss: true", "dataset: {train_on: assistant}"),
    ("dataset_text_field: body", "dataset: {columns: {text: body}}"),
    ("dataset: {type: completion, field: body}", "dataset: {type: text, columns: {text: body}}"),
    (
        "dataset: {type: chat_template, field_messages: c, message_field_role: from, "
        "message_field_content: value}",
        "dataset: {type: messages, columns: {messages: c, role: from, content: value}}",
    ),
]
REFUSED_JOBS = [
    ("packing: false", "never see each other"),
    ("sample_packing: false", "never see each other"),
    ("dataset: {packed: false}", "never see each other"),
    ("use_peft: false", "adapters alone are trained"),
    ("finetuning_type: full", "adapters alone are trained"),
    ("adapter: qlora", "the base is not quantised"),
    ("load_in_4bit: true", "the base is not quantised"),
    ("val_set_size: 0.05", "how many rows there are is not known"),
    ("eval_steps: 0.1", "how many steps there are is not known"),
    ("eval_strategy: epoch", "counted in steps"),
    ("optimizer: adamw_8bit", "AdamW"),
    ("optim: sgd", "AdamW"),
    ("lora_query: false", "one list of names"),
    ("neftune_noise_alpha: 5", "noise"),
    ("use_dora: true", "DoRA"),
    ("lora_modules_to_save: [lm_head]", "never written to"),
    ("resume_from_checkpoint: true", "the command line how a run starts"),
    ("datasets: [{path: x, type: alpaca}]", "a job has one dataset"),
    ("{global_batch_size: 8, micro_batch_size: 2}", "global_batch_size alone"),
]


def block(text: str, indent: str) -> str:
    """A flow mapping, or one field, as lines of a mapping: what people write."""
    data = yaml.safe_load(text.replace("1e-3", "0.001"))
    dumped = yaml.safe_dump(data, sort_keys=False) if data else ""
    return "".join(f"{indent}{line}\n" for line in dumped.splitlines())


def run_of(tmp_path: Path, text: str) -> RunSpec:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    return read_run_file(file).valid()


def job_file(lines: str) -> str:
    job = block(lines, "    ")
    dataset = "    dataset:\n      path: x\n"
    job = job.replace("    dataset:\n", dataset) if "    dataset:\n" in job else dataset + job
    return f"base_model: m\njobs:\n  - name: a\n{job}"


@pytest.mark.parametrize(("theirs", "ours"), TOPS)
def test_at_the_top(tmp_path: Path, theirs: str, ours: str) -> None:
    jobs = "jobs: [{name: a, dataset: {path: x}}]\n"
    got, want = (run_of(tmp_path, block(text, "") + jobs) for text in (theirs, ours))
    assert got == want


@pytest.mark.parametrize(("theirs", "ours"), JOBS)
def test_in_a_job(tmp_path: Path, theirs: str, ours: str) -> None:
    got, want = (run_of(tmp_path, job_file(text)) for text in (theirs, ours))
    assert got == want


@pytest.mark.parametrize(("lines", "reason"), REFUSED_JOBS)
def test_refused_in_a_job(tmp_path: Path, lines: str, reason: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(job_file(lines))
    (problem,) = read_run_file(file).problems
    assert reason in str(problem)


@pytest.mark.parametrize("line", ["fp16: true", "torch_dtype: float16", "precision: 16-true"])
def test_float16_is_refused(tmp_path: Path, line: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"{job_file('{}')}{line}\n")
    (problem,) = read_run_file(file).problems
    assert (problem.line, problem.where) == (6, line.partition(":")[0])
    assert "overflows" in problem.allowed


def test_a_misspelt_name_of_another_tool_is_recognised(tmp_path: Path) -> None:
    file = tmp_path / "jobs.yaml"
    file.write_text("base_model: x\njobs:\n- {name: a, dataset: {path: x}, lora_dropot: 0.1}\n")
    with pytest.raises(JobFileError) as caught:
        load_run_file(file)
    assert caught.value.problems[0].fix == "Did you mean `lora_dropout`?"
