"""The CPU kernels that cloze chooses between, one beside the other.

    python benchmarks/cpu_kernels.py --json benchmarks/results/cpu_kernels.json

Attention forward and backward in packed rows: `scaled_dot_product_attention` with a mask against two plain
products, in float32 as PyTorch multiplies (`default`) and as cloze lets it (`quick`, training/precision.py),
and in bf16. A linear layer forward and backward in the same three ways. The two ways take turns; medians of
the milliseconds, and of their ratios within turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import paired, spread, words, write_json
from torch import Tensor

from cloze.models.attention import matmul_attention
from cloze.models.visibility import Visibility
from cloze.training.precision import quick_products

WAYS = {
    "float32, default": (torch.float32, nullcontext),
    "float32, quick": (torch.float32, quick_products),
    "bf16": (torch.bfloat16, nullcontext),
}


def milliseconds(work: Callable[[], Any], calls: int) -> float:
    """Median of a few calls."""
    times = []
    for _ in range(calls):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)


def attentions(tokens: int, length: int, dtype: torch.dtype) -> dict[str, Callable[[], None]]:
    """Forward and backward of the two kernels on `tokens` tokens in rows of two or three samples."""
    rows, heads, width = tokens // length, 4, 64
    shape = (rows, heads, length, width)
    inputs = [torch.randn(shape).to(dtype).requires_grad_() for _ in range(3)]
    pull = torch.randn(shape).to(dtype)
    place = torch.arange(length)[None]
    segments = (place > length * torch.rand(rows, 1)).long() + (place > length * torch.rand(rows, 1)).long()
    mask = Visibility(segments).mask(None)
    assert mask is not None

    def run(kernel: Callable[..., Tensor]) -> None:
        torch.autograd.grad(kernel(*inputs), inputs, pull)

    fused = partial(F.scaled_dot_product_attention, attn_mask=mask)
    plain = partial(matmul_attention, mask=mask, dropout=0.0, scale=width**-0.5)
    return {"fused": partial(run, fused), "matmul": partial(run, plain)}


def linear(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> Callable[[], None]:
    """Forward and backward of a linear layer."""
    x, weight = (torch.randn(s).to(dtype).requires_grad_() for s in ((rows, inputs), (outputs, inputs)))
    pull = torch.randn(rows, outputs).to(dtype)
    return lambda: torch.autograd.grad(F.linear(x, weight), (x, weight), pull) and None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=4096, help="of a step")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 1024])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    result: dict[str, Any] = {"attention": {}, "linear": {}}
    print(f"{'attention':<34}{'fused ms':>10}{'matmul ms':>11}{'fused / matmul':>22}")
    for length in chosen.lengths:
        for way, (dtype, context) in WAYS.items():
            with context():
                works = attentions(chosen.tokens, length, dtype)
                turns = [{k: milliseconds(w, 3) for k, w in works.items()} for _ in range(chosen.turns)]
            times = {k: [turn[k] for turn in turns[1:]] for k in works}
            ratio = paired(times["fused"], times["matmul"])
            result["attention"][f"{length}, {way}"] = {k: spread(t) for k, t in times.items()} | {
                "ratio": ratio
            }
            medians = [statistics.median(t) for t in times.values()]
            print(f"{f'{length}, {way}':<34}{medians[0]:>10.1f}{medians[1]:>11.1f}{words(ratio, '.2f'):>22}")
    print(f"{'linear layer':<22}" + "".join(f"{way:>18}" for way in WAYS))
    for shape in ((chosen.tokens, 256, 768), (chosen.tokens * 15 // 100, 256, 30_528)):
        works = {way: linear(*shape, dtype) for way, (dtype, _) in WAYS.items()}
        turns = []
        for _ in range(chosen.turns):
            turn = {}
            for way, (_, context) in WAYS.items():
                with context():
                    turn[way] = milliseconds(works[way], 3)
            turns.append(turn)
        times = {way: spread([turn[way] for turn in turns[1:]]) for way in WAYS}
        name = " x ".join(map(str, shape))
        result["linear"][name] = times
        print(f"{name:<22}" + "".join(f"{times[way]['median']:>15.1f} ms" for way in WAYS))
    write_json(chosen.json, result | {"threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
