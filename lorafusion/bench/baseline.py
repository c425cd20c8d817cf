"""The other side of ``lorafusion bench train``: one job after another, with PEFT or TRL.

``python baseline.py FOLDER FORM`` trains the jobs that FOLDER describes, and imports nothing of
LoRAFusion. FORM is one of

* ``padded``: what most people write. Batches as they come, padded to their longest sample,
  attention mask, the model's own loss.
* ``sorted``: what somebody writes who cares for speed. The same samples, batched by length; no
  attention mask, since causal attention never looks at padding on the right; logits for the
  columns that hold a label only; torch's fused AdamW.
* ``trl``: TRL's SFTTrainer with the settings that were fastest on a CPU (see ``trl_settings``).

FOLDER holds ``run.json`` (base, dtype, threads) and for each job a folder with ``job.json``
(batches as sample numbers, a learning rate per step, AdamW's settings), ``samples.npz`` (tokens and
labels) and ``adapter``, a PEFT folder with the initial weights.

Every line on stdout is a JSON object: ``{"event": "step", ...}`` after each optimizer step, with
the seconds of training in this job so far, and ``{"event": "done", ...}``. Loading and a warm-up on
two samples are not timed.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback

IGNORED = -100
Sample = tuple[torch.Tensor, torch.Tensor]
"""Token ids and labels of one example, int64 [tokens] each; label -100: not trained."""
LossOf = Callable[[Any, list[Sample]], torch.Tensor]
"""The mean cross-entropy of a batch's labels."""


def main(folder: Path, form: str) -> None:
    """Train all jobs of ``folder``, each with a freshly loaded base."""
    run = json.loads((folder / "run.json").read_text())
    torch.set_num_threads(run["threads"])
    for name in run["jobs"]:
        job = json.loads((folder / name / "job.json").read_text())
        samples = read_samples(folder / name / "samples.npz")
        torch.manual_seed(job["seed"])  # dropout
        model = load_model(run, folder / name / "adapter")
        if form == "trl":
            train_with_trl(model, job, samples, run)
        elif form == "sorted":
            train(model, job, samples, loss_of=sparse_loss, form=form)
        else:
            train(model, job, samples, loss_of=plain_loss, form=form)
        del model
    say(event="done", peak_rss_mb=peak_rss_mb())


def read_samples(path: Path) -> list[Sample]:
    """The examples of a job, without padding."""
    with np.load(path) as arrays:
        ends = arrays["offsets"][1:-1]
        ids = np.split(arrays["input_ids"].astype(np.int64), ends)
        labels = np.split(arrays["labels"].astype(np.int64), ends)
    pairs = zip(ids, labels, strict=True)
    return [(torch.from_numpy(one), torch.from_numpy(label)) for one, label in pairs]


def load_model(run: dict[str, Any], adapter: Path) -> Any:
    """The base with a trainable adapter on it."""
    dtype = getattr(torch, run["dtype"])
    base = AutoModelForCausalLM.from_pretrained(
        run["base"], dtype=dtype, attn_implementation=run["attention"]
    )
    base.config.use_cache = False
    model = PeftModel.from_pretrained(base, adapter, is_trainable=True)
    for parameter in trainable(model):
        # PEFT makes float32 factors; under a float64 base they are to be float64.
        parameter.data = parameter.data.to(torch.promote_types(dtype, torch.float32))
    return model


def train(
    model: Any, job: dict[str, Any], samples: list[Sample], *, loss_of: LossOf, form: str
) -> None:
    """A plain loop: forward, backward, clip, step."""
    optimizer = make_optimizer(model, job, fused=form == "sorted")
    warm_up(model, job, samples, loss_of)
    batches = job["sorted_batches" if form == "sorted" else "batches"]
    started = time.perf_counter()
    for step, (batch, rate) in enumerate(zip(batches, job["learning_rates"], strict=True), 1):
        loss = loss_of(model, [samples[i] for i in batch])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable(model), job["max_grad_norm"] or math.inf)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - started
        tokens = sum(len(samples[i][0]) for i in batch)
        say(event="step", job=job["name"], step=step, loss=loss.item(), tokens=tokens, s=seconds)


def plain_loss(model: Any, batch: list[Sample]) -> torch.Tensor:
    """Mask, full logits and loss as transformers makes them."""
    ids, labels = padded(batch)
    mask = padded([(torch.ones_like(one), one) for one, _ in batch])[0]
    return model(input_ids=ids, attention_mask=mask, labels=labels).loss


def sparse_loss(model: Any, batch: list[Sample]) -> torch.Tensor:
    """The same loss without a mask, from the logits of the columns that hold a label."""
    ids, labels = padded(batch)
    ids, labels = ids[:, :-1], labels[:, 1:]
    columns = (labels != IGNORED).any(dim=0).nonzero().flatten()
    labels = labels[:, columns]
    logits = model(input_ids=ids, logits_to_keep=columns).logits
    trained = labels != IGNORED
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits[trained].to(wide), labels[trained])


