"""Seconds and bytes of a decoder's parts: a layer, the embedding, the head. Frozen base with LoRA.

h hidden, q and k columns of queries and of keys, i of the MLP, V vocabulary, e bytes of a weight,
P weights of a layer's linears, K and N columns of one linear's X and Y, r rank.

**Seconds** are operations over what the device reaches of its peak, plus bytes over what it reaches
of its bandwidth, plus a launch for each kernel. Per token and layer:

- base: 2P operations forward, 2P backward (dX alone: there is no dW);
- causal attention of a sample of n tokens: 2·2·q·n²/2 forward, 2.5 times that backward (five
  products instead of two; Dao 2023, arXiv:2307.08691);
- LoRA: 2r(K+N) forward, 4r(K+N) backward, and what counts on a GPU: one more pass over X forward
  (S = D(X)Aᵀ), over X and over dY backward (dA; dS together with dB);
- norms, residuals, rotary positions, activation: the passes of fused kernels, 10h + 2(q+k) + 3i
  elements forward, 12h + 2(q+k) + 5i backward, and 3h for each dX that is added to another's. Eager
  kernels make more;
- a segment leaves half a tile of rows empty in each product;
- the head: 2hV operations per *labelled* row each way, and five passes over its
  logits, chunk by chunk.

**Bytes** held from forward to backward, per token and layer; for Llama-3.1-8B at rank 16 164,424,
as many as 82,212 elements, where LoRAFusion's profile has 106,676 (it keeps D(X) and its mask):

- 4 per normed column, and 8: the norms' input and two factors in float32;
- 2eh + eq: X of q, k, v, X of gate and up, X of o; linears of one input share it;
- e(q + 2k) + eq + 4 per head: q, k, v, the output and the softmax's sums that attention keeps; the
  CPU's own loops give their output to o, whose X is counted;
- 3ei: gate, up, and their product, X of down; ei more for an activation that does not run in one
  pass with the product. Where the MLP has two linears 2ei.
  3ei more for a GELU that transformers writes out in torch ops (GPT-2's), which keeps four tensors;
- 4r per adapted linear: S in float32.

With recomputation eh, the layer's input; the above is then needed for one layer at a time. An
adapter takes 16 bytes a parameter: weight, gradient and AdamW's two moments in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorafusion.errors import PlanError
from lorafusion.planner.cost import Linear, StageCost
from lorafusion.planner.devices import DeviceProfile
from lorafusion.planner.shape import ModelShape, Projection

__all__ = ["Setup", "embedding_cost", "head_cost", "layer_cost"]

ADAPTER_BYTES = 16
"""Of a parameter of an adapter."""

# Kernels of a layer with four inputs of linears, forward and backward, and for each adapted linear
# (down, up; dS with dB, dX, dA). About 20 of the forward's are norms and rotary positions.
_KERNELS, _KERNELS_PER_LINEAR = (30, 45), (2, 3)
# One tensor's AdamW and share of the gradient norm, tensor by tensor, no two operations fused:
# kernels, and bytes moved per parameter (80 for AdamW, 40 for a norm in float64).
_STEP_KERNELS, _STEP_BYTES = 16, 120
# Passes over the logits, each way: in all they are written by the product, read, turned into their
# gradient in place, and read by the product after that.
_LOGIT_PASSES = 2.5
# Labelled rows that a microbatch has at most, for vocabularies so small that no chunk is full.
_HEAD_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Setup:
    """What is trained, and how.

    Attributes:
        targets: The linears that have adapters, by the ends of their names.
        ranks: Ranks of all adapters that are resident at once, which take memory.
        recompute: Whether each layer's forward is repeated in the backward to save memory.
        across_nodes: Whether neighbouring stages stand in different nodes.
    """

    targets: tuple[str, ...] | str = "all-linear"
    ranks: tuple[int, ...] = ()
    recompute: bool = False
    across_nodes: bool = False

    def adapted(self, shape: ModelShape) -> tuple[Projection, ...]:
        """The adapted linears of a layer.

        Raises:
            PlanError: A target is no linear of a layer.
        """
        if self.targets == "all-linear":
            return shape.projections
        targets = (self.targets,) if isinstance(self.targets, str) else self.targets
        linears = shape.projections
        found = {target: [p for p in linears if _ends(p.name, target)] for target in targets}
        unknown = [target for target, hits in found.items() if not hits]
        if unknown:
            raise PlanError(
                f"target {unknown[0]!r} is no linear of a layer; allowed: all-linear, or "
                f"{', '.join(projection.name for projection in linears)}."
            )
        return tuple(p for p in linears if any(p in hits for hits in found.values()))


def _ends(name: str, target: str) -> bool:
    """Whether one is the other, or its end after a dot."""
    return f".{name}".endswith(f".{target}") or f".{target}".endswith(f".{name}")


def layer_cost(shape: ModelShape, device: DeviceProfile, setup: Setup) -> StageCost:
    """One decoder layer. ``working`` is what one layer needs while it runs, not a sum."""
    adapted = setup.adapted(shape)
    width = sum(linear.inputs + linear.outputs for linear in adapted)
    forward = _layer_forward(shape, device, adapted)
    backward = _layer_backward(shape, device, adapted)
    held = _layer_bytes(shape, device, len(adapted))
    passing = shape.dtype_bytes * (3 * shape.intermediate + 4 * shape.hidden)
    working = Linear(token=passing)
    if setup.recompute:
        backward, working = backward + forward, working + held
        held = Linear(token=shape.dtype_bytes * shape.hidden)
    return StageCost(
        forward=forward,
        backward=backward,
        step_fixed_s=2 * len(adapted) * _STEP_KERNELS * device.launch_s,
        step_rank_s=_pass(device, _STEP_BYTES * width),
        activation=held,
        static_bytes=shape.dtype_bytes * shape.layer_parameters
        + ADAPTER_BYTES * width * sum(setup.ranks),
        working=working,
    )


def embedding_cost(shape: ModelShape, device: DeviceProfile) -> StageCost:
    """The embedding: frozen, so a gather forward and nothing backward."""
    row = shape.dtype_bytes * shape.hidden
    return StageCost(
        forward=Linear(fixed=device.launch_s, token=_pass(device, 2 * row)),
        backward=Linear(),
        static_bytes=row * (shape.vocab + shape.positions),
    )


def head_cost(shape: ModelShape, device: DeviceProfile) -> StageCost:
    """Final norm, head and loss, with the head's own copy of a tied embedding."""
    h, e = shape.hidden, shape.dtype_bytes
    row = _product(device, 2 * h * shape.vocab) + _pass(device, _LOGIT_PASSES * e * shape.vocab)
    return StageCost(
        forward=Linear(fixed=10 * device.launch_s, token=_pass(device, 2 * e * h), labelled=row),
        backward=Linear(fixed=10 * device.launch_s, token=_pass(device, 3 * e * h), labelled=row),
        activation=Linear(token=max(4, e) * h + 4, labelled=2 * e * h),
        static_bytes=e * h * shape.vocab,
        working=Linear(fixed=min(device.loss_bytes, e * _HEAD_ROWS * shape.vocab)),
    )


