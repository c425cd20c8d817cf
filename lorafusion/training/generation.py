"""What training changed, on one example: a held-out prompt answered without and with adapter."""

from __future__ import annotations

import numpy as np

from lorafusion.adapters.bank import AdapterBank
from lorafusion.data.tokenizer import Tokenizer
from lorafusion.models.generate import generate
from lorafusion.models.load import Base
from lorafusion.training.job import TrainingJob
from lorafusion.training.result import Generation

MAX_NEW_TOKENS = 32


def held_out_generation(
    base: Base, bank: AdapterBank, tokenizer: Tokenizer, job: TrainingJob
) -> Generation | None:
    """Answer the job's first held-out prompt; None if it holds out no row.

    The base is frozen, so its own answer is the same after training as before.
    """
    if not job.data.held_out_indices:
        return None
    sample = job.data.held_out.sample(job.data.held_out_indices[0])
    edges = np.flatnonzero(np.diff(sample.trained)) + 1
    start, end = int(edges[0]), int([*edges[1:], len(sample.trained)][0])
    prompt: list[int] = sample.input_ids[:start].tolist()
    expected: list[int] = sample.input_ids[start:end].tolist()
    before = generate(base, prompt, max_new_tokens=MAX_NEW_TOKENS)
    after = generate(
        base,
        prompt,
        max_new_tokens=MAX_NEW_TOKENS,
        slot=job.slot,
        modules=bank.modules([job.slot]),
    )
    answers = [_text(tokenizer, tokens) for tokens in (expected, before, after)]
    return Generation(str(tokenizer.decode(prompt)), *answers)


def _text(tokenizer: Tokenizer, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True))
