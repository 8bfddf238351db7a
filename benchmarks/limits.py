"""What this machine can do at most, and how many operations a token of training needs.

    python benchmarks/limits.py --json FILE

Measures matrix products (fp32; bf16 with --device cuda) at the shapes of a model's training step (every
product forward, and its two backward), large square ones, and the copying of memory; counts the operations
of a step. Medians. `at_best` is the fastest of all these products. `default`: as PyTorch multiplies; `quick`:
as cloze lets it on CPUs where that is faster (training/precision.py), elsewhere the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cloze.models.operations import operations as counted

SQUARES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192, 16384)}
AT_ONCE = {"cpu": 1, "cuda": 10}  # calls between two looks at the clock: a GPU is waited for at each
COPY_BYTES = 256 * 2**20


def operations(
    layers: int,
    width: int,
    intermediate: int,
    vocabulary: int,
    share: float,
    length: float,
    gated: bool = False,
) -> float:
    """Floating-point operations of training per token: forward and backward of all matrix products.

    A multiplication and an addition are two; backward is twice forward. `share` of the tokens goes through
    the head (a dense layer and the vocabulary); the stock path has 1. `gated`: the feed-forward layer has
    three matrices (ModernBERT) and not two (BERT). Attention counts every pair of tokens in a row of
    `length`; for packed samples and windows `length` is what a token sees, in the mean
    (`cloze.models.operations.seen`).
    """
    matrices = 4 * width**2 + (3 if gated else 2) * width * intermediate
    head = width**2 + width * vocabulary
    return counted(layers * matrices, head, 1.0, share, layers * length * width)


def family_shape(family: str, width: int) -> dict[str, Any]:
    """Width of the feed-forward layer and whether it is gated, as cloze builds a family."""
    if family == "modernbert":
        return {"intermediate": 3 * width // 2, "gated": True}
    return {"intermediate": 4 * width, "gated": False}


def products(
    layers: int, width: int, intermediate: int, vocabulary: int, share: float, tokens: int, gated: bool
) -> list[tuple[int, int, int, int]]:
    """(how many, rows, inputs, outputs) of each linear layer of a step of so many tokens."""
    predicted = round(share * tokens)
    return [
        (layers, tokens, width, 3 * width),
        (layers, tokens, width, width),
        (layers, tokens, width, (2 if gated else 1) * intermediate),
        (layers, tokens, intermediate, width),
        (1, predicted, width, width),
        (1, predicted, width, vocabulary),
    ]


def seconds(work: Callable[[], Any], least: float, device: str = "cpu") -> float:
    """Median seconds of a call, over at least 5 looks at the clock and `least` seconds."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    work()
    wait()
    times: list[float] = []
    while len(times) < 5 or sum(times) < least:
        begin = time.perf_counter()
        for _ in range(AT_ONCE[device]):
            work()
        wait()
        times.append(time.perf_counter() - begin)
    return statistics.median(times) / AT_ONCE[device]


def linear_seconds(rows: int, inputs: int, outputs: int, least: float, device: str = "cpu") -> float:
    """A linear layer forward, and its gradients for input and weight."""
    x, weight, grad = (draw(*s, device) for s in ((rows, inputs), (outputs, inputs), (rows, outputs)))
    return (
        seconds(lambda: x @ weight.T, least, device)
        + seconds(lambda: grad @ weight, least, device)
        + seconds(lambda: grad.T @ x, least, device)
    )


def draw(rows: int, columns: int, device: str) -> Any:
    """A random matrix in the precision of the device."""
    import torch

    return torch.randn(rows, columns, device=device, dtype=torch.bfloat16 if device == "cuda" else None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=["modernbert", "bert"], default="modernbert")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=30_522)
    parser.add_argument("--share", type=float, default=0.15, help="of the tokens that is predicted")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each product")
    parser.add_argument("--device", choices=list(SQUARES), default="cpu")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    import torch

    from cloze.training.precision import quick_products

    shape = family_shape(chosen.family, chosen.width)
    size = {"layers": chosen.layers, "width": chosen.width, "vocabulary": chosen.vocabulary, **shape}
    needed = operations(**size, share=chosen.share, length=chosen.length)
    shapes = products(**size, share=chosen.share, tokens=chosen.rows * chosen.length)
    print(f"{'operations per token':<36}{needed / 1e6:>10.2f} MFLOP")
    result: dict[str, Any] = {"operations_per_token": needed}
    device, least = chosen.device, chosen.seconds
    result["default"] = result["quick"] = gflops(shapes, least, device)
    if device == "cpu":
        with quick_products():
            result["quick"] = gflops(shapes, least)
    source, target = (torch.ones(COPY_BYTES // 4, device=device) for _ in range(2))
    result["copy_gb_per_second"] = (
        2.0 * COPY_BYTES / seconds(lambda: target.copy_(source), least, device) / 1e9
    )
    result["threads"] = torch.get_num_threads()
    print(f"{'GFLOP/s':<36}{'default':>10}{'quick':>10}")
    for kind in ("linear_layers", "squares"):
        for name, value in result["default"][kind].items():
            print(f"{name:<36}{value:>10.0f}{result['quick'][kind][name]:>10.0f}")
    for kind in ("at_shapes", "at_best"):
        print(f"{kind:<36}{result['default'][kind]:>10.0f}{result['quick'][kind]:>10.0f}")
    print(f"{'copy, read and written':<36}{result['copy_gb_per_second']:>10.1f} GB/s")
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def gflops(shapes: list[tuple[int, int, int, int]], least: float, device: str = "cpu") -> dict[str, Any]:
    """GFLOP/s of each linear layer of a step (`products`), of all of them, and of large squares."""
    whole_flop, whole_seconds, each = 0.0, 0.0, {}
    for count, rows, inputs, outputs in shapes:
        took = linear_seconds(rows, inputs, outputs, least / 3, device)
        flop = 6.0 * rows * inputs * outputs
        each[f"{rows} x {inputs} x {outputs}"] = flop / took / 1e9
        whole_flop, whole_seconds = whole_flop + count * flop, whole_seconds + count * took
    squares = {}
    for n in SQUARES[device]:
        a, b = draw(n, n, device), draw(n, n, device)
        took = seconds(lambda a=a, b=b: a @ b, least, device)  # type: ignore[misc]
        squares[f"square of {n}"] = 2.0 * n**3 / took / 1e9
    return {
        "at_shapes": whole_flop / whole_seconds / 1e9,
        "at_best": max(*squares.values(), *each.values()),
        "linear_layers": each,
        "squares": squares,
    }


if __name__ == "__main__":
    main()
