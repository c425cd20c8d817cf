"""Samples per device times accumulation steps: one global batch, taken as on one device."""

from __future__ import annotations

from dataclasses import dataclass, field

from lorafusion.errors import Problem
from lorafusion.jobs.aliases import ACCUMULATION, PER_DEVICE
from lorafusion.jobs.claims import Claims, Notes, spelled
from lorafusion.jobs.problems import show
from lorafusion.jobs.yaml_tree import Node

GLOBAL = ("global_batch_size",)


@dataclass(frozen=True)
class BatchFields:
    """What one mapping says in other tools' words about its batches."""

    per_device: Node | None = None
    accumulation: Node | None = None

    @classmethod
    def taken_from(cls, claims: Claims) -> BatchFields:
        """The two fields of ``claims``, which are no claims after that."""
        return cls(claims.take(PER_DEVICE), claims.take(ACCUMULATION))

    def over(self, defaults: BatchFields) -> BatchFields:
        """These fields, and the defaults' where there are none."""
        return BatchFields(
            self.per_device or defaults.per_device, self.accumulation or defaults.accumulation
        )

    @property
    def first(self) -> Node | None:
        """One of the two, if there is any."""
        return self.per_device or self.accumulation


@dataclass(frozen=True)
class BatchTranslator:
    """Turns the two fields into a claim on ``global_batch_size``."""

    file: str
    notes: Notes
    problems: list[Problem] = field(default_factory=list[Problem])

    def defaults(self, claims: Claims) -> BatchFields:
        """Translate those of ``defaults``, and return them for jobs that give only one of them."""
        fields = BatchFields.taken_from(claims)
        if fields.first is not None:
            self._claim(claims, fields, fields, alone_is_wrong=False)
        return fields

    def job(self, claims: Claims, inherited: BatchFields) -> None:
        """Translate those of a job, completed from the defaults."""
        fields = BatchFields.taken_from(claims)
        if fields.first is not None:
            self._claim(claims, fields, fields.over(inherited))
        elif claims.get(GLOBAL) is None and inherited.per_device is None and inherited.accumulation:
            self._alone(inherited.accumulation)

    def _claim(
        self, claims: Claims, own: BatchFields, fields: BatchFields, *, alone_is_wrong: bool = True
    ) -> None:
        stated = claims.get(GLOBAL)
        if stated is not None:
            self._both(stated, own.first or stated)
        elif fields.per_device is not None:
            samples, times = self._count(fields.per_device), self._count(fields.accumulation)
            if samples and times:
                claims.leaf(GLOBAL, self._product(fields.per_device, fields, samples * times))
        elif alone_is_wrong and fields.accumulation is not None:
            self._alone(fields.accumulation)

    def _product(self, per_device: Node, fields: BatchFields, product: int) -> Node:
        said = f"{spelled(per_device)}: {per_device.value}"
        if fields.accumulation is not None:
            said += f" with {spelled(fields.accumulation)}: {fields.accumulation.value}"
        self.notes.add(
            f"{said} is taken as global_batch_size: {product}, as on one device; "
            "the planner cuts it into microbatches",
            *(node for node in (per_device, fields.accumulation) if node is not None),
        )
        return Node(product, per_device.line, per_device.where)

    def _count(self, node: Node | None) -> int | None:
        """A count of 1 or more; 1 where there is none, None where it is something else."""
        if node is None:
            return 1
        if isinstance(node.value, int) and not isinstance(node.value, bool) and node.value >= 1:
            return node.value
        fix = "Write a whole number, or give `global_batch_size`."
        self._add(node, show(node), "a whole number >= 1", fix)
        return None

    def _both(self, stated: Node, other: Node) -> None:
        later, earlier = (other, stated) if other.line >= stated.line else (stated, other)
        self._add(
            later,
            f"{spelled(later)} beside {spelled(earlier)} (line {earlier.line})",
            "global_batch_size alone, or samples per device and accumulation steps: the planner "
            "cuts a global batch into microbatches itself",
            f"Keep `global_batch_size`, and remove `{spelled(other)}`.",
        )

    def _alone(self, accumulation: Node) -> None:
        self._add(
            accumulation,
            f"{spelled(accumulation)} without samples per device",
            "both, or global_batch_size",
            "Give `global_batch_size`: the samples of one optimizer step.",
        )

    def _add(self, node: Node, found: str, allowed: str, fix: str) -> None:
        self.problems.append(Problem(self.file, node.line, node.where, found, allowed, fix))
