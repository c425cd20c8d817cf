"""A process that compiles kernels for GPUs that need not be here; see aot.py.

Reads one request a line from stdin, as JSON, and writes one answer a line to stdout.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import time
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lorafusion.kernels.aot import DTYPES, TARGETS, Target
from lorafusion.kernels.launch_configs import KernelExample, LaunchConfig, examples

# Matrix instructions, as the assembly of either vendor writes them.
PRODUCTS = {
    "wgmma": r"\bwgmma\.mma_async",
    "tcgen05": r"\btcgen05\.mma",
    "mma.sync": r"\bmma\.sync",
    "mfma": r"\bv_mfma_",
}
TF32 = r"\b(?:wgmma\.mma_async|tcgen05\.mma|mma\.sync)\S*tf32|\bv_mfma_\w*xf32"
# Rows, words, segments, tiles: whatever the data bring, where widths are multiples of 16.
RAGGED = ("T", "V", "G", "n_tiles", "n_blocks", "n_entries")


def main() -> None:
    """Answer until stdin ends."""
    # What compilers print must not get among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        json.dump(answer(json.loads(line)), answers)
        answers.write("\n")
        answers.flush()


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """The reports of a request's kernels, or an error."""
    config = LaunchConfig(**asked["config"])
    target = TARGETS[asked["target"]]
    try:
        kernels = examples(
            asked["op"],
            config,
            rank=asked["chunk"],
            dtype=DTYPES[asked["dtype"]],
            dropout=asked["dropout"],
        )
        reports = [compile_kernel(kernel, target) for kernel in kernels]
    except Exception as error:  # whatever a compiler raises is an answer
        return {"error": f"{type(error).__name__}: {error}"[:600]}
    return {"reports": [{"main": i == 0, **report} for i, report in enumerate(reports)]}


def compile_kernel(example: KernelExample, target: Target) -> dict[str, Any]:
    """Compile one kernel, and read from its assembly and the assembler's log what it uses."""
    function = example.kernel
    names: list[str] = function.arg_names
    signature = {name: example.signature.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in example.constants.items()}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name] != "constexpr" and name not in RAGGED
    }
    source = ASTSource(function, signature, constants, aligned)
    options = {"num_warps": example.warps, "num_stages": example.stages}
    gpu = GPUTarget(target.backend, target.arch, target.warp)
    log, started = io.StringIO(), time.perf_counter()
    with contextlib.redirect_stdout(log), knobs.nvidia.scope():
        knobs.nvidia.dump_ptxas_log = True
        compiled = triton.compile(source, target=gpu, options=options)
    report = {"kernel": function.__name__, "seconds": time.perf_counter() - started}
    read = _read_cuda if target.backend == "cuda" else _read_hip
    return report | read(compiled, log.getvalue())


def _read_cuda(compiled: Any, log: str) -> dict[str, Any]:
    return {
        "registers": _number(r"Used (\d+) registers", log),
        "spilled": _number(r"(\d+) bytes spill stores", log)
        + _number(r"(\d+) bytes spill loads", log),
        "shared": compiled.metadata.shared,
        "tensor_memory": getattr(compiled.metadata, "tmem_size", None) or 0,
        **_instructions(compiled.asm["ptx"]),
    }


def _read_hip(compiled: Any, _: str) -> dict[str, Any]:
    assembly = compiled.asm["amdgcn"]
    return {
        # AGPRs are in this count, as they come from the same file of registers.
        "registers": _number(r"\.vgpr_count:\s+(\d+)", assembly),
        "spilled": _number(r"\.private_segment_fixed_size:\s+(\d+)", assembly),
        "shared": max(
            compiled.metadata.shared, _number(r"\.group_segment_fixed_size:\s+(\d+)", assembly)
        ),
        "tensor_memory": 0,
        **_instructions(assembly),
    }


def _instructions(assembly: str) -> dict[str, Any]:
    found = {name: len(re.findall(pattern, assembly)) for name, pattern in PRODUCTS.items()}
    return {
        "products": {name: count for name, count in found.items() if count},
        "tf32": len(re.findall(TF32, assembly)),
    }


def _number(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    if not found:
        raise ValueError(f"the compiler's output has no {pattern!r}")
    return int(found[-1])


if __name__ == "__main__":
    main()
