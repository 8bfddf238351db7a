"""Peak memory of a step against rows, length and vocabulary: predicted places only, and logits of all tokens.

    python benchmarks/memory.py --json FILE --plot FILE.png

Forward and backward of a new ModernBERT in bf16 on packed rows of random tokens (samples of 16 to 512
tokens, 30% predicted), with our attention in both arms, so that only the head differs: `ours` goes through
it with the predicted places and keeps no logits; `all logits` makes them for every token, and their cross
entropy, as the models of transformers do. Not compiled. The peak has weights and gradients in it, not the
optimiser's state (8 bytes a weight). What does not fit is kept as an error. On a CPU the peak is that of the
process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from common import attempt, write_json

RATE = 0.3
ARMS = {"ours": "model", "all logits": "base"}  # arm: its colour


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: to try the script")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="a .png")
    parser.add_argument("--table", action="store_true", help="only draw what --json holds")
    return parser.parse_args()


def axes_of(device: str) -> dict[str, list[tuple[int, int, int]]]:
    """The points (rows, length, vocabulary) of each plot."""
    if device == "cpu":
        return {
            "rows": [(2, 64, 1000), (4, 64, 1000)],
            "length": [(4, 64, 1000), (2, 128, 1000)],
            "vocabulary": [(2, 64, 1000), (2, 64, 4000)],
        }
    return {
        "vocabulary": [(16, 1024, v) for v in (8_192, 30_528, 50_368, 131_072, 262_144)],
        "rows": [(rows, 1024, 50_368) for rows in (4, 8, 16, 32, 48, 64)],
        "length": [(16_384 // length, length, 50_368) for length in (128, 512, 1024, 4096, 8192)],
    }


def make_encoder(chosen: argparse.Namespace, vocabulary: int) -> Any:
    """A new encoder on the device; random weights will do."""
    import torch
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    from cloze.models.encoder import Encoder

    config = ModernBertConfig(
        vocab_size=vocabulary, hidden_size=chosen.width, intermediate_size=3 * chosen.width // 2,
        num_hidden_layers=chosen.layers, num_attention_heads=max(1, chosen.width // 64), pad_token_id=0,
        bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    with torch.device(chosen.device):
        model = ModernBertForMaskedLM(config)
    return Encoder(model).train()


def packed(rows: int, length: int, vocabulary: int, device: str) -> Any:
    """A view of full rows of random tokens in samples of 16 to 512."""
    import torch

    from cloze.corruption.view import View
    from cloze.data.batch import positions

    draw = torch.Generator().manual_seed(0)
    sizes = torch.randint(16, 513, (rows, length // 16), generator=draw)
    place = torch.arange(length).expand(rows, length).contiguous()
    number = torch.searchsorted(sizes.cumsum(1), place, right=True)
    segments = (number + torch.arange(rows)[:, None] * length).to(device)
    ids = torch.randint(3, vocabulary, (rows, length), generator=draw).to(device)
    origin = torch.arange(rows * length, device=device).view(rows, length)
    runs = int((number[:, 1:] != number[:, :-1]).sum()) + rows
    return View(ids, segments, positions(segments), origin, runs=runs)


def step(encoder: Any, view: Any, arm: str) -> None:
    """Forward and backward, gradients made anew."""
    import torch
    from torch.nn.functional import cross_entropy, linear

    from cloze.models.encoder import sparse
    from cloze.models.vocabulary_loss import vocabulary_loss

    encoder.zero_grad(set_to_none=True)
    device, labels = view.ids.device, view.ids.flatten()
    places = torch.arange(labels.numel(), device=device)
    layer = encoder.vocabulary
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"), sparse(encoder):
        if arm == "ours":
            places = places[: round(RATE * labels.numel())]
            features = encoder(view, places).features
            loss = vocabulary_loss(features, layer.weight, layer.bias, labels[places]).total
        else:
            logits = linear(encoder(view, places).features, layer.weight, layer.bias)
            loss = cross_entropy(logits.float(), labels, reduction="sum")
    (loss / labels.numel()).backward()


def peak_of(work: Callable[[], None], device: str) -> float:
    """GiB at the peak of the second of two calls."""
    import torch

    work()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() / 2**30
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak until now
    work()
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20


def draw(result: dict[str, Any], file: Path) -> None:
    """A panel for each axis, a line for each arm; what did not fit is missing."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    from cloze.report.plots import PALETTE, finish

    figure = Figure(figsize=(9.0, 3.0), layout="constrained", facecolor=PALETTE["page"], dpi=160)
    panels = figure.subplots(1, len(result["axes"]), sharey=True)
    for panel, (axis, points) in zip(panels, result["axes"].items(), strict=True):
        for arm, colour in ARMS.items():
            known = [(p[axis], p[arm]["peak_gib"]) for p in points if "peak_gib" in p[arm]]
            across, up = zip(*known, strict=True) if known else ((), ())
            panel.plot(across, up, color=PALETTE[colour], linewidth=1.6, marker="o", markersize=3, label=arm)
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        fixed = {
            k: points[0][k] for k in ("rows", "length", "vocabulary") if len({p[k] for p in points}) == 1
        }
        said = ", ".join(f"{k} {v:,}" for k, v in fixed.items())
        finish(panel, f"{axis}\n({said}{', rows × length the same' if axis == 'length' else ''})")
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("peak memory (GiB)", fontsize=8, color=PALETTE["soft"])
    panels[0].legend(fontsize=8, labelcolor=PALETTE["soft"], frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, format="png")


def main() -> None:
    chosen = options()
    if chosen.table:
        import json

        return draw(json.loads(chosen.json.read_text("utf-8")), chosen.plot)
    settings = {"layers": chosen.layers, "width": chosen.width, "rate": RATE}
    result: dict[str, Any] = {"settings": settings, "axes": {}}
    for axis, wanted in axes_of(chosen.device).items():
        points = result["axes"][axis] = []
        encoder: Any = None
        for rows, length, vocabulary in wanted:
            if encoder is None or encoder.vocabulary.weight.shape[0] != vocabulary:
                encoder = None  # before the next one is made
                encoder = make_encoder(chosen, vocabulary)
            view = packed(rows, length, vocabulary, chosen.device)
            point: dict[str, Any] = {"rows": rows, "length": length, "vocabulary": vocabulary}
            for arm in ARMS:
                work = partial(step, encoder, view, arm)
                point[arm] = attempt(lambda work=work: {"peak_gib": peak_of(work, chosen.device)})
                encoder.zero_grad(set_to_none=True)
            points.append(point)
            write_json(chosen.json, result, chosen.device)
            said = "; ".join(f"{arm} {point[arm].get('peak_gib', 'too much')}" for arm in ARMS)
            print(f"{rows} rows x {length}, vocabulary {vocabulary:,}: {said}", flush=True)
    if chosen.plot:
        draw(result, chosen.plot)


if __name__ == "__main__":
    main()
