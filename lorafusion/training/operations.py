"""Time by kind of operation, from the Chrome trace that torch's profiler has written.

Every event counts with its own time, without what is inside it: on a CPU the time in it, on a GPU
that of the kernels that were launched in it. What it counts as depends on the ranges and autograd
nodes that it lies in, see :mod:`lorafusion.training.ranges`, and else on its name.

The trace is read instead of the profiler's own objects, whose making took 9 s for 70,000 events.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorafusion.training.ranges import ATTENTION, LORA, LOSS

BASE = "matrix products of the base"
ADAPTERS = "LoRA"
ATTEND = "attention"
POINTWISE = "norms, activation and rotary"
HEAD = "loss and head"
COPIES = "copies and casts"
OPTIMIZER = "optimizer"
COMMUNICATION = "communication"
OTHER = "other"
KINDS = (BASE, ADAPTERS, ATTEND, POINTWISE, HEAD, COPIES, OPTIMIZER, COMMUNICATION, OTHER)
"""In the order in which they are told."""

# All that is inside an event with such a name is of a kind; the first that fits counts.
_INSIDE = (
    (
        re.compile(rf"{ATTENTION}$|aten::_?scaled_dot_product|\w*Attention\w*(Backward\d*)?$"),
        ATTEND,
    ),
    (re.compile(rf"{LORA} |_(Shared)?LoraLinear|torch::autograd::AccumulateGrad"), ADAPTERS),
    (re.compile(rf"{LOSS}$|_WeightedCrossEntropy"), HEAD),
    (re.compile(r"_(RmsNorm|Rotary|GatedProduct|GatedHalves)(Backward)?$"), POINTWISE),
    (re.compile(r"step |Optimizer"), OPTIMIZER),
    (re.compile(r"(send|wait) "), COMMUNICATION),
)
# Where nothing around it says more, an operation is what its name says.
_NODE = "autograd::engine::evaluate_function: "
_BY_NAME = (
    (re.compile(r"aten::(linear|mm|addmm|bmm|baddbmm|matmul)$"), BASE),
    (
        re.compile(
            r"aten::(_to_copy|to|copy_|clone|cat|contiguous|zeros|zeros_like|zero_|fill_|"
            r"new_zeros|empty|empty_like|empty_strided|new_empty|new_empty_strided|"
            r"slice_backward|select_backward)$"
        ),
        COPIES,
    ),
    (
        re.compile(
            r"aten::_?(add|sub|rsub|mul|div|pow|square|mean|sum|rsqrt|sqrt|neg|cos|sin|exp|tanh|"
            r"sigmoid|silu|gelu|relu|(native_|fused_)?(layer|rms)_norm)_?(_backward)?$"
        ),
        POINTWISE,
    ),
)
# The base's products inside an op of LoRA come first: one, or as many as its name says linears.
# Triton's run with LoRA's at once.
_WITH_PRODUCT = re.compile(rf"{LORA} (up|grad_input)(?: (\d+))?$")
_PRODUCT = re.compile(r"aten::(linear|matmul|mm|addmm_?)$")
_FUSED_KERNELS = ("gemm_kernel", "shared_up_kernel", "shared_grad_input_kernel")


ON_CPU = {"cpu_op", "user_annotation"}
_LAUNCHES = {"cuda_runtime", "cuda_driver"}
_LAUNCH = "launch"
_ON_GPU = {"kernel": OTHER, "gpu_memcpy": COPIES, "gpu_memset": COPIES}
_MICRO = 1e-6


@dataclass(slots=True)
class Event:
    """An event with what it lies in.

    Attributes:
        kind: What it counts as.
        inside: What all that lies in it counts as; None where its names decide.
        backward: Whether it lies in the span of a backward.
        node: Whether it lies in a node of autograd.
        products: Products of the base that are still to come in it.
        own: Microseconds in it and in nothing inside it.
    """

    name: str
    end: float
    kind: str
    inside: str | None
    backward: bool
    node: bool
    products: int
    own: float


@dataclass(slots=True)
class _Sum:
    seconds: float = 0.0
    calls: int = 0


def sum_operations(
    events: Sequence[Mapping[str, Any]], *, on_gpu: bool = False
) -> list[dict[str, Any]]:
    """Seconds and calls by kind, for JSON.

    Args:
        events: ``traceEvents`` of the Chrome trace.
        on_gpu: Count the kernels that were launched instead of the time on the CPU.

    Returns:
        An entry of ``name``, ``seconds`` and ``calls`` for each of :data:`KINDS`. A call is an
        operation that lies in no other of its kind; on a GPU, a kernel.
    """
    sums = {kind: _Sum() for kind in KINDS}
    if on_gpu:
        _add_kernels(events, sums)
    else:
        for event, around in walk(events, ON_CPU):
            total = sums[event.kind]
            total.seconds += event.own * _MICRO
            total.calls += around is None or around.kind != event.kind
    return [
        {"name": kind, "seconds": round(total.seconds, 6), "calls": total.calls}
        for kind, total in sums.items()
    ]


def _add_kernels(events: Sequence[Mapping[str, Any]], sums: Mapping[str, _Sum]) -> None:
    launched = {
        event.name: around.kind
        for event, around in walk(events, ON_CPU | _LAUNCHES)
        if around is not None and event.kind == _LAUNCH
    }
    for event in events:
        if event.get("cat") not in _ON_GPU:
            continue
        name = str(event["name"])
        kind = launched.get(str(event["args"].get("correlation")), OTHER)
        if kind == ADAPTERS and name.startswith(_FUSED_KERNELS):
            kind = BASE
        elif kind == OTHER:
            kind = COMMUNICATION if name.startswith("nccl") else _ON_GPU[event["cat"]]
        sums[kind].seconds += float(event["dur"]) * _MICRO
        sums[kind].calls += 1


def walk(
    events: Iterable[Mapping[str, Any]], categories: set[str]
) -> Iterator[tuple[Event, Event | None]]:
    """Every event that has ended, with the one that it lies in. A launch is named by its number."""
    threads: dict[Any, list[Mapping[str, Any]]] = {}
    for event in events:
        if event.get("ph") == "X" and event.get("cat") in categories:
            threads.setdefault((event["pid"], event["tid"]), []).append(event)
    for found in threads.values():
        found.sort(key=lambda event: (event["ts"], -event["dur"]))
        stack: list[Event] = []
        for event in found:
            while stack and stack[-1].end <= event["ts"]:
                yield stack.pop(), stack[-1] if stack else None
            around = stack[-1] if stack else None
            if around is not None:
                around.own -= event["dur"]
            stack.append(_enter(event, around))
        while stack:
            yield stack.pop(), stack[-1] if stack else None


def _enter(event: Mapping[str, Any], around: Event | None) -> Event:
    name = str(event["name"])
    if event["cat"] in _LAUNCHES:
        name = str(event["args"].get("correlation"))
        return Event(name, event["ts"] + event["dur"], _LAUNCH, None, False, False, 0, 0.0)
    node = name.startswith(_NODE)
    bare = name.removeprefix(_NODE)
    inside = None if around is None else around.inside
    if inside is None:
        inside = next((kind for pattern, kind in _INSIDE if pattern.match(bare)), None)
    elif around is not None and around.products and _PRODUCT.match(name):
        around.products -= 1
        inside = BASE
    backward = name.startswith("backward ") or (around is not None and around.backward)
    node = node or (around is not None and around.node)
    kind = inside or next((kind for pattern, kind in _BY_NAME if pattern.match(name)), OTHER)
    if kind == POINTWISE and inside is None and backward and not node:
        kind = OPTIMIZER  # gradients of samples are added, and their squared norms taken
    found = _WITH_PRODUCT.match(name)
    products = int(found[2] or 1) if found else 0
    end = event["ts"] + event["dur"]
    return Event(name, end, kind, inside, backward, node, products, event["dur"])
