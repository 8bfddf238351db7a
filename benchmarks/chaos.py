"""kill -9 at random moments of a run: does --resume give, bit for bit, the run that was not interrupted?

    python benchmarks/chaos.py --kills 40 --seed 0

Each kill takes the next of CASES (every policy and method with state of its own), a stage, one of the stage's
calls and a moment within it, all drawn from --seed: while text is prepared, in a step, inside a checkpoint,
inside an export, in an evaluation, or anywhere in the process's life. After it, nothing half-written may pass
for whole: every checkpoint that a resume would take has the digests it was written with, and summary.json,
recipe.yaml and model/ can be read if they are there. Then the run goes on with --resume, is killed again with
a chance of a third, and in the end its model and its training state must equal those of the same run without
a kill, byte for byte. Each case has its text tokenised anew, so that preparing is killed as well.

The last line is "N of N bit-equal", the exit code 0 only then.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

STEPS = 12
STAGES = ("prepare", "step", "checkpoint", "export", "evaluate", "any")
SMALL = (
    "model.layers=2",
    "model.width=64",
    "tokenizer.vocabulary=512",
    "training.phases=[{share: 1.0, length: 64, rows: 8}]",
    "training.checkpoint_every=3",
    "training.precision=fp32",
    "data.heldout.minimum=2000",
    "evaluation.length=64",
    "evaluation.tokens=1024",
    "evaluation.times=3",
)
CASES = {
    "mlm, Muon": ("mlm",),
    "AdamW, two phases, dropout": (
        "mlm",
        "training.optimizer.kind=adamw",
        "model.dropout=0.1",
        "training.phases=[{share: 0.5, length: 32, rows: 8}, {share: 0.5, length: 64, rows: 8}]",
    ),
    "two workers, micro-batches": ("mlm", "training.workers=2", "training.micro_tokens=128"),
    "fully-explored, two copies": ("fully-explored", "masking.same_step=2"),
    "balanced": ("balanced",),
    "stratified": ("mlm", "masking.kind=stratified"),
    "mapnet": ("mapnet",),
    "difficulty": ("mlm", "masking.kind=difficulty"),
    "frequency": ("mlm", "masking.kind=frequency"),
    "auto": ("auto",),
    "whole-word": ("whole-word",),
    "spans": ("spans",),
    "slm": ("slm",),
    "causal": ("causal",),
    "prefix": ("prefix",),
    "meap": ("meap",),
    "gpt-bert": ("gpt-bert", "training.phases=[{share: 1.0, length: 64, rows: 16}]"),
    "clm-then-mlm": ("clm-then-mlm",),
    "rts": ("rts",),
    "c-rts": ("c-rts",),
    "electra": ("electra",),
    "mcl": ("mcl",),
    "structural": ("structural",),
    "enc-dec": ("enc-dec",),
    "mosaicbert": ("mosaicbert",),
}


@dataclass(frozen=True, slots=True)
class Blow:
    """When a process is killed: in the `call`-th call of a stage, `moment` seconds after its start."""

    stage: str
    call: int
    moment: float


# -- in the process that is killed --------------------------------------------------------------------------


def child(arguments: list[str], blow: Blow | None, times: Path | None) -> None:
    """Run the cloze command; kill this process at the blow, or write how long the stages' calls took."""
    began = time.perf_counter()
    import cloze.cli
    from cloze.data import corpus
    from cloze.evaluation.heldout import HeldOutSet
    from cloze.session import Session
    from cloze.training.loop import Trainer
    from cloze.training.state import Checkpoints

    taken: dict[str, list[float]] = {stage: [] for stage in STAGES}

    def watched(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            if blow is not None and blow.stage == stage and len(taken[stage]) == blow.call:
                _kill_after(blow.moment)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                taken[stage].append(time.perf_counter() - start)

        return run

    corpus.prepare = watched("prepare", corpus.prepare)
    Trainer.step = watched("step", Trainer.step)  # type: ignore[method-assign]
    Checkpoints.save = watched("checkpoint", Checkpoints.save)  # type: ignore[method-assign]
    Session._export = watched("export", Session._export)  # type: ignore[method-assign]
    HeldOutSet.evaluate = watched("evaluate", HeldOutSet.evaluate)  # type: ignore[method-assign]
    if blow is not None and blow.stage == "any":
        _kill_after(blow.moment)
    sys.argv = ["cloze", *arguments]
    try:
        cloze.cli.main()
    finally:
        if times is not None:
            taken["any"] = [time.perf_counter() - began]
            times.write_text(json.dumps(taken), encoding="utf-8")


def _kill_after(seconds: float) -> None:
    if seconds <= 0.0:
        os.kill(os.getpid(), signal.SIGKILL)
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()


# -- in the process that kills ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bench:
    """Where a benchmark of this kind works: its text, and a folder of its own for each run."""

    root: Path
    text: Path

    def start(
        self, case: str, out: Path, resume: bool, blow: Blow | None = None, times: Path | None = None
    ) -> tuple[int, str]:
        """One process; its exit code (negative: the signal that ended it) and what it said last."""
        recipe, *sets = CASES[case]
        words = ["pretrain", recipe, "--data", str(self.text), "--out", str(out), "--budget", f"{STEPS}steps"]
        words += [part for value in (*SMALL, *sets) for part in ("--set", value)]
        words += ["--resume"] if resume else []
        order = json.dumps([words, None if blow is None else [blow.stage, blow.call, blow.moment]])
        command = [sys.executable, __file__, "--child", order, *(["--times", str(times)] if times else [])]
        cache = out.with_name(f"{out.name}-cache")
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
            process = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
                env=os.environ | {"CLOZE_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
            )
            code = process.wait()
            with suppress(ProcessLookupError):  # workers that outlived it
                os.killpg(process.pid, signal.SIGKILL)
            said.seek(0)
            return code, said.read()[-1500:]


def half_written(out: Path) -> str | None:
    """Something in the folder of a run that looks whole and is not; None: nothing does."""
    from safetensors import safe_open

    from cloze.training.state import damage

    for folder in out.glob("checkpoints/step-*"):
        found = damage(folder)
        if found:
            return f"{folder.name}: {found}"
    for name in ("summary.json", "samples.json"):
        file = out / name
        if file.exists():
            try:
                json.loads(file.read_text("utf-8"))
            except ValueError:
                return f"{name} is no JSON"
    for name in ("model", "generator"):
        if (out / name).exists():
            try:
                with safe_open(out / name / "model.safetensors", "pt") as file:
                    for key in file.keys():  # noqa: SIM118
                        file.get_tensor(key)
            except Exception as error:
                return f"{name}/: {error}"
    return None


def difference(one: Path, other: Path) -> str | None:
    """What differs between two finished runs: weights and every other tensor of the training state."""
    from safetensors.torch import load_file

    name = f"checkpoints/step-{STEPS:08d}/training.safetensors"
    a, b = load_file(one / name), load_file(other / name)
    if a.keys() != b.keys():
        return f"tensors: {sorted(a.keys() ^ b.keys())[:3]}"
    for key in a:
        if a[key].shape != b[key].shape or not bool((a[key] == b[key]).all()):
            return key
    weights = "model/model.safetensors"
    return None if (one / weights).read_bytes() == (other / weights).read_bytes() else weights


def draw(dice: random.Random, stage: str, times: dict[str, list[float]]) -> Blow:
    """A moment in one of the calls of a stage, by how long they took in the run without a kill."""
    calls = times[stage]
    call = dice.randrange(len(calls))
    return Blow(stage, call, 0.8 * dice.random() * calls[call])  # another start may be faster


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", choices=CASES, action="append", help="only this one; may be repeated")
    parser.add_argument("--text", type=Path, help="a text file; default: generated")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--times", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        words, blow = json.loads(args.child)
        child(words, None if blow is None else Blow(*blow), args.times)
        return
    with tempfile.TemporaryDirectory() as folder:
        failed = attack(args, Path(folder))
    print(f"{args.kills - failed} of {args.kills} bit-equal")
    sys.exit(1 if failed else 0)


def write_text(file: Path, dice: random.Random) -> Path:
    """A file of made-up words, some more frequent than others."""
    words = [f"{a}{b}" for a in ("al", "be", "ga", "de", "ep", "ze") for b in ("ta", "ma", "lo", "ri", "sun")]
    weights = [1.0 / rank for rank in range(1, len(words) + 1)]
    lines = [" ".join(dice.choices(words, weights, k=30)) + "." for _ in range(1200)]
    file.write_text("\n\n".join(lines), encoding="utf-8")
    return file


def attack(args: argparse.Namespace, root: Path) -> int:
    """All kills; how many of them were not made good."""
    dice = random.Random(args.seed)
    text = args.text or write_text(root / "text.txt", dice)
    bench, cases = Bench(root, text), args.case or list(CASES)
    whole: dict[str, dict[str, list[float]]] = {}
    stages: Counter[str] = Counter()
    results, failed, kills = [], 0, 0  # a process that ended before its moment was not killed
    while kills < args.kills:
        case = cases[len(results) % len(cases)]
        reference = root / f"whole-{cases.index(case)}"
        if case not in whole:
            times = root / "times.json"
            code, said = bench.start(case, reference, resume=False, times=times)
            if code:
                raise SystemExit(f"{case}: the run without a kill failed: {said}")
            whole[case] = json.loads(times.read_text("utf-8"))
        out, problem, blows, killed = root / f"killed-{len(results)}", None, [], 0
        while kills + killed < args.kills and problem is None and (not blows or dice.random() < 1 / 3):
            stage = STAGES[(len(results) + len(blows)) % len(STAGES)]
            blow = draw(dice, stage, whole[case])
            code, said = bench.start(case, out, resume=bool(blows), blow=blow)
            if code not in (0, -signal.SIGKILL):
                problem = f"exit code {code}: {said}"
                break
            killed += code != 0
            blows.append(f"{stage} {blow.call + 1}" if code else "nothing")
            stages["after its end" if code == 0 else stage] += 1
            problem = half_written(out)
        if problem is None:
            code, said = bench.start(case, out, resume=True)
            problem = f"exit code {code}: {said}" if code else half_written(out) or difference(reference, out)
        kills += killed
        failed += max(1, killed) if problem else 0
        results.append({"case": case, "kills": blows, "problem": problem})
        print(f"{kills:>4}  {case}: killed in {', '.join(blows)}: {problem or 'bit-equal'}", flush=True)
    print("kills by stage: " + ", ".join(f"{name} {count}" for name, count in sorted(stages.items())))
    if args.json:
        content = {"kills": kills, "seed": args.seed, "failed": failed, "stages": stages, "runs": results}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return failed


if __name__ == "__main__":
    main()
