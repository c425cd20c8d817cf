"""Rules between fields and between jobs, on the merged tree.

They look at values of the right type only, so that they also run when the schema has failed
elsewhere and every problem comes out at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import PurePath

from lorafusion.adapters.patterns import why_endless
from lorafusion.errors import Problem
from lorafusion.files import expand_path
from lorafusion.jobs.problems import show
from lorafusion.jobs.schema import JobSpec
from lorafusion.jobs.spellings import EMBEDDINGS_AND_HEADS
from lorafusion.jobs.yaml_tree import Node, join

# In the run's folder, beside those of its jobs: folders and files.
OF_RUNS = ("logs", "trace", "result.json", "report.json", "report.html")


def check_run(tree: Node, file: str) -> list[Problem]:
    """All broken rules in ``tree``, whose jobs have the defaults merged in."""
    top = tree.child("jobs")
    jobs = [job for job in top.items() if isinstance(job.value, dict)] if top else []
    checks = _Checks(file)
    found = [*checks.names(jobs), *checks.folders(tree, jobs), *checks.parallel(tree)]
    for job in jobs:
        found += [*checks.length(tree, job), *checks.warmup(job)]
        found += [*checks.evaluation(job), *checks.targets(job)]
    return found


# What ZeRO-1 and 2 would cut, and save on each of two ranks a job, of what the base takes: rank 16
# on all linears of Llama 3.1 8B in bfloat16 (docs/zero.md).
ZERO_CUTS = {1: ("moments", "1.0%"), 2: ("moments and gradients", "1.6%")}


class _Checks:
    def __init__(self, file: str) -> None:
        self._file = file

    def parallel(self, tree: Node) -> Iterator[Problem]:
        settings = tree.child("parallel")
        zero = settings and settings.child("zero")
        if zero and type(zero.value) is int and zero.value in ZERO_CUTS:
            what, share = ZERO_CUTS[zero.value]
            yield self._problem(
                zero,
                show(zero),
                f"0, or 3, which cuts the base itself: {zero.value} would cut the {what} of the "
                f"adapters alone, which on 2 ranks saves each {share} of what an 8B base takes for "
                "a job of rank 16",
                "Remove it, or give 3; docs/zero.md has the figures.",
            )
        offload = settings and settings.child("offload")
        if offload and offload.value == "cpu" and not (zero and zero.value in (1, 2, 3)):
            yield self._problem(
                offload,
                f"{show(offload)} without zero: 3",
                "cpu with `zero: 3`, whose parts of the base it moves; none",
                "Add `zero: 3`, or remove it.",
            )

    def names(self, jobs: list[Node]) -> Iterator[Problem]:
        seen: dict[str, Node] = {}
        for node in (job.child("name") for job in jobs):
            if node is None or not isinstance(node.value, str):
                continue
            if node.value.casefold() in OF_RUNS:
                yield self._problem(
                    node,
                    show(node),
                    f"any name but {', '.join(OF_RUNS)}, which a run writes itself",
                    "Rename the job.",
                )
            first = seen.setdefault(node.value.casefold(), node)
            if first is not node:
                found = f"{show(node)}, when {first.where} on line {first.line} is {first.value!r}"
                allowed = "names that differ by more than case: they are also names of folders"
                yield self._problem(node, found, allowed, "Rename one of the two jobs.")

    def folders(self, tree: Node, jobs: list[Node]) -> Iterator[Problem]:
        root = _text(tree, "output_dir")
        placed = [(job, folder) for job in jobs if (folder := _folder(root, job)) is not None]
        owners: dict[PurePath, Node] = {}
        for job, folder in placed:
            owners.setdefault(folder, job)
        for job, folder in placed:
            for above in (folder, *folder.parents):
                owner = owners.get(above)
                if owner is None or owner is job or _same_name(owner, job):
                    continue
                relation, node, other = "a folder inside that of", job.child("output_dir"), owner
                if node is None:  # then it is the owner's that was written out
                    relation, node, other = (
                        "a folder around that of",
                        owner.child("output_dir"),
                        job,
                    )
                if above == folder:
                    relation = "the same folder as"
                yield self._problem(
                    node or job,
                    f"{relation} {other.where} (line {other.line})",
                    "a folder for each job alone",
                    "Choose another output_dir, or remove it: the run's folder has one per job.",
                )
                break

    def length(self, tree: Node, job: Node) -> Iterator[Problem]:
        capacity, length = _number(tree, "capacity"), _number(job, "max_seq_len")
        default = JobSpec.model_fields["max_seq_len"].default
        if capacity is not None and (default if length is None else length) > capacity >= 1:
            node = job.child("max_seq_len")
            if node is not None and length is None:
                return  # of a wrong type, which is reported elsewhere
            yield Problem(
                self._file,
                (node or job).line,
                node.where if node else join(job.where, "max_seq_len"),
                f"{default} (the default)" if length is None else str(length),
                f"at most {capacity}: a microbatch must hold the longest sample (capacity)",
                "Lower max_seq_len, or raise `capacity` at the top of the file.",
            )

    def warmup(self, job: Node) -> Iterator[Problem]:
        steps, ratio = job.child("warmup_steps"), job.child("warmup_ratio")
        if steps and ratio and steps.value is not None and ratio.value != 0:
            node, other = (steps, ratio) if steps.line >= ratio.line else (ratio, steps)
            yield self._problem(
                node,
                f"both warmup_steps and warmup_ratio (the other on line {other.line})",
                "one of the two",
                "Remove one; in a job, `warmup_ratio: 0` or `warmup_steps: null` undoes a default.",
            )

    def evaluation(self, job: Node) -> Iterator[Problem]:
        settings = job.child("eval")
        if settings is None:
            return
        size, dataset, every = map(settings.child, ("val_size", "dataset", "every"))
        patience = settings.child("patience")
        has_rows = size is not None and size.value != 0
        has_file = dataset is not None and dataset.value is not None
        if dataset and has_rows and has_file:
            yield self._problem(
                dataset,
                "both eval.val_size and eval.dataset",
                "one of the two",
                "Remove one; in a job, `val_size: 0` or `dataset: null` undoes a default.",
            )
        if every and every.value is not None and not has_rows and not has_file:
            yield self._problem(
                every,
                "eval.every with nothing to evaluate on",
                "eval.every beside eval.val_size or eval.dataset",
                "Add `val_size: 64` to hold out 64 rows, or remove `every`.",
            )

        if patience and patience.value is not None and (every is None or every.value is None):
            yield self._problem(
                patience,
                "eval.patience without eval.every",
                "eval.patience beside eval.every",
                "Add `every: 20` to evaluate while it trains, or remove `patience`.",
            )

    def targets(self, job: Node) -> Iterator[Problem]:
        adapter = job.child("adapter")
        node = adapter.child("target_modules") if adapter else None
        if node is None:
            return
        if isinstance(node.value, str):
            yield from self._target_regex(node, node.value)
        elif not node.items() and node.value == ():
            yield self._problem(node, "an empty list", "at least one name", "Write all-linear.")
        for item in node.items():
            if (
                isinstance(item.value, str)
                and item.value.rpartition(".")[2] in EMBEDDINGS_AND_HEADS
            ):
                yield self._embedding(item)

    def _target_regex(self, node: Node, text: str) -> Iterator[Problem]:
        try:
            pattern = re.compile(text)
        except (re.error, OverflowError, RecursionError) as error:
            found = f"{show(node)}, which is no regex ({error})"
            yield self._problem(
                node, found, "all-linear, a regex or a list of names", "Mend the regex."
            )
            return
        endless = why_endless(text)
        if endless is not None:
            found = f"{show(node)}, which may take for ever to match: {endless}"
            fix = "Write it simpler, or list the names of the modules."
            yield self._problem(node, found, "a regex whose repetitions stand apart", fix)
            return
        if text in EMBEDDINGS_AND_HEADS or any(
            pattern.fullmatch(name) for name in ("lm_head", "model.embed_tokens")
        ):
            yield self._embedding(node)

    def _embedding(self, node: Node) -> Problem:
        return self._problem(
            node,
            show(node),
            "linear layers between embedding and head: LoRA on these two is not implemented",
            "Remove it from target_modules; all-linear leaves them out.",
        )

    def _problem(self, node: Node, found: str, allowed: str, fix: str) -> Problem:
        return Problem(self._file, node.line, node.where, found, allowed, fix)


def _text(node: Node, key: str) -> str | None:
    child = node.child(key)
    return child.value if child and isinstance(child.value, str) else None


def _number(node: Node, key: str) -> int | None:
    child = node.child(key)
    value = child.value if child else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _same_name(one: Node, other: Node) -> bool:
    names = [_text(job, "name") for job in (one, other)]
    return None not in names and str(names[0]).casefold() == str(names[1]).casefold()


def _folder(root: str | None, job: Node) -> PurePath | None:
    """The job's output folder, resolved and in one case; None where it is not known here."""
    own, name = _text(job, "output_dir"), _text(job, "name")
    text = own or (os.path.join(root, name) if root and name else None)
    try:
        return PurePath(os.path.realpath(expand_path(text)).casefold()) if text else None
    except ValueError:  # a null character, which the schema reports
        return None