def padded(batch: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """[samples, longest] token ids and labels, filled up on the right.

    Which token fills up does not matter: nothing looks at it, and it has no label.
    """
    ids, labels = [one for one, _ in batch], [label for _, label in batch]
    stack = torch.nn.utils.rnn.pad_sequence
    return stack(ids, batch_first=True), stack(labels, batch_first=True, padding_value=IGNORED)


def train_with_trl(
    model: Any, job: dict[str, Any], samples: list[Sample], run: dict[str, Any]
) -> None:
    """TRL's SFTTrainer on the samples batched by length, as for ``sorted``."""
    from datasets import Dataset
    from trl.trainer.sft_trainer import SFTTrainer

    order = [i for batch in job["sorted_batches"] for i in batch]
    columns = {
        "input_ids": [samples[i][0].tolist() for i in order],
        "labels": [samples[i][1].tolist() for i in order],
    }
    optimizer = make_optimizer(model, job, fused=True)
    shares = [rate / job["learning_rate"] for rate in job["learning_rates"]]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, [lambda step: shares[min(step, len(shares) - 1)]]
    )
    warm_up(model, job, samples, plain_loss)
    with tempfile.TemporaryDirectory() as output:
        trainer = SFTTrainer(
            model=model,
            args=trl_settings(job, output),
            train_dataset=Dataset.from_dict(columns),
            processing_class=AutoTokenizer.from_pretrained(run["base"]),
            optimizers=(optimizer, schedule),
            callbacks=[Report(job["name"], [len(samples[i][0]) for i in order])],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def trl_settings(job: dict[str, Any], output: str) -> Any:
    """SFTTrainer set for speed on a CPU, without another training.

    * ``padding_free``: transformers gives attention a mask that keeps the samples apart. On 528
      tokens in 4 samples a step took 5.0 to 6.0 s of CPU time with it, 8.8 to 11.0 s without.
    * ``packing`` is off: it would put other samples into a batch.
    * ``bf16`` (autocast) is off: 9.1 s where 8.8 to 11.0 s were taken without, so nothing is gained
      on a base that is bfloat16 already, and the adapter's products stay float32.
    * ``gradient_checkpointing`` is off (TRL's default is on): it runs every forward twice.
    * No worker process for the data, which is in memory.
    * ``loss_type`` stays ``nll``: TRL's own head makes logits at labelled rows only.
    """
    from trl.trainer.sft_config import SFTConfig

    return SFTConfig(
        output_dir=output,
        use_cpu=True,
        bf16=False,
        max_length=None,
        packing=False,
        padding_free=True,
        gradient_checkpointing=False,
        per_device_train_batch_size=max(map(len, job["sorted_batches"])),
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        max_grad_norm=job["max_grad_norm"] or 0.0,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=job["seed"] % 2**32,
    )


class Report(TrainerCallback):
    """Says what each step of TRL's trainer did."""

    def __init__(self, job: str, lengths: list[int]) -> None:
        """``lengths`` of the samples, in the order of training."""
        self.job = job
        self.lengths = iter(lengths)
        self.started = self.ended = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Loading and preparing are done."""
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """The optimizer has stepped; what follows is the loss's log."""
        self.ended = time.perf_counter()

    def on_log(self, args: Any, state: Any, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """The loss of the step; there is one more log when the training ends."""
        if "loss" not in logs:
            return
        tokens = sum(itertools.islice(self.lengths, args.per_device_train_batch_size))
        seconds, step = self.ended - self.started, state.global_step
        say(event="step", job=self.job, step=step, loss=logs["loss"], tokens=tokens, s=seconds)


def warm_up(model: Any, job: dict[str, Any], samples: list[Sample], loss_of: LossOf) -> None:
    """A forward and backward on two samples, thrown away."""
    first = list(itertools.chain(*job["batches"]))[:2]
    model.eval()  # without dropout: random numbers would be drawn
    loss_of(model, [samples[i] for i in first]).backward()
    model.zero_grad()
    model.train()


def make_optimizer(model: Any, job: dict[str, Any], *, fused: bool) -> torch.optim.AdamW:
    """AdamW over the adapter."""
    return torch.optim.AdamW(
        trainable(model),
        lr=job["learning_rate"],
        betas=(job["adam_beta1"], job["adam_beta2"]),
        eps=job["adam_epsilon"],
        weight_decay=job["weight_decay"],
        fused=fused,
    )


def trainable(model: Any) -> list[torch.Tensor]:
    """The adapter's weights."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def peak_rss_mb() -> float | None:
    """Most memory this process held, in MB of 10^6 bytes; None where Linux does not tell."""
    status = Path("/proc/self/status")
    lines: Iterable[str] = status.read_text().splitlines() if status.exists() else ()
    peaks = [int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")]
    return peaks[0] if peaks else None


def say(**values: Any) -> None:
    """One line of JSON for the bench."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
