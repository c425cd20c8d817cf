"""The samples of a file's jobs as the planner needs them, without training anything."""

from __future__ import annotations

from collections.abc import Callable

from lorafusion.data.tokenizer import load_tokenizer
from lorafusion.files import token_cache
from lorafusion.jobs.schema import RunSpec
from lorafusion.planner.queue import JobQueue
from lorafusion.training.data import JobData
from lorafusion.training.queues import whole_queue

__all__ = ["queues_of"]


def queues_of(
    spec: RunSpec, status: Callable[[str], None], *, tokenizer_of: str | None = None
) -> list[JobQueue]:
    """All steps and evals of each job; ``status`` is told whose samples are being read.

    Args:
        spec: The run.
        status: Told what is being done.
        tokenizer_of: Folder or hub id of another tokenizer than the base's.

    Raises:
        DataError: A file cannot be used.
        ModelError: There is no tokenizer.
    """
    tokenizer = load_tokenizer(tokenizer_of or spec.base_model)
    queues: list[JobQueue] = []
    for job in spec.jobs:
        status(f"reading the samples of {job.name}")
        queues.append(whole_queue(job, JobData.load(job, tokenizer, token_cache())))
    return queues
