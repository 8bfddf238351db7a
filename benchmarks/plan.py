"""What a budget of tokens takes on so many GPUs: pure arithmetic, nothing is run.

    python benchmarks/plan.py --tokens 100e9 --gpus 8 64 512

Prints the tables of docs/plan-100B.md. Every formula is a function below; what no one has measured here is an
option with a default, and the tables say so: peak and utilisation of a GPU, speed of disks and networks, and
the noise scale of a large model.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cloze.models.operations import operations, seen

DAY = 24.0
GB = 1e9


@dataclass(frozen=True, slots=True)
class Shape:
    """An encoder of gated layers (ModernBERT), `inner` wide inside; every third sees the whole sample."""

    layers: int
    width: int
    inner: int
    vocabulary: int = 50_368
    reach: int = 64  # tokens that a local layer sees on each side

    @property
    def body(self) -> int:
        """Parameters that work on every token: 4·width² of attention and 3·width·inner of the gated units."""
        return self.layers * (4 * self.width**2 + 3 * self.width * self.inner)

    @property
    def head(self) -> int:
        """Parameters that work on every predicted token: width² and the tied vocabulary."""
        return self.width**2 + self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """All: the vocabulary is read and predicted with one matrix."""
        return self.body + self.head

    def operations(self, length: int, rate: float) -> float:
        """Of training, for one token: 6·(body + head·rate + 2·width·tokens seen, summed over the layers)."""
        reaches = [None if layer % 3 == 0 else self.reach for layer in range(self.layers)]
        attended = seen([length], reaches) * self.layers * self.width
        return operations(self.body, self.head, 1.0, rate, attended)


MODELS = {
    "base": Shape(22, 768, 1152),
    "large": Shape(28, 1024, 2624),
    "1B": Shape(40, 1536, 3072),
}


def hours(tokens: float, each: float, gpus: int, peak: float, utilisation: float) -> float:
    """tokens · operations of a token / (GPUs · peak · utilisation); `peak` in operations a second."""
    return tokens * each / (gpus * peak * utilisation) / 3600


def store_bytes(tokens: float, vocabulary: int) -> float:
    """2 bytes a token, 4 where the vocabulary has more than 65,536 entries, and 1 byte of flags."""
    return tokens * ((2 if vocabulary <= 65_536 else 4) + 1)


def memory(parameters: float, shards: int, layers: int, width: int, tokens: int, kept: bool = True) -> float:
    """Bytes on a GPU: 16 a parameter over the shards, 2 for its bf16 copy, and what is kept for backward.

    16 = weight, gradient and AdamW's two moments in float32. Kept: 34·width bytes a token and layer without
    the attention matrix (2205.05198, §4.1), or, when layers are run again (`kept` False), only 2·width a
    layer and one layer whole.
    """
    rest = 34 * width * layers if kept else 2 * width * layers + 34 * width
    return parameters * 16 / shards + parameters * 2 + rest * tokens


def checkpoint_bytes(parameters: float) -> tuple[float, float]:
    """Bytes that stay, and bytes that one save writes.

    A checkpoint has weights and two moments (12 a parameter) and is a model folder too (4); a save also
    writes the newest model (4).
    """
    return parameters * 16, parameters * 20


def exchange(parameters: float, gpus: int, network: float) -> float:
    """Seconds in which float32 gradients go round a ring: 4·parameters·2·(n − 1)/n / network."""
    return 4 * parameters * 2 * (gpus - 1) / gpus / network


def wasted(batch: float, noise: float) -> float:
    """Additional tokens that a batch costs, as a share: batch / noise scale (1812.06162, §2)."""
    return batch / noise


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float, digits: int = 2) -> str:
    """So many significant digits, no exponent."""
    if value == 0 or value >= 10**digits:
        return f"{value:,.0f}"
    places = digits - 1
    while places < 6 and value < 10 ** (digits - 1 - places):
        places += 1
    text = f"{value:.{max(0, places)}f}"
    return text if value < 1 else f"{value:.{max(0, digits - len(str(int(value))))}f}"


def span(values: Sequence[float]) -> str:
    """From the smallest to the largest."""
    return f"{number(min(values))}–{number(max(values))}"


def tables(a: argparse.Namespace) -> dict[str, str]:
    """{title: Markdown}."""
    models = {name: MODELS[name] for name in a.models}
    each = {name: shape.operations(a.length, a.rate) for name, shape in models.items()}
    took = {
        (name, gpus): [hours(a.tokens, each[name], gpus, a.peak * 1e12, u) for u in a.utilisation]
        for name in models
        for gpus in a.gpus
    }
    uses = " and ".join(f"{u:.0%}" for u in a.utilisation)
    found = {}
    found["Models"] = table(
        ["model", "layers × width, inside", "parameters", "GFLOP a token", "run, EFLOP"],
        [
            [
                name,
                f"{s.layers} × {s.width:,}, {s.inner:,}",
                f"{s.parameters / 1e6:,.0f} M",
                number(each[name] / 1e9),
                number(each[name] * a.tokens / 1e18),
            ]
            for name, s in models.items()
        ],
    )
    found[f"Hours, at {uses} of {a.peak:,.0f} TFLOP/s (assumed)"] = table(
        ["model", *(f"{n} GPUs" for n in a.gpus)],
        [[name, *(span(took[name, n]) for n in a.gpus)] for name in models],
    )
    found["Tokens a second that must be read, in millions (MB/s at 3 bytes; cores that build batches)"] = (
        table(
            ["model", *(f"{n} GPUs" for n in a.gpus)],
            [[name, *(_reading(a, took[name, n]) for n in a.gpus)] for name in models],
        )
    )
    found[f"GB on a GPU, {a.micro:,} tokens in a forward pass"] = table(
        ["model", "DDP", "DDP, layers run again", *(f"sharded over {n}" for n in a.gpus)],
        [
            [
                name,
                *(number(memory(s.parameters, 1, s.layers, s.width, a.micro, k) / GB) for k in (True, False)),
                *(number(memory(s.parameters, n, s.layers, s.width, a.micro) / GB) for n in a.gpus),
            ]
            for name, s in models.items()
        ],
    )
    found["A checkpoint"] = table(
        ["model", "GB", *(f"seconds at {d:g} GB/s" for d in a.disk), "steps' time between, for 1% at most"],
        [[name, *_saving(a, s)] for name, s in models.items()],
    )
    found[f"Milliseconds of a step of {a.micro:,} tokens a GPU: computing; sums at {a.network:g} GB/s"] = (
        table(
            ["model", *(f"{n} GPUs" for n in a.gpus)],
            [[name, *(_step(a, each[name], s, n) for n in a.gpus)] for name, s in models.items()],
        )
    )
    found["Additional tokens for the same loss, by the noise scale"] = table(
        ["smallest batch", *(f"noise scale {_tokens(n)} tokens" for n in a.noise)],
        [
            [
                f"{n} GPUs: {_tokens(n * a.micro)} tokens",
                *(f"{wasted(n * a.micro, noise):.0%}" for noise in a.noise),
            ]
            for n in a.gpus
        ],
    )
    size = store_bytes(a.tokens, 50_368) / GB
    wide = store_bytes(a.tokens, 2**17) / GB
    core_hours = a.tokens * a.characters / a.prepare / 3600
    found["The store"] = table(
        ["", "value"],
        [
            ["GB, vocabulary up to 65,536 (2 bytes a token and 1 of flags)", number(size, 3)],
            ["GB, a larger vocabulary (4 and 1)", number(wide, 3)],
            *([f"hours to read it once at {d:g} GB/s", number(size / d / 3600)] for d in a.disk),
            [
                f"core-hours to tokenise {a.tokens * a.characters / 1e12:.2g}·10¹² characters",
                number(core_hours, 3),
            ],
        ],
    )
    return found


def _reading(a: argparse.Namespace, took: Sequence[float]) -> str:
    rates = [a.tokens / h / 3600 for h in took]
    fast = max(rates)
    return f"{span([r / 1e6 for r in rates])} ({number(3 * fast / 1e6)}; {number(fast / a.loader)})"


def _saving(a: argparse.Namespace, shape: Shape) -> list[str]:
    stays, writes = checkpoint_bytes(shape.parameters)
    seconds = [writes / GB / d for d in a.disk]
    return [number(stays / GB), *(number(s) for s in seconds), f"{max(seconds) * 100 / 60:,.0f} min"]


def _step(a: argparse.Namespace, each: float, shape: Shape, gpus: int) -> str:
    computing = [a.micro * each / (a.peak * 1e12 * u) * 1000 for u in a.utilisation]
    return f"{span(computing)}; {number(1000 * exchange(shape.parameters, gpus, a.network * GB))}"


def _tokens(count: float) -> str:
    return f"{count / 1e6:,.2g} M" if count >= 1e6 else f"{count / 1e3:,.0f} k"


def options() -> argparse.ArgumentParser:
    """The inputs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tokens", type=float, default=100e9, help="of the run")
    add("--gpus", type=int, nargs="+", default=[8, 64, 512])
    add("--models", nargs="+", choices=MODELS, default=list(MODELS))
    add("--length", type=int, default=1024, help="tokens of a sample")
    add("--rate", type=float, default=0.3, help="share of the tokens that is predicted")
    add(
        "--peak", type=float, default=989.0, help="TFLOP/s of a GPU in bf16 (H100 SXM, dense, its data sheet)"
    )
    add("--utilisation", type=float, nargs="+", default=[0.2, 0.4], help="assumed: no GPU was at hand")
    add("--micro", type=int, default=16_384, help="tokens in a forward pass of a GPU")
    add("--noise", type=float, nargs="+", default=[52_000, 500_000, 4_000_000], help="noise scales, tokens")
    add("--disk", type=float, nargs="+", default=[0.5, 2.0], help="GB/s, assumed")
    add("--network", type=float, default=50.0, help="GB/s of a GPU to others (400 Gbit/s), assumed")
    add(
        "--loader",
        type=float,
        default=4.7e6,
        help="tokens a second that one core batches (measured)",
    )
    add(
        "--prepare", type=float, default=2.25e6, help="characters a second that one core tokenises (measured)"
    )
    add("--characters", type=float, default=4.0, help="of a token")
    return parser


def main() -> None:
    """Entry point."""
    for title, content in tables(options().parse_args()).items():
        print(f"### {title}\n\n{content}\n")


if __name__ == "__main__":
    main()
