"""The jobs of a sweep, ordered by what came of them: which choice was best, and how far apart.

A job is ranked by its held-out loss after training, which is that of the adapter it leaves; where
no job of the sweep has one, by its last training loss. A job that failed or was cancelled leaves no
adapter: it has no rank, nor has a loss that is not finite.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

__all__ = ["HELD_OUT", "TRAINING", "Ranking", "Variant", "rankings", "shown"]

HELD_OUT, TRAINING = "held-out loss", "training loss"
_GONE = frozenset({"failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class Variant:
    """One job of a sweep.

    Attributes:
        job: Its name.
        sweep: The sweep's name.
        choice: Field -> its value, in the order of the file.
        state: Where the job stands.
        steps: Optimizer steps done.
        total_steps: Of the whole job; 0 or None where that is not known.
        held_out: Held-out loss after training; None: not measured.
        training: Training loss of the last step; None: not measured.
    """

    job: str
    sweep: str
    choice: Mapping[str, Any]
    state: str
    steps: int
    total_steps: int | None
    held_out: float | None
    training: float | None


@dataclass(frozen=True, slots=True)
class Ranking:
    """A sweep.

    Attributes:
        name: Of the sweep.
        metric: What its jobs are ranked by: ``HELD_OUT`` or ``TRAINING``.
        fields: The swept fields, in the order of the file.
        ranked: Jobs with a rank, the least loss first; the order of the file among equals.
        others: Those without, in the order of the file.
    """

    name: str
    metric: str
    fields: tuple[str, ...]
    ranked: tuple[Variant, ...]
    others: tuple[Variant, ...]

    @property
    def rows(self) -> tuple[Variant, ...]:
        """All jobs."""
        return (*self.ranked, *self.others)

    def loss(self, variant: Variant) -> float | None:
        """What it is ranked by; None where that is not known or not finite."""
        value = variant.held_out if self.metric == HELD_OUT else variant.training
        return value if value is not None and math.isfinite(value) else None

    def is_best(self, variant: Variant) -> bool:
        """Whether no other has a lower loss; several are best where they are equal."""
        if not self.ranked or variant.state in _GONE:
            return False
        return self.loss(variant) == self.loss(self.ranked[0])

    @property
    def best(self) -> tuple[Variant, ...]:
        """The best; none where no job has a rank."""
        return tuple(variant for variant in self.ranked if self.is_best(variant))

    def axes(self) -> tuple[tuple[str, ...], ...]:
        """The fields that vary; those that go together, value by value, are one axis."""
        columns = {f: [_key(v.choice.get(f)) for v in self.rows] for f in self.fields}
        axes: list[list[str]] = []
        for field, column in columns.items():
            if len(set(column)) < 2:
                continue
            alike = (a for a in axes if _one_to_one(columns[a[0]], column))
            axis = next(alike, None)
            if axis is None:
                axes.append([field])
            else:
                axis.append(field)
        return tuple(map(tuple, axes))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "metric": self.metric,
            "fields": list(self.fields),
            "best": [variant.job for variant in self.best],
            "jobs": [
                {
                    "job": variant.job,
                    "rank": rank if rank <= len(self.ranked) else None,
                    "best": self.is_best(variant),
                    "choice": dict(variant.choice),
                    "loss": self.loss(variant),
                    "held_out_loss": _finite(variant.held_out),
                    "training_loss": _finite(variant.training),
                    "steps": variant.steps,
                    "total_steps": variant.total_steps,
                    "state": variant.state,
                }
                for rank, variant in enumerate(self.rows, 1)
            ],
        }


def rankings(variants: Iterable[Variant]) -> tuple[Ranking, ...]:
    """A ranking for each sweep that there is, in their order."""
    sweeps: dict[str, list[Variant]] = {}
    for variant in variants:
        sweeps.setdefault(variant.sweep, []).append(variant)
    return tuple(_ranking(name, found) for name, found in sweeps.items())


def shown(value: object) -> str:
    """A value of a field as it would stand in a file, on one line."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, str):
        return value if value.isprintable() else repr(value)
    if isinstance(value, Mapping):
        entries = cast("Mapping[str, object]", value).items()
        return "{" + ", ".join(f"{shown(key)}: {shown(item)}" for key, item in entries) + "}"
    if isinstance(value, list | tuple):
        items = cast("Sequence[object]", value)
        return "[" + ", ".join(map(shown, items)) + "]"
    return json.dumps(value)


def _ranking(name: str, variants: Sequence[Variant]) -> Ranking:
    fields = dict.fromkeys(field for variant in variants for field in variant.choice)
    alive = [variant for variant in variants if variant.state not in _GONE]
    measured = any(_finite(variant.held_out) is not None for variant in alive or variants)
    made = Ranking(name, HELD_OUT if measured else TRAINING, tuple(fields), (), tuple(variants))
    losses = [made.loss(v) if v.state not in _GONE else None for v in variants]
    ranked = [(loss, v) for loss, v in zip(losses, variants, strict=True) if loss is not None]
    ranked.sort(key=lambda entry: entry[0])
    others = tuple(v for loss, v in zip(losses, variants, strict=True) if loss is None)
    return replace(made, ranked=tuple(v for _, v in ranked), others=others)


def _one_to_one(some: Sequence[str], others: Sequence[str]) -> bool:
    pairs = set(zip(some, others, strict=True))
    return len(pairs) == len(set(some)) == len(set(others))


def _key(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
