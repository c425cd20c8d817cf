"""Forward and backward of a place on one stage; what goes wrong in one job's part stays there.

A place normally runs whole. Where that raises, its jobs run one by one, and the one that raises
again is given up: from then on its rows take the base's output, so that the stages behind get what
the plan has promised them, until rank 0 has made a plan without it.

Where memory runs out, the graphs that wait for their backward are let go, which then runs the
forward again, and the part is cut in two by its samples, down to a single one. Only a sample that
does not fit by itself is its job's failure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar
from weakref import WeakSet

import torch

from lorafusion.adapters.bank import AdapterBank
from lorafusion.errors import LaunchError
from lorafusion.models.stage import Stage
from lorafusion.planner.plan import Place
from lorafusion.training.microbatch import (
    apart,
    at_most,
    build_layout,
    build_targets,
    build_tokens,
    in_two,
    single_samples,
    single_segments,
)
from lorafusion.training.out_of_memory import OutOfMemory, is_out_of_memory
from lorafusion.training.passes import OwnPasses, Passes
from lorafusion.training.piece import Piece, Work, rows_of
from lorafusion.training.room import Room
from lorafusion.training.shard import JobShard

T = TypeVar("T")


class _Gradients(NamedTuple):
    """Of the hidden state of a place, [T, D]: from the stage behind, and for the one before."""

    behind: torch.Tensor | None
    before: torch.Tensor | None


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
        self._in_flight = WeakSet[Work]()
        self._room = Room()
        self._told: int | None = None
        self.failed: set[str] = set()
        """Jobs that were given up here."""
        self.out_of_memory: OutOfMemory | None = None
        """Says what filled the memory, where it runs out."""
        self.on_limit: Callable[[int], None] = lambda _: None
        """Told how many tokens a place may have, where it was learned or is less than before."""
        self.passes: Passes = OwnPasses()
        """How this rank goes over the base."""

    def forward(self, place: Place, hidden_TD: torch.Tensor | None) -> tuple[Work, torch.Tensor]:
        """Run a place; returns also what goes to the next stage, [T, D]."""
        parts = self._parts(place)
        limit = self._room.limit
        above = limit is not None and place.tokens > limit
        work = Work(place, hidden_TD, tight=above and (len(parts) > 1 or len(self._in_flight) > 0))
        if place.kind == "train":
            self._in_flight.add(work)
        outputs: list[torch.Tensor] = []
        for part, rows in rows_of(parts):
            outputs += self._attempt(part, rows, work)
        if place.kind == "eval":
            self._tell_limit()
        whole = outputs[0] if len(outputs) == 1 else self.with_room(partial(torch.cat, outputs))
        return work, whole

    def backward(self, work: Work, gradient_TD: torch.Tensor | None) -> torch.Tensor | None:
        """Collect every job's gradients; returns what goes to the stage before, [T, D].

        Args:
            work: A training place; its graph is used up.
            gradient_TD: From the stage behind; None on the last.
        """
        passed = None
        if work.hidden_TD is not None:
            passed = self.with_room(partial(torch.zeros_like, work.hidden_TD))
        for piece in work.pieces:
            for one in self._again([piece.part], piece) if piece.again else [piece]:
                self._attempt_backward(one, work, _Gradients(gradient_TD, passed))
        if not work.tight and all(piece.shards for piece in work.pieces):
            self._room.ran(work.place.tokens)
        self._in_flight.discard(work)
        self._tell_limit()
        return passed

    def with_room(self, act: Callable[[], T]) -> T:
        """Do something small; once more without the graphs that are held where it does not fit."""
        try:
            return act()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        self._make_room()
        return act()

    def give_up(self, job: str, what: str, error: Exception, part: Place | None = None) -> None:
        """Run the job's rows without an adapter from now on; ``part``: what the error was in."""
        if job not in self.failed:
            self.failed.add(job)
            where = "" if part is None else self._samples(job, part)
            more = self._explain(what, part, error)
            self._on_failed(job, f"{what}: {type(error).__name__}: {error}{where}{more}")

    def _samples(self, job: str, part: Place) -> str:
        shard, segment = self._shards.get(job), part.segments[0]
        if shard is None:
            return ""
        first = f"{shard.data.name(part.kind, segment.samples[0])}, {segment.lengths[0]} tokens"
        more = len(segment.samples) - 1
        return f" ({first}{f', or one of {more} others' if more else ''})"

    def _explain(self, what: str, part: Place | None, error: Exception) -> str:
        if self.out_of_memory is None or not is_out_of_memory(error):
            return ""
        return self.out_of_memory.report(what, part, error)

    def _tell_limit(self) -> None:
        limit = self._room.limit
        if limit is not None and (self._told is None or limit < self._told):
            self._told = limit
            self.on_limit(limit)

    def _make_room(self) -> None:
        for work in self._in_flight:
            work.tight = True
            for piece in work.pieces:
                piece.let_go()

    def _parts(self, place: Place) -> list[Place]:
        """The place as it is run."""
        if self._deterministic:
            return single_samples(place)
        return self._cut(apart([place], self.failed))

    def _cut(self, parts: Sequence[Place]) -> list[Place]:
        """``parts`` cut to what is known to fit."""
        limit = self._room.limit
        if limit is None:
            return [*parts]
        return [piece for part in parts for piece in at_most(part, limit)]

    def _attempt(
        self, part: Place, rows: slice, work: Work, *, alone: bool = False
    ) -> list[torch.Tensor]:
        """Outputs of a part, in order. ``alone``: all else has been let go."""
        if len(part.segments) == 1 and part.segments[0].job in self.failed:
            return [self._without_adapter(part, rows, work)]
        try:
            shards = [self._shards[segment.job] for segment in part.segments]
            piece, output = self._forward(part, rows, shards, work.hidden_TD)
        except Exception as error:
            full = is_out_of_memory(error)
            parts = self._instead("forward", part, error, alone=alone)
        else:
            if work.tight:
                piece.let_go()
            work.pieces.append(piece)
            return [output]
        # Behind the handler: an error holds its frames, and they all that was computed.
        tokens = work.tokens_beside(None) + part.tokens
        if full:
            work.tight = True
            self._make_room()
        if not parts:
            return [self._without_adapter(part, rows, work)]
        outputs = [
            output
            for one, its_rows in rows_of(parts, rows.start)
            for output in self._attempt(one, its_rows, work, alone=parts == [part])
        ]
        if full:
            self._learn(part, tokens)
        return outputs

    def _instead(
        self, phase: str, part: Place, error: Exception, *, alone: bool
    ) -> Sequence[Place]:
        """What to run instead of a part that raised; nothing: its job was given up."""
        if isinstance(error, LaunchError):
            raise error  # no rank can go on, and no job is to blame
        samples = sum(len(segment.samples) for segment in part.segments)
        what = _doing(phase, part)
        if is_out_of_memory(error) and (samples > 1 or not alone):
            if self.out_of_memory is not None and not self.out_of_memory.written:
                self._explain(what, part, error)  # the first time is kept
            return in_two(part) if samples > 1 else [part]
        segment, *others = part.segments
        if others:
            return single_segments(part)
        self.give_up(segment.job, what, error, part)
        return []

    def _learn(self, part: Place, tokens: int) -> None:
        """Memory ran out in ``part`` while so many tokens were held, and has not when it was cut.

        A sample that does not fit by itself says nothing of others.
        """
        if not any(segment.job in self.failed for segment in part.segments):
            self._room.ran_out(tokens)

    def _forward(
        self,
        part: Place,
        rows: slice,
        shards: Sequence[JobShard],
        hidden_TD: torch.Tensor | None,
    ) -> tuple[Piece, torch.Tensor]:
        trains = part.kind == "train"
        named = {shard.name: shard for shard in shards}
        layout = build_layout(part, named, self._bank)
        inputs = None
        if hidden_TD is not None:
            inputs = hidden_TD[rows].detach().requires_grad_(trains)
        with self.passes.forward(), torch.set_grad_enabled(trains):
            entering = self._tokens(part, named) if inputs is None else inputs
            output = self._stage(entering, layout)
            if not self._stage.part.last:
                return Piece(part, rows, shards, inputs, output), output.detach()
            total, losses = self._loss(part, named, output)
        # Without its graph, which is the piece's alone to hold.
        return Piece(part, rows, shards, inputs, total, losses), output.detach()

    def _without_adapter(self, part: Place, rows: slice, work: Work) -> torch.Tensor:
        """The base's output for the rows of a job that was given up; its losses are NaN."""
        try:
            output = self._base_output(part, rows, work.hidden_TD)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            output = None
        if output is None:  # any rows will do: no other job's depend on them
            size = (part.tokens, self._stage.width)
            output = torch.zeros(size, dtype=self._stage.dtype, device=self._stage.device)
        losses = None
        if self._stage.part.last:
            samples = sum(len(segment.samples) for segment in part.segments)
            losses = output.new_full((samples,), torch.nan, dtype=torch.float64)
        work.pieces.append(Piece(part, rows, (), losses=losses))
        return output

    def _base_output(
        self, part: Place, rows: slice, hidden_TD: torch.Tensor | None
    ) -> torch.Tensor:
        layout = build_layout(part, {}, self._bank)
        with self.passes.forward(), torch.no_grad():
            entering = self._tokens(part, {}) if hidden_TD is None else hidden_TD[rows]
            return self._stage(entering, layout)

    def _tokens(self, part: Place, shards: Mapping[str, JobShard]) -> torch.Tensor:
        return build_tokens(part, shards).to(self._stage.device, non_blocking=True)

    def _loss(
        self, part: Place, shards: Mapping[str, JobShard], hidden_TD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted sum, and the sum of each sample in float64."""
        targets = build_targets(part, shards)
        labelled, wanted, weights = (
            tensor.to(hidden_TD.device, non_blocking=True)
            for tensor in (targets.labelled_L, targets.targets_L, targets.weights_L)
        )
        total, loss_L = self._stage.loss(hidden_TD[labelled], wanted, weights)
        samples = loss_L.detach().double().split(targets.counts)
        return total, torch.stack([sample.sum() for sample in samples])

    def _attempt_backward(
        self, piece: Piece, work: Work, gradients: _Gradients, *, alone: bool = False
    ) -> None:
        """Write the piece's rows of ``gradients.before``, which are zeros so far."""
        phase = "forward"
        try:
            if piece.again:
                ran, _ = self._forward(piece.part, piece.rows, piece.shards, work.hidden_TD)
                piece.inputs, piece.output = ran.inputs, ran.output
                del ran
            phase = "backward"
            with self.passes.backward():
                _backward(piece, gradients.behind)
        except Exception as error:
            for shard in piece.shards:
                shard.gradients.forget()
            full = is_out_of_memory(error)
            parts = self._instead(phase, piece.part, error, alone=alone)
        else:
            inputs = piece.inputs
            if gradients.before is not None and inputs is not None and inputs.grad is not None:
                gradients.before[piece.rows] = inputs.grad
            piece.end()
            self._collect(piece)
            if work.tight and len(self._in_flight) == 1:
                self._room.ran(piece.part.tokens)
            return
        # Behind the handler, and without the graph: both hold what was computed.
        tokens = work.tokens_beside(piece) + piece.part.tokens
        piece.end()
        if full:
            self._make_room()
        for one in self._again(parts, piece):
            self._attempt_backward(one, work, gradients, alone=parts == [piece.part])
        if full:
            self._learn(piece.part, tokens)

    def _again(self, parts: Sequence[Place], piece: Piece) -> list[Piece]:
        """Parts of a piece, to be run from their forward on; jobs that have left are left out."""
        shards = {shard.name: shard for shard in piece.shards}
        out = {name for name in shards if self._shards.get(name) is not shards[name]} | self.failed
        parts = apart(parts, out)
        return [
            Piece(part, rows, [shards[segment.job] for segment in part.segments], again=True)
            for part, rows in rows_of(self._cut(parts), piece.rows.start)
            if part.segments[0].job in shards.keys() - out
        ]

    def _collect(self, piece: Piece) -> None:
        for shard, segment in zip(piece.shards, piece.part.segments, strict=bool(piece.shards)):
            try:
                self.with_room(partial(shard.collect, segment.samples))
            except Exception as error:
                shard.gradients.forget()
                self.give_up(segment.job, f"the backward of step {segment.step}", error)


def _doing(phase: str, part: Place) -> str:
    if part.kind == "eval":
        phase = "eval"
    segment, *others = part.segments
    if others:
        return f"the {phase} of a place of several jobs"
    return f"the {phase} {'after' if part.kind == 'eval' else 'of'} step {segment.step}"


def _backward(piece: Piece, gradient_TD: torch.Tensor | None) -> None:
    if piece.output is None or not piece.output.requires_grad:
        return  # no adapter at or below this stage
    gradient = None if gradient_TD is None else gradient_TD[piece.rows]
    torch.autograd.backward(piece.output, gradient)
