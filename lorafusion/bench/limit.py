"""The limit of ``lorafusion bench train``: ``python -m lorafusion.bench.limit FOLDER``.

Runs the places that our own training ran last on the inputs in FOLDER (it leaves them there), but
of each only what no training of an adapter on this base can leave out: every frozen linear's
product forward, and the one that gives the gradient of its input where an adapter lies before it;
and both products of the head, at the labelled rows. Nothing is read, kept or allocated between
them, so the tokens a second of this are the most that the matrix products allow.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorafusion.adapters.adapted import weight_NK
from lorafusion.adapters.initial import resolve_adapter
from lorafusion.adapters.lora import LoraConfig
from lorafusion.bench.inputs import SPEC_FILE
from lorafusion.jobs.schema import RunSpec
from lorafusion.kernels.cross_entropy.chunks import chunks
from lorafusion.kernels.cross_entropy.cpu import CHUNK_BYTES
from lorafusion.models.head import head_of
from lorafusion.models.load import Base, load_base
from lorafusion.planner.plan import Place
from lorafusion.training.memory import peak_rss_mb

PLACES_FILE = "places.json"


@dataclass(frozen=True)
class Ran:
    """A training place as it was run.

    Attributes:
        rows: That went through the base.
        labelled: Of these, those that went through the head.
        jobs: That had some of them.
        completes: (job, step, tokens) of each optimizer step that ended with it.
    """

    rows: int
    labelled: int
    jobs: tuple[str, ...]
    completes: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, place: Place, tokens: Mapping[tuple[str, int], int]) -> Ran:
        """``tokens``: those of each step."""
        return cls(
            rows=place.tokens,
            labelled=sum(sum(segment.labelled) for segment in place.segments),
            jobs=tuple(segment.job for segment in place.segments),
            completes=tuple((job, step, tokens[job, step]) for job, step in place.completes),
        )


class Products:
    """The products of a base, on tensors that are made once."""

    def __init__(self, base: Base, most_rows: int) -> None:
        """``most_rows``: of any place."""
        modules = dict(base.model.named_modules())
        self._weights = {name: weight_NK(modules[name]) for name in base.names.linears}
        head = head_of(base.model)
        assert head is not None, "a base that trains has a head"
        self._head_VD = head.weight_VD
        widths = {width for weight in self._weights.values() for width in weight.shape}
        widths.add(self._head_VD.shape[1])
        self._given = {width: _rows(most_rows, width, base.dtype) for width in widths}
        self._made = {width: torch.empty_like(rows) for width, rows in self._given.items()}
        words = len(self._head_VD)
        self._chunk_rows = max(1, CHUNK_BYTES // (words * self._head_VD.element_size()))
        self._logits = torch.empty(words * self._chunk_rows, dtype=base.dtype)

    def layers(self, rows: int, with_gradient: Collection[str]) -> None:
        """Those of a place's layers; ``with_gradient``: the linears whose input has one."""
        for name, weight in self._weights.items():
            out, wide = weight.shape
            torch.mm(self._given[wide][:rows], weight.T, out=self._made[out][:rows])
            if name in with_gradient:
                torch.mm(self._given[out][:rows], weight, out=self._made[wide][:rows])

    def head(self, labelled: int) -> None:
        """Those of its head."""
        words, wide = self._head_VD.shape
        row_bytes = words * self._head_VD.element_size()
        for part in chunks(labelled, row_bytes, CHUNK_BYTES):
            count = part.stop - part.start
            logits_VL = self._logits[: words * count].view(words, count)
            torch.mm(self._head_VD, self._given[wide][part].T, out=logits_VL)
            torch.mm(logits_VL.T, self._head_VD, out=self._made[wide][part])


def linears_with_gradient(base: Base, adapted: Iterable[str]) -> frozenset[str]:
    """Those whose input depends on an adapter: seen in a forward of the base on two tokens."""
    modules = dict(base.model.named_modules())
    found: set[str] = set()
    zero = torch.zeros((), dtype=base.dtype, requires_grad=True)

    def note(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if args[0].requires_grad:
                found.add(name)

        return hook

    def adapt(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + zero

    hooks = [modules[name].register_forward_pre_hook(note(name)) for name in base.names.linears]
    hooks += [modules[name].register_forward_hook(adapt) for name in adapted]
    try:
        base.model(input_ids=torch.tensor([[0, 0]]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return frozenset(found)


def write_places(
    path: Path, places: Iterable[Place], tokens: Mapping[tuple[str, int], int]
) -> None:
    """Keep what was run for this way to run; evals and places without samples are left out."""
    ran = [Ran.of(place, tokens) for place in places if place.kind == "train"]
    path.write_text(json.dumps([vars(place) for place in ran]), encoding="utf-8")


def read_places(path: Path) -> list[Ran]:
    """What :func:`write_places` has written."""
    return [
        Ran(
            found["rows"],
            found["labelled"],
            tuple(found["jobs"]),
            tuple((job, step, tokens) for job, step, tokens in found["completes"]),
        )
        for found in json.loads(path.read_text(encoding="utf-8"))
    ]


def main(folder: Path) -> None:
    """Run all places once, and say on stdout when each step's last place was done."""
    spec = RunSpec.model_validate_json((folder / SPEC_FILE).read_text())
    torch.set_num_threads(spec.threads or torch.get_num_threads())
    places = read_places(folder / PLACES_FILE)
    base = load_base(spec.base_model, spec.dtype)
    behind = {jobs: _with_gradient(base, spec, jobs) for jobs in {place.jobs for place in places}}
    with torch.no_grad():
        products = Products(base, max(place.rows for place in places))
        products.layers(64, base.names.linears)  # reads the weights
        products.head(8)
        for event in _timed(products, places, behind):
            _say(event="step", **event)
    _say(event="done", peak_rss_mb=peak_rss_mb())


def _timed(
    products: Products,
    places: Sequence[Ran],
    behind: Mapping[tuple[str, ...], Collection[str]],
) -> Iterator[dict[str, Any]]:
    started = time.perf_counter()
    for place in places:
        products.layers(place.rows, behind[place.jobs])
        products.head(place.labelled)
        seconds = time.perf_counter() - started
        for job, step, tokens in place.completes:
            yield {"job": job, "step": step, "loss": math.nan, "tokens": tokens, "s": seconds}


def _with_gradient(base: Base, spec: RunSpec, jobs: Collection[str]) -> frozenset[str]:
    targets: set[str] = set()
    for job in spec.jobs:
        if job.name in jobs:
            assert isinstance(job.adapter, LoraConfig), "no other was measured by ours"
            targets |= set(resolve_adapter(job.adapter, base.names).targets)
    return linears_with_gradient(base, targets)


def _rows(count: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0)).to(dtype)


def _say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