def _layer_forward(
    shape: ModelShape, device: DeviceProfile, adapted: tuple[Projection, ...]
) -> Linear:
    inputs = sum(linear.inputs for linear in adapted)
    width = inputs + sum(linear.outputs for linear in adapted)
    gated = 3 if shape.gated else 2
    elements = 10 * shape.hidden + 2 * (shape.query + shape.key) + gated * shape.intermediate
    products = _product(device, 2 * shape.layer_parameters)
    return Linear(
        fixed=(_KERNELS[0] + _KERNELS_PER_LINEAR[0] * len(adapted)) * device.launch_s,
        token=products + _pass(device, shape.dtype_bytes * (elements + inputs)),
        square=2 * shape.query / (device.peak_flops * device.attention_fraction),
        segment=device.tile_rows / 2 * products,
        token_rank=_product(device, 2 * width) + _pass(device, 2 * 4 * len(adapted)),
    )


def _layer_backward(
    shape: ModelShape, device: DeviceProfile, adapted: tuple[Projection, ...]
) -> Linear:
    width = sum(linear.inputs + linear.outputs for linear in adapted)
    gated = 5 if shape.gated else 3
    elements = 12 * shape.hidden + 2 * (shape.query + shape.key) + gated * shape.intermediate
    # A layer has four different inputs of linears; each linear beyond adds its dX to another's.
    elements += 3 * shape.hidden * (len(shape.projections) - 4)
    products = _product(device, 2 * shape.layer_parameters)
    return Linear(
        fixed=(_KERNELS[1] + _KERNELS_PER_LINEAR[1] * len(adapted)) * device.launch_s,
        token=products + _pass(device, shape.dtype_bytes * (elements + width)),
        square=5 * shape.query / (device.peak_flops * device.attention_fraction),
        segment=device.tile_rows / 2 * products,
        token_rank=_product(device, 4 * width) + _pass(device, 4 * 4 * len(adapted)),
    )


def _layer_bytes(shape: ModelShape, device: DeviceProfile, adapted: int) -> Linear:
    e, wide = shape.dtype_bytes, max(4, shape.dtype_bytes)
    norms = wide * (shape.norm_columns + 2)
    inputs = e * (2 * shape.hidden + shape.query)
    own_output = 0 if device.packed_attention else shape.query
    attention = e * (shape.query + own_output + 2 * shape.key) + wide * shape.heads
    # The activation's, X of down, and where two halves are multiplied, the other one.
    mlp = (shape.activation_kept + (2 if shape.gated else 1)) * e * shape.intermediate
    return Linear(token=norms + inputs + attention + mlp, token_rank=wide * adapted)


def _product(device: DeviceProfile, operations: float) -> float:
    """Seconds of operations in large matrix products."""
    return operations / (device.peak_flops * device.gemm_fraction)


def _pass(device: DeviceProfile, moved: float) -> float:
    """Seconds in which so many bytes move to or from memory."""
    return moved / (device.bandwidth * device.bandwidth_fraction)
