"""Speed, memory and kernels of cloze's training loop in several settings, in one process on one GPU.

    python benchmarks/gpu_ours.py --data TEXT --tokenizer FOLDER --json FILE

Steps of the real loop (`Trainer.run`: batches, masks, forward, backward, AdamW) on packed rows of the text,
in bf16. For the first rate, batches grow until memory ends; the fastest goes on to compiled code, the profile
and the other rates. Speed is the median of windows of steps with the GPU waited for at their ends. Each
result is written as it is made; what fails leaves its error. gpu.py runs this file in several sizes.
Operations count what the samples need: their tokens without padding, the pairs that attention shows.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from common import attempt, grow, spread, words, write_json
from limits import family_shape, operations

from cloze.models.operations import seen

KERNELS = 5  # the slowest are printed, four times as many kept


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="text, as for cloze pretrain --data")
    parser.add_argument("--heldout", help="held-out text; else parts of the text, which cuts long samples")
    parser.add_argument("--tokenizer", required=True, help="its folder")
    parser.add_argument("--family", choices=["modernbert", "bert"], default="modernbert")
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 32, 64, 96, 128], help="tried in turn")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.3, 0.15])
    parser.add_argument("--workers", type=int, default=8, help="processes that make batches")
    parser.add_argument("--steps", type=int, nargs=3, default=[8, 6, 5], help="warm-up, windows, in each")
    parser.add_argument("--profile", action="store_true", help="the kernels of three compiled steps")
    parser.add_argument("--more", action="store_true", help="Muon, and a larger batch, for compiled code too")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: to try the script")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


class Bench:
    """One model with its text, at one masking rate, ready to be trained in several settings."""

    def __init__(self, chosen: argparse.Namespace, rate: float) -> None:
        import torch
        from accelerate import Accelerator

        from cloze.assembly import assemble, open_text
        from cloze.run import resolve

        size = f"layers: {chosen.layers}, width: {chosen.width}, longest: {chosen.length}"
        sets = [
            f"data.store={Path(chosen.tokenizer).parent / 'store'}",
            f"tokenizer={{kind: load, path: {chosen.tokenizer}}}",
            f"model={{kind: new, family: {chosen.family}, {size}}}",
            f"masking={{kind: uniform, rate: {rate}}}",
            f"training.phases=[{{share: 1.0, length: {chosen.length}, rows: 1}}]",
            "training.optimizer={kind: adamw, learning_rate: 0.0001}",
            f"training.precision={'bf16' if chosen.device == 'cuda' else 'fp32'}",
            f"training.workers={chosen.workers}",
        ]
        if chosen.heldout:
            sets.append(f"data.heldout={{path: {chosen.heldout}}}")
        torch._dynamo.reset()  # what was compiled for another rate keeps its model
        gc.collect()
        self.chosen, self.rate = chosen, rate
        self.recipe, _ = resolve("mlm", chosen.data, overrides=sets)
        self.accelerator = Accelerator(cpu=chosen.device == "cpu")
        corpus = open_text(self.recipe, [], None)
        self.parts = assemble(self.recipe, corpus, self.accelerator.device)

    def facts(self) -> dict[str, Any]:
        """Sample lengths, operations per token, and the attention kernels."""
        import torch

        from cloze.models.attention import kernels_of

        rows, chosen = self.parts.loaders[0].sources[0], self.chosen
        config = self.parts.encoder.model.config
        lengths = (rows.pieces.length + rows.layout.specials).tolist()
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        reaches = [config.sliding_window if kind == "sliding_attention" else None for kind in kinds]
        visible = seen(lengths, reaches)
        vocabulary = self.parts.encoder.vocabulary.weight.shape[0]
        shape = family_shape(chosen.family, chosen.width) | {"vocabulary": vocabulary}
        dtype = torch.bfloat16 if chosen.device == "cuda" else torch.float32
        return {
            "mean_sample": sum(lengths) / len(lengths),
            "text_share": rows.tokens / rows.used,  # of the tokens; the rest are special ones
            "visible_tokens": visible,
            "operations_per_token": operations(
                chosen.layers, chosen.width, share=self.rate, length=visible, **shape
            ),
            "kernels": kernels_of(config, chosen.device, dtype, chosen.length, dense=False),
        }

    def trainer(self, rows: int, compiled: bool, optimizer: str) -> Any:
        """A trainer with such settings."""
        from cloze.training.loop import Trainer
        from cloze.training.state import State

        self.parts.method.zero_grad(set_to_none=True)  # a trial that ran out of memory left its gradients
        training = self.recipe.training
        phase = training.phases[0].model_copy(update={"rows": rows})
        choice = training.optimizer.model_copy(update={"kind": optimizer})
        changes = {"phases": (phase,), "compile": compiled, "optimizer": choice}
        settings = training.model_copy(update=changes)
        state = State(steps=100_000)
        return Trainer(self.parts.method, self.parts.loaders, settings, state, 0, self.accelerator)

    def trial(self, rows: int, compiled: bool, optimizer: str = "adamw", profiled: bool = False) -> Any:
        """Speed, memory and graphs of one setting; with `profiled` the slowest kernels too."""
        trainer = self.trainer(rows, compiled, optimizer)
        found = measure(trainer, *self.chosen.steps)
        if profiled:
            found["profile"] = attempt(lambda: profile(trainer, 3))
        return found


def measure(trainer: Any, warm: int, windows: int, each: int) -> dict[str, Any]:
    """Tokens per second (padding not counted) in windows of so many steps after the warm-up."""
    import torch
    from torch._dynamo.utils import counters

    on_gpu = torch.cuda.is_available()
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    before = counters["stats"]["unique_graphs"]
    steps = trainer.run(warm + windows * each)
    wait()
    begin = time.perf_counter()
    next(steps)
    wait()
    first = time.perf_counter() - begin
    for _ in range(warm - 1):
        next(steps)
    wait()
    warmed = counters["stats"]["unique_graphs"]
    speeds, seconds = [], []
    for _ in range(windows):
        begin = time.perf_counter()
        results = [next(steps) for _ in range(each)]
        wait()
        seconds.append((time.perf_counter() - begin) / each)
        speeds.append(sum(r.tokens for r in results) / each / seconds[-1])
    steps.close()
    return {
        "tokens_per_second": spread(speeds),
        "seconds_per_step": spread(seconds),
        "seconds_of_first_step": first,
        "graphs": warmed - before,
        "compiled_after_warm_up": counters["stats"]["unique_graphs"] - warmed,
        "graph_breaks": sum(counters["graph_break"].values()),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "loss": results[-1].loss,
    }


def profile(trainer: Any, count: int) -> dict[str, Any]:
    """The slowest kernels of so many steps, with their share of the GPU's time, and how long it had work."""
    import torch
    from torch.profiler import ProfilerActivity

    on_gpu = torch.cuda.is_available()
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    steps = trainer.run(trainer.state.step + 2 + count)
    for _ in range(2):  # the workers are under way
        next(steps)
    wait()
    activities = [ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiler:
        begin = time.perf_counter()
        for _ in steps:
            pass
        wait()
        seconds = time.perf_counter() - begin
    name = f"self_{'device' if on_gpu else 'cpu'}_time_total"
    # Marks of the program, such as that of an optimiser's step, would count their kernels twice.
    found = [e for e in profiler.key_averages() if not getattr(e, "is_user_annotation", False)]
    events = sorted(((getattr(e, name) / 1e3 / count, e.count, e.key) for e in found), reverse=True)
    total = sum(ms for ms, _, _ in events)
    kernels = [
        {"name": key[:160], "share": ms / total, "ms_per_step": ms, "calls": calls / count}
        for ms, calls, key in events[: 4 * KERNELS]
    ]
    return {"kernels": kernels, "ms_per_step": 1e3 * seconds / count, "busy": total * count / 1e3 / seconds}


def describe(found: dict[str, Any], cost: float) -> str:
    """A result in a line, and its slowest kernels below."""
    if "error" in found:
        return found["error"]
    speed, first = found["tokens_per_second"], found["seconds_of_first_step"]
    line = f"{words(speed):>32} tokens/s {speed['median'] * cost / 1e12:>7.1f} TFLOP/s "
    line += f"{found['peak_gib'] or 0:>5.1f} GiB, {found['graphs']} graphs, first step {first:.0f} s"
    slowest = found.get("profile", {}).get("kernels", [])[:KERNELS]
    return "\n".join([line, *(f"      {k['share']:>6.1%} {k['name'][:90]}" for k in slowest)])


def main() -> None:
    chosen = options()
    settings = {k: v for k, v in vars(chosen).items() if k not in ("json", "data", "heldout", "tokenizer")}
    result: dict[str, Any] = {"settings": settings, "facts": {}, "runs": {}}

    def note(name: str, cost: float, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        found = result["runs"][name] = attempt(work)
        print(f"{name:<34}{describe(found, cost)}", flush=True)
        write_json(chosen.json, result, chosen.device)
        return found

    best = chosen.rows[0]
    for rate in chosen.rates:
        best = at_rate(chosen, rate, best, result, note)


def at_rate(
    chosen: argparse.Namespace, rate: float, best: int, result: dict[str, Any], note: Callable[..., Any]
) -> int:
    """All settings at a rate; `best`: rows that the first rate found fastest. Returns them."""
    bench = Bench(chosen, rate)
    facts = result["facts"][f"{rate:.0%}"] = bench.facts()
    name, first, last = f"{rate:.0%}", rate == chosen.rates[0], rate == chosen.rates[-1]

    def run(kind: str, rows: int, *setting: Any) -> dict[str, Any]:
        work = partial(bench.trial, rows, *setting)
        return note(f"{name}, {kind.replace('ROWS', f'{rows} rows')}", facts["operations_per_token"], work)

    best = grow(chosen.rows if first else [best], lambda rows: run("eager, ROWS", rows, False))[0] or best
    run("compiled, ROWS", best, True, "adamw", chosen.profile and first)
    if chosen.more and first:
        run("compiled, ROWS, muon", best, True, "muon")
    larger = [rows for rows in chosen.rows if rows > best][:1]
    for rows in larger if chosen.more and last else []:  # compiled code needs less memory
        run("compiled, ROWS", rows, True)
    return best


if __name__ == "__main__":
    main()
