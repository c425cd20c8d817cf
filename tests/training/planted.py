"""Faults that are planted in one job on one stage, from a certain step on.

Products of the program are changed in place, in the process of that rank alone: the product itself
knows nothing of this.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from weakref import WeakSet

import torch

from lorafusion.errors import AdapterError
from lorafusion.jobs.schema import JobSpec
from lorafusion.kernels.layout import AdapterLayout
from lorafusion.models.stage import Stage
from lorafusion.training import shard_writer
from lorafusion.training.shard import JobShard
from lorafusion.training.site import Site


class Fault(NamedTuple):
    """What goes wrong: in ``job`` on ``stage``, in step ``step``.

    Where memory is full, ``step`` is the most tokens that fit, whatever job they are of; ``job`` is
    there when it begins.
    """

    stage: int
    phase: str
    job: str
    step: int

    def error(self) -> Exception:
        """What is raised."""
        return ZeroDivisionError(f"planted in {self.phase}")


def plant(faults: list[Fault]) -> None:
    """Let this process meet these faults, all of its own stage."""
    site_class: Any = Site
    join = Site.join

    def join_with_fault(site: Site, spec: JobSpec, *arguments: Any) -> JobShard:
        mine = [fault for fault in faults if fault.job == spec.name]
        for fault in mine:
            if fault.phase == "join":
                raise AdapterError("planted in join")
        shard = join(site, spec, *arguments)
        for fault in mine:
            _PHASES[fault.phase](fault, shard, site)
        return shard

    site_class.join = join_with_fault


def _nan(fault: Fault, shard: JobShard, _site: Site) -> None:
    _wrap(shard, "apply", after=lambda: _poison(shard) if shard.step == fault.step - 1 else None)


def _poison(shard: JobShard) -> None:
    with torch.no_grad():
        for parameter in shard.parameters.values():
            parameter.fill_(torch.nan)


def _forward(fault: Fault, shard: JobShard, _site: Site) -> None:
    stage_class: Any = Stage
    run = Stage.forward

    def forward(stage: Stage, entering: torch.Tensor, layout: AdapterLayout) -> torch.Tensor:
        if _is_here(fault, shard, layout):
            raise fault.error()
        return run(stage, entering, layout)

    stage_class.forward = forward


def _backward(fault: Fault, shard: JobShard, _site: Site) -> None:
    stage_class: Any = Stage
    run = Stage.forward

    def forward(stage: Stage, entering: torch.Tensor, layout: AdapterLayout) -> torch.Tensor:
        output = run(stage, entering, layout)
        return _Bad.apply(output, fault) if _is_here(fault, shard, layout) else output

    stage_class.forward = forward


class _Bad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, fault: Fault) -> torch.Tensor:
        ctx.fault = fault
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *_gradients: Any) -> Any:
        raise ctx.fault.error()


def _full(fault: Fault, _shard: JobShard, _site: Site) -> None:
    """A forward of more tokens finds no memory, in evals too."""
    _stage_forward(lambda run, rows: _out_of_memory() if rows > fault.step else run())


def _full_backward(fault: Fault, _shard: JobShard, _site: Site) -> None:
    """A backward of more tokens finds no memory, after it has added up a part of the gradient."""

    def forward(run: Callable[[], torch.Tensor], rows: int) -> torch.Tensor:
        output = run()
        return _Full.apply(output) if rows > fault.step else output

    stage_class: Any = Stage
    run_layer = Stage._run_layer  # pyright: ignore[reportPrivateUsage]

    def layer(stage: Stage, layer: Any, hidden: torch.Tensor, *rest: Any) -> torch.Tensor:
        output = run_layer(stage, layer, hidden, *rest)
        last = layer is stage.layers[stage.part.layers.stop - 2]
        return _Full.apply(output) if last and len(hidden[0]) > fault.step else output

    if fault.phase == "full-backward-midway":
        stage_class._run_layer = layer
    else:
        _stage_forward(forward)


class _Full(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(_ctx: Any, *_gradients: Any) -> Any:
        _out_of_memory()


def _held(fault: Fault, _shard: JobShard, _site: Site) -> None:
    """No more tokens are trained than this, with those whose graphs are still there."""
    graphs = WeakSet[_Graph]()

    def forward(run: Callable[[], torch.Tensor], rows: int) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return run()
        if rows + sum(graph.rows for graph in graphs) > fault.step:
            _out_of_memory()
        output = run()
        if not output.requires_grad:
            return output
        graph = _Graph(rows)
        graphs.add(graph)
        return _Held.apply(output, graph)

    _stage_forward(forward)


class _Graph:
    def __init__(self, rows: int) -> None:
        self.rows = rows


class _Held(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, graph: _Graph) -> torch.Tensor:
        ctx.graph = graph
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


def _out_of_memory() -> NoReturn:
    raise torch.OutOfMemoryError("planted: no memory")


def _stage_forward(forward: Callable[[Callable[[], torch.Tensor], int], torch.Tensor]) -> None:
    """Put ``forward`` around that of stages, which it is given with the number of rows."""
    stage_class: Any = Stage
    run = Stage.forward

    def wrapped(stage: Stage, entering: torch.Tensor, layout: AdapterLayout) -> torch.Tensor:
        return forward(lambda: run(stage, entering, layout), len(entering))

    stage_class.forward = wrapped


def _is_here(fault: Fault, shard: JobShard, layout: AdapterLayout) -> bool:
    if fault.phase == "eval":
        due = not layout.training and shard.step == fault.step
    else:
        due = layout.training and shard.step == fault.step - 1
    return due and shard.slot in layout.segment_slots


def _method(name: str) -> Callable[[Fault, JobShard, Site], None]:
    """A method of the job's shard that raises."""

    def install(fault: Fault, shard: JobShard, _site: Site) -> None:
        def check() -> None:
            if shard.step == fault.step - 1:
                raise fault.error()

        _wrap(shard, name, before=check)

    return install


