"""What a masking policy costs: whole training steps with it and with uniform masking, in turn.

    python benchmarks/masking_cost.py --size small --json benchmarks/results/masking_cost.json

Random tokens, rows of 128, ModernBERT, in one process; the proposal is let in from the start, so that it
plans, weights and learns at every step. Prints medians of the paired ratios, and their range: of whole
steps, and of the policy's own part (planning and learning) beyond uniform masking's, which is less noisy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import ModernBertConfig, ModernBertForMaskedLM

from cloze.corruption.replace import Vocabulary
from cloze.data.batch import Batch
from cloze.masking import POLICIES
from cloze.methods.base import Method
from cloze.methods.build import Choices, build_method
from cloze.models.build import SIZES
from cloze.models.encoder import isolate
from cloze.report.environment import environment
from cloze.training.optimisers import OptimizerChoice, build_optimizers

ARMS = {
    "uniform": {},
    "fully_explored": {},
    "balanced": {},
    "mapnet": {"power": 1.0},
    "mapnet, half predicted": {"power": 1.0, "predict": 0.5},
    "stratified": {},
    "stratified, by score": {"order": "score"},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="small", choices=list(SIZES))
    parser.add_argument("--rate", type=float, default=0.15)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = Accelerator().device
    vocabulary = Vocabulary(arguments.vocabulary, 4, torch.arange(5, arguments.vocabulary))
    layers, width = SIZES[arguments.size]
    steps = {}
    for name, settings in ARMS.items():
        torch.manual_seed(0)
        config = ModernBertConfig(
            vocab_size=arguments.vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            intermediate_size=width * 3 // 2,
            **dict.fromkeys(
                ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0
            ),
        )
        encoder = isolate(ModernBertForMaskedLM(config))
        masking = POLICIES[name.split(",")[0]](rate=arguments.rate, **settings)
        method = build_method(Choices(masking), encoder, vocabulary).to(device)
        steps[name] = Step(method, arguments.rows, arguments.vocabulary, device)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ARMS}
    for round_ in range(arguments.rounds + 2):
        for name, step in steps.items():
            measured = step(round_)
            if round_ >= 2:
                times[name].append(measured)
    found = {}
    print(f"{'':<24}{'step':>9}  {'to uniform':<24}planning and learning, to a uniform step")
    for name in ARMS:
        pairs = list(zip(times[name], times["uniform"], strict=True))
        whole = [a[0] / b[0] for a, b in pairs]
        part = [(a[1] - b[1]) / b[0] for a, b in pairs]
        found[name] = {"step": _spread(whole), "planning_and_learning": _spread(part)}
        seconds = statistics.median(t[0] for t in times[name])
        print(f"{name:<24}{seconds:7.3f} s  {_words(whole):<24}{_words(part)}")
    if arguments.json:
        settings = {k: v for k, v in vars(arguments).items() if k != "json"}
        content = {"settings": settings, "to_uniform": found, "seconds": times}
        arguments.json.write_text(json.dumps(content | environment(device, "fp32"), indent=1) + "\n")


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def _words(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


class Step:
    """A training step on random rows, timed."""

    def __init__(self, method: Method, rows: int, vocabulary: int, device: torch.device):
        self.method, self.device = method.train(), device
        self.optimizers = build_optimizers(method, OptimizerChoice(kind="muon"))
        place = torch.arange(128).expand(rows, 128).clone()
        ids = torch.randint(5, vocabulary, (rows, 128), generator=torch.Generator().manual_seed(0))
        sample = torch.arange(rows)[:, None].expand(rows, 128).clone()
        everywhere = torch.ones((rows, 128), dtype=torch.bool)
        keys = torch.arange(rows)
        self.batch = Batch(ids, sample, place, place, everywhere, keys, torch.zeros_like(keys), dense=True)

    def __call__(self, visit: int) -> tuple[float, float]:
        self._wait()
        start = time.perf_counter()
        method = self.method
        batch = replace(self.batch, visits=torch.full_like(self.batch.visits, visit)).to(self.device)
        work = method.prepare(batch, 0.5)
        self._wait()
        planned = time.perf_counter()
        outcome = method(work)
        (outcome.sums["mlm"] / method.weights(work)["mlm"]).backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self._wait()
        updated = time.perf_counter()
        method.observe([work], [outcome.feedback])
        self._wait()
        end = time.perf_counter()
        return end - start, planned - start + end - updated

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()
