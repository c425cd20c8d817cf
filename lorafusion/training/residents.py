"""The jobs that are on one stage, from when they join until they leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from lorafusion.adapters.bank import AdapterBank
from lorafusion.training.revision import Leave
from lorafusion.training.shard import JobShard


class Residents(Mapping[str, JobShard]):
    """Name -> shard. A job that was asked to leave does so once its last step is done here."""

    def __init__(self, bank: AdapterBank, save: Callable[[JobShard], None]) -> None:
        """``save`` is called with a shard whose checkpoint is due, right after its step."""
        self._bank = bank
        self._save = save
        self._shards: dict[str, JobShard] = {}
        self._leaving: dict[str, Leave] = {}
        self._saved: dict[str, int] = {}
        self._held: dict[str, int] = {}
        self._last: dict[str, int] = {}

    def __getitem__(self, name: str) -> JobShard:
        return self._shards[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)

    @property
    def held_bytes(self) -> int:
        """Most gradients that were held until their sample's turn, summed over all jobs."""
        here = {name: shard.gradients.held_bytes_peak for name, shard in self._shards.items()}
        return sum((self._held | here).values())

    def join(self, shard: JobShard) -> None:
        """A job is here; a checkpoint of where it stands exists."""
        self._shards[shard.name] = shard
        self._saved[shard.name] = shard.step
        self._last.pop(shard.name, None)

    def stop_at(self, leave: Leave) -> None:
        """No later step counts, though the job is in places that are still to be run.

        Rank 0 has to know at once: it does a step S places before the others, which hear of the
        job's leave in between.
        """
        self._last[leave.job] = leave.step

    def over(self, job: str) -> bool:
        """Whether the job takes no step here any more."""
        shard = self._shards.get(job)
        return shard is None or shard.step >= self._last.get(job, shard.step + 1)

    def stepped(self, shard: JobShard) -> None:
        """A step of the job was done."""
        if shard.due():
            self._save_once(shard)
        self._let_go(shard)

    def leave(self, leave: Leave) -> None:
        """The job is in no place any more; gradients of a later step are dropped."""
        if leave.job in self._shards:
            self._leaving[leave.job] = leave
            self._let_go(self._shards[leave.job])

    def _let_go(self, shard: JobShard) -> None:
        leave = self._leaving.get(shard.name)
        if leave is None or (leave.save and shard.step < leave.step):
            return
        if leave.save:
            self._save_once(shard)
        self._held[shard.name] = shard.gradients.held_bytes_peak
        self._bank.remove(shard.slot)
        del self._shards[shard.name], self._leaving[shard.name], self._saved[shard.name]

    def _save_once(self, shard: JobShard) -> None:
        if self._saved[shard.name] != shard.step:
            self._saved[shard.name] = shard.step
            self._save(shard)
