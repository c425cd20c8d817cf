"""Other tools' settings that have no field here: what they ask for is so anyway, or is refused.

A setting is left out, with a note, where doing so changes no loss and no weight.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorafusion.jobs.yaml_tree import Scalar


@dataclass(frozen=True)
class Setting:
    """A setting of another tool.

    Attributes:
        why: Why it can be left out; empty: no note is needed, as it asks for nothing.
        harmless: Values that can be; None: all of them.
        reason: Why all other values are refused.
        fix: What to do instead of them.
    """

    why: str = ""
    harmless: tuple[Scalar, ...] | None = None
    reason: str = ""
    fix: str = "Remove it."


def _each(names: str, setting: Setting) -> dict[str, Setting]:
    return dict.fromkeys(names.split(), setting)


def _off(reason: str, fix: str = "Remove it.") -> Setting:
    """Harmless while it is switched off."""
    return Setting("", (None, False, 0, 0.0, "", "none", "no"), reason, fix)


_PACKED = (
    "samples are always packed and never see each other; a global batch counts samples, "
    "not packed rows"
)
_ADAMW = ("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf", "torch.optim.AdamW", "AdamW")
_IN_STEPS = Setting(
    "the fields of `eval` and `save_every` say when",
    (None, "steps", "no", False),
    "evaluations and checkpoints are counted in steps",
    "Give `eval: {every: N}`, or `save_every: N`.",
)

SETTINGS = {
    **_each(
        "packing sample_packing neat_packing dataset.packed",
        Setting(
            _PACKED,
            (True, None),
            "samples are always packed, and never see each other: losses are those of no packing",
        ),
    ),
    **_each(
        "eval_sample_packing eval_packing packing_strategy sample_packing_eff_est padding_free "
        "pad_to_sequence_len pad_to_multiple_of group_by_length train_sampling_strategy "
        "per_device_eval_batch_size eval_batch_size eval_accumulation_steps "
        "auto_find_batch_size",
        Setting("the planner forms the microbatches, without padding"),
    ),
    **_each(
        "gradient_checkpointing gradient_checkpointing_kwargs enable_activation_checkpointing "
        "enable_activation_offloading activation_offloading use_reentrant_gc",
        Setting("it trades memory for time, and changes no result"),
    ),
    **_each(
        "flash_attention flash_attn xformers_attention sdp_attention attn_implementation "
        "torch_compile compile use_liger_kernel enable_liger_kernel liger_rope liger_rms_norm "
        "liger_glu_activation liger_fused_linear_cross_entropy tf32 fused optimizer.fused",
        Setting("LoRAFusion brings its own kernels"),
    ),
    **_each(
        "preprocessing_num_workers dataset_num_proc dataset_processes dataloader_num_workers "
        "dataloader_pin_memory dataloader_prefetch_factor dataloader_persistent_workers "
        "overwrite_cache dataset_prepared_path remove_unused_columns tokenized_path",
        Setting("rows are tokenised once, and kept"),
    ),
    **_each(
        "ddp_timeout ddp_find_unused_parameters ddp_backend deepspeed fsdp fsdp_config local_rank "
        "devices num_nodes low_cpu_mem_usage max_memory device_map",
        Setting("the launcher places the base"),
    ),
    **_each(
        "report_to wandb_project wandb_entity wandb_watch wandb_name wandb_run_id wandb_log_model "
        "mlflow_tracking_uri logger_name logging_dir logging_strategy logging_first_step "
        "plot_loss log_level disable_tqdm include_tokens_per_second include_num_input_tokens_seen "
        "log_peak_memory_stats",
        Setting("metrics go to metrics.jsonl and TensorBoard's files"),
    ),
    **_each("do_train do_eval eval_on_start", Setting("the fields of a job say what is done")),
    **_each("eval_strategy evaluation_strategy save_strategy", _IN_STEPS),
    **_each(
        "evals_per_epoch saves_per_epoch eval_epochs save_epochs",
        _off(_IN_STEPS.reason, _IN_STEPS.fix),
    ),
    **_each(
        "save_total_limit save_safetensors save_only_model save_first_step",
        Setting("the newest two checkpoints are kept, as safetensors"),
    ),
    **_each(
        "optim optimizer optimizer._component_ optimizer.class_path",
        Setting(
            "AdamW is what there is", (None, *_ADAMW), "jobs are trained with AdamW", "Remove it."
        ),
    ),
    **_each("model_type tokenizer_type", Setting("both are read from the base's folder")),
    "dataset.ds_type": Setting("a file's kind is read from its name"),
    **_each(
        "train_on_eos dataset.train_on_eos",
        Setting(
            "every trained answer ends with a trained end token",
            ("turn", None),
            "every trained answer ends with a trained end token",
        ),
    ),
    "use_peft": Setting(
        "an adapter is what is trained",
        (True, None),
        "the base is shared by all jobs and never written to, so adapters alone are trained",
    ),
    "stage": Setting(
        "supervised fine-tuning is what there is", ("sft", None), "other stages are not implemented"
    ),
    "strict": Setting("unknown fields are always refused"),
    "debug": _off("there is no such mode"),
    "create_new_adapter": _off("adapter.init_from is what training starts from, and goes on with"),
    "resume_from_checkpoint": _off(
        "a file says what is trained, and the command line how a run starts",
        "Remove it, and resume with `lorafusion train FILE --resume`.",
    ),
    "overwrite_output_dir": _off(
        "a file that overwrites could destroy results at every start",
        "Remove it, and replace a run's results with `lorafusion train FILE --overwrite`.",
    ),
    **_each(
        "load_in_4bit load_in_8bit quantization_bit quantize", _off("the base is not quantised")
    ),
    "trust_remote_code": _off("code that comes with a model is not run"),
    "neftune_noise_alpha": _off("noise on the embeddings is not implemented"),
    **_each("label_smoothing_factor label_smoothing", _off("the loss is the plain cross entropy")),
    **_each(
        "loraplus_lr_ratio lora_plus_lr_ratio loraplus_lr_embedding embedding_lr",
        _off("a job has one learning rate"),
    ),
    **_each(
        "lr_scheduler_kwargs cosine_min_lr_ratio min_lr train.min_lr min_learning_rate",
        _off("linear and cosine fall to 0"),
    ),
    **_each("relora_steps jagged_restart_steps", _off("restarts are not implemented")),
    **_each(
        "pissa_init lora_init_pissa loftq_config",
        _off("A starts from PEFT's uniform distribution and B from zero"),
    ),
    **_each(
        "load_best_model_at_end loss_watchdog_threshold",
        _off("a job keeps its last weights", "Remove it; `eval.patience` stops a job early."),
    ),
    "early_stopping_threshold": _off("any lower held-out loss counts, however little it is lower"),
    "loss_watchdog_patience": Setting("it says nothing without a threshold"),
    "max_samples": _off("all rows are trained on", "Cut the file, or give `max_steps`."),
    "data_seed": Setting(
        "", (None,), "the order of samples follows the job's seed", "Remove it, or give `seed`."
    ),
    "push_to_hub": _off("nothing is uploaded", "Remove it, and upload the job's folder."),
    "hub_model_id": _off("nothing is uploaded", "Remove it, and upload the job's folder."),
    **_each(
        "template special_tokens new_system_prompt",
        _off("the base's own chat template and tokens are used", "Remove it."),
    ),
    **_each(
        "lora_attn_modules apply_lora_to_mlp lora_query lora_key lora_value lora_projection "
        "lora_mlp",
        Setting(
            "",
            (None,),
            "what is adapted is one list of names, and these name parts of that tool's own models",
            "Name the linears in target_modules.",
        ),
    ),
    **_each("apply_lora_to_output lora_head", _off("LoRA on the head is not implemented")),
    **_each(
        "datasets test_datasets dataset_mixture",
        _off(
            "a job has one dataset",
            "Write `dataset: {path: FILE}`; for several, put their rows into one file.",
        ),
    ),
}