def _rows(fault: Fault, shard: JobShard, _site: Site) -> None:
    rows = shard.data.rows

    def bad_rows(*arguments: Any) -> Any:
        if shard.step == fault.step - 1:
            raise fault.error()
        return rows(*arguments)

    object.__setattr__(shard.data, "rows", bad_rows)


def _save(fault: Fault, _shard: JobShard, _site: Site) -> None:
    write = shard_writer.write_bytes_atomic

    def full(path: Path, data: bytes) -> None:
        if fault.job in path.parts and path.parent.name == f"step-{fault.step:08d}":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)

    shard_writer.write_bytes_atomic = full


def _copy(fault: Fault, shard: JobShard, _site: Site) -> None:
    tensors = shard.tensors

    def bad_tensors() -> dict[str, torch.Tensor]:
        if shard.step == fault.step:
            raise fault.error()
        return tensors()

    shard.tensors = bad_tensors


def _kill(fault: Fault, shard: JobShard, _site: Site) -> None:
    def check() -> None:
        if shard.step == fault.step - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    _wrap(shard, "apply", before=check)


def _nothing(_fault: Fault, _shard: JobShard, _site: Site) -> None:
    """It happens elsewhere."""


def _wrap(
    shard: JobShard,
    name: str,
    *,
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
) -> None:
    method = getattr(shard, name)

    def wrapped(*arguments: Any) -> Any:
        before()
        result = method(*arguments)
        after()
        return result

    setattr(shard, name, wrapped)


_PHASES: dict[str, Callable[[Fault, JobShard, Site], None]] = {
    "backward": _backward,
    "collect": _method("collect"),
    "copy": _copy,
    "eval": _forward,
    "forward": _forward,
    "full": _full,
    "full-backward": _full_backward,
    "full-backward-midway": _full_backward,
    "held": _held,
    "join": _nothing,
    "kill": _kill,
    "nan": _nan,
    "norm": _method("complete"),
    "rows": _rows,
    "save": _save,
    "step": _method("apply"),
}
