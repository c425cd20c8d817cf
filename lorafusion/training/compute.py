"""Forward and backward of a place on one stage; what goes wrong in one job's part stays there.

A place normally runs whole. Where that raises, its jobs run one by one, and the one that raises
again is given up: from then on its rows take the base's output, so that the stages behind get what
the plan has promised them, until rank 0 has made a plan without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from lorafusion.adapters.bank import AdapterBank
from lorafusion.models.stage import Stage
from lorafusion.planner.plan import Place
from lorafusion.training.microbatch import (
    build_layout,
    build_targets,
    build_tokens,
    single_samples,
    single_segments,
)
from lorafusion.training.out_of_memory import OutOfMemory, is_out_of_memory
from lorafusion.training.shard import JobShard


@dataclass
class Piece:
    """Rows of a place that ran as one graph.

    Attributes:
        part: The samples.
        rows: Where they stand in the place.
        shards: Of their jobs, in the order of the segments; empty where a job was given up.
        inputs: What the stage before sent, a leaf; None on the first stage.
        output: [rows, D]; on the last stage the weighted sum of the losses. None: no gradient.
        losses: Sum of cross-entropies of each sample, float64, on the last stage.
    """

    part: Place
    rows: slice
    shards: Sequence[JobShard]
    inputs: torch.Tensor | None
    output: torch.Tensor | None
    losses: torch.Tensor | None


@dataclass
class Work:
    """A place between its forward and its backward."""

    place: Place
    hidden_TD: torch.Tensor | None
    pieces: list[Piece]

    @property
    def losses(self) -> list[torch.Tensor]:
        """Of every sample in order, on the last stage."""
        return [piece.losses for piece in self.pieces if piece.losses is not None]


class Compute:
    """One stage with the jobs that are on it."""

    def __init__(
        self,
        stage: Stage,
        bank: AdapterBank,
        shards: Mapping[str, JobShard],
        *,
        deterministic: bool,
        on_failed: Callable[[str, str], None],
    ) -> None:
        """Nothing runs yet.

        Args:
            stage: The layers.
            bank: The adapters on them.
            shards: The jobs here by name, as they are at any time.
            deterministic: Each sample gets a graph of its own. Then no op's shape, and with it no
                rounding, depends on what else is in the place.
            on_failed: Told a job's name and why it was given up here.
        """
        self._stage = stage
        self._bank = bank
        self._shards = shards
        self._deterministic = deterministic
        self._on_failed = on_failed
        self.failed: set[str] = set()
        """Jobs that were given up here."""
        self.out_of_memory: OutOfMemory | None = None
        """Says what filled the memory, where it runs out."""

    def forward(self, place: Place, hidden_TD: torch.Tensor | None) -> tuple[Work, torch.Tensor]:
        """Run a place; returns also what goes to the next stage, [T, D]."""
        work = Work(place, hidden_TD, [])
        outputs: list[torch.Tensor] = []
        for part, rows in _rows(self._parts(place)):
            for piece, output in self._attempt(part, rows, hidden_TD):
                work.pieces.append(piece)
                outputs.append(output)
        return work, outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def backward(self, work: Work, gradient_TD: torch.Tensor | None) -> torch.Tensor | None:
        """Collect every job's gradients; returns what goes to the stage before, [T, D].

        Args:
            work: A training place; its graph is used up.
            gradient_TD: From the stage behind; None on the last.
        """
        passed = None if work.hidden_TD is None else torch.zeros_like(work.hidden_TD)
        for piece in work.pieces:
            self._attempt_backward(piece, gradient_TD, passed, work.hidden_TD)
        return passed

    def give_up(self, job: str, what: str, error: Exception, part: Place | None = None) -> None:
        """Run the job's rows without an adapter from now on; ``part``: what the error was in."""
        if job not in self.failed:
            self.failed.add(job)
            more = self._explain(what, part, error)
            self._on_failed(job, f"{what}: {type(error).__name__}: {error}{more}")

    def _explain(self, what: str, part: Place | None, error: Exception) -> str:
        if self.out_of_memory is None or not is_out_of_memory(error):
            return ""
        return self.out_of_memory.report(what, part, error)

    def _explain_whole(self, what: str, part: Place, error: Exception) -> None:
        """Jobs that do not fit together may fit one by one: the first such place is kept."""
        if self.out_of_memory is not None and not self.out_of_memory.written:
            self._explain(what, part, error)

    def _parts(self, place: Place) -> list[Place]:
        if self._deterministic:
            return single_samples(place)
        alone = any(segment.job in self.failed for segment in place.segments)
        return single_segments(place) if alone else [place]

    def _attempt(
        self, part: Place, rows: slice, hidden_TD: torch.Tensor | None
    ) -> list[tuple[Piece, torch.Tensor]]:
        job = part.segments[0].job
        if len(part.segments) == 1 and job in self.failed:
            return [self._without_adapter(part, rows, hidden_TD)]
        try:
            return [self._forward(part, rows, hidden_TD)]
        except Exception as error:
            if len(part.segments) == 1:
                what = "the eval after" if part.kind == "eval" else "the forward of"
                self.give_up(job, f"{what} step {part.segments[0].step}", error, part)
            else:
                self._explain_whole("the forward of a place of several jobs", part, error)
        # Behind the handler: an error holds its frames, and they all that was computed.
        if len(part.segments) == 1:
            return [self._without_adapter(part, rows, hidden_TD)]
        return [
            entry
            for one, its_rows in _rows(single_segments(part), rows.start)
            for entry in self._attempt(one, its_rows, hidden_TD)
        ]

    def _forward(
        self, part: Place, rows: slice, hidden_TD: torch.Tensor | None
    ) -> tuple[Piece, torch.Tensor]:
        shards = [self._shards[segment.job] for segment in part.segments]
        trains = part.kind == "train"
        layout = build_layout(part, self._shards, self._bank)
        inputs = None
        if hidden_TD is not None:
            inputs = hidden_TD[rows].detach().requires_grad_(trains)
        with torch.set_grad_enabled(trains):
            entering = self._tokens(part) if inputs is None else inputs
            output = self._stage(entering, layout)
            if not self._stage.part.last:
                return Piece(part, rows, shards, inputs, output, None), output
            total, losses = self._loss(part, output)
        return Piece(part, rows, shards, inputs, total, losses), output

    def _without_adapter(
        self, part: Place, rows: slice, hidden_TD: torch.Tensor | None
    ) -> tuple[Piece, torch.Tensor]:
        """The base's output for the rows of a job that was given up; its losses are NaN."""
        layout = build_layout(part, {}, self._bank)
        with torch.no_grad():
            if hidden_TD is None:
                entering = build_tokens(part, {}).to(self._stage.device)
            else:
                entering = hidden_TD[rows]
            output = self._stage(entering, layout)
        losses = None
        if self._stage.part.last:
            samples = sum(len(segment.samples) for segment in part.segments)
            losses = output.new_full((samples,), torch.nan, dtype=torch.float64)
        return Piece(part, rows, (), None, None, losses), output

    def _tokens(self, part: Place) -> torch.Tensor:
        return build_tokens(part, self._shards).to(self._stage.device, non_blocking=True)

    def _loss(self, part: Place, hidden_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted sum, and the sum of each sample in float64."""
        targets = build_targets(part, self._shards)
        labelled, wanted, weights = (
            tensor.to(hidden_TD.device, non_blocking=True)
            for tensor in (targets.labelled_L, targets.targets_L, targets.weights_L)
        )
        total, loss_L = self._stage.loss(hidden_TD[labelled], wanted, weights)
        samples = loss_L.detach().double().split(targets.counts)
        return total, torch.stack([sample.sum() for sample in samples])

    def _attempt_backward(
        self,
        piece: Piece,
        gradient_TD: torch.Tensor | None,
        passed: torch.Tensor | None,
        hidden_TD: torch.Tensor | None,
    ) -> None:
        """Write the piece's rows of ``passed``, which are zeros so far."""
        segments = piece.part.segments
        try:
            _backward(piece, gradient_TD)
        except Exception as error:
            for shard in piece.shards:
                shard.gradients.forget()
            if len(segments) == 1:
                what = f"the backward of step {segments[0].step}"
                self.give_up(segments[0].job, what, error, piece.part)
            else:
                self._explain_whole("the backward of a place of several jobs", piece.part, error)
        else:
            self._collect(piece)
            if passed is not None and piece.inputs is not None and piece.inputs.grad is not None:
                passed[piece.rows] = piece.inputs.grad
            return
        # Behind the handler, and without the graph: both hold what was computed.
        piece.output = piece.inputs = None
        if len(segments) == 1:
            return
        for part, rows in _rows(single_segments(piece.part), piece.rows.start):
            for again, _ in self._attempt(part, rows, hidden_TD):
                self._attempt_backward(again, gradient_TD, passed, hidden_TD)

    def _collect(self, piece: Piece) -> None:
        for shard, segment in zip(piece.shards, piece.part.segments, strict=bool(piece.shards)):
            try:
                shard.collect(segment.samples)
            except Exception as error:
                self.give_up(segment.job, f"the backward of step {segment.step}", error)


def _backward(piece: Piece, gradient_TD: torch.Tensor | None) -> None:
    if piece.output is None or not piece.output.requires_grad:
        return  # no adapter at or below this stage
    gradient = None if gradient_TD is None else gradient_TD[piece.rows]
    torch.autograd.backward(piece.output, gradient)


def _rows(parts: Sequence[Place], start: int = 0) -> list[tuple[Place, slice]]:
    """Each part with its rows, one behind the other."""
    found: list[tuple[Place, slice]] = []
    for part in parts:
        found.append((part, slice(start, start + part.tokens)))
        start += part.tokens
    return found
