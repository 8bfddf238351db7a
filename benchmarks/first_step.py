"""From the start of the process to the first training step, on text that is tokenised already.

    python benchmarks/first_step.py --data TEXT

Runs `cloze pretrain` once to fill the store, then again (other folder, same text) and watches what appears
in the run's folder. Prints where the seconds go, and which packages the import of cloze.run waits for
(python -X importtime, which is slower than without; a package's own modules only).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from common import spread, words, write_json

# What appears in the run's folder, in order, and what has been done by then.
STAGES = {
    "recipe.yaml": "python, imports, recipe",
    "metrics.jsonl": "text, tokenizer, model, probes",
    '"heldout"': "held-out loss before the first step",
    "summary.json": "checkpoint of step 0",
    '"step"': "first step",
}


def appeared(sign: str, run: Path) -> bool:
    """Whether the file, or the kind of record, is there."""
    if not sign.startswith('"'):
        return (run / sign).exists()
    try:
        return f'"kind": {sign}' in (run / "metrics.jsonl").read_text("utf-8")
    except OSError:
        return False


def watch(command: list[str], run: Path) -> dict[str, float]:
    """Seconds of each stage."""
    begin = mark = time.perf_counter()
    found = {}
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        for sign, stage in STAGES.items():
            while not appeared(sign, run):
                ended = child.poll() is not None
                if ended and not appeared(sign, run):
                    errors.seek(0)
                    raise SystemExit(f"{errors.read().decode()}\n{stage}: the run ended before it")
                time.sleep(0.005)
            now = time.perf_counter()
            found[stage], mark = now - mark, now
        found["in all"] = mark - begin
        if child.wait():
            raise SystemExit(f"{' '.join(command)} failed")
    return found


def imports(most: int = 8) -> dict[str, float]:
    """Seconds that the modules of each package take when `cloze.run` is imported, the slowest packages."""
    command = [sys.executable, "-X", "importtime", "-c", "import cloze.run"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    total: Counter[str] = Counter()
    for line in lines:
        own, _, name = line.removeprefix("import time:").split("|")
        if own.strip().isdigit():
            total[name.strip().split(".")[0]] += int(own)
    return {name: microseconds / 1e6 for name, microseconds in total.most_common(most)}


def measure(data: str, recipe: str, sets: list[str], repeats: int) -> dict[str, Any]:
    """The stages of `repeats` runs on a warm store, and the imports."""
    runs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repeats + 1):
            out = Path(folder) / f"run-{number}"
            command = [sys.executable, "-m", "cloze", "pretrain", recipe, "--data", data, "--out", str(out)]
            for value in (f"data.store={folder}/store", "training.log_every=1", "evaluation.times=1", *sets):
                command += ["--set", value]
            found = watch([*command, "--budget", "2steps"], out)
            print(f"{'cold' if number == 0 else f'warm {number}'}: {found['in all']:.2f} s", flush=True)
            runs.append(found)
    stages = {stage: spread([run[stage] for run in runs[1:]]) for stage in (*STAGES.values(), "in all")}
    return {"seconds": stages, "cold_seconds": runs[0], "imports": imports()}


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    for stage, seconds in found["seconds"].items():
        print(f"{stage:<40}{words(seconds, '.2f'):>22} s")
    each = [f"{name} {seconds:.2f}" for name, seconds in found["imports"].items()]
    print(f"imports, s: {', '.join(each[:5])}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="cloze:books", help="text, as for cloze pretrain --data")
    parser.add_argument("--recipe", default="mlm")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], help="as for cloze pretrain")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    found = measure(chosen.data, chosen.recipe, chosen.set, chosen.repeats)
    show(found)
    settings = {"data": Path(chosen.data).name, "recipe": chosen.recipe, "set": chosen.set}
    write_json(chosen.json, found | {"settings": settings})


if __name__ == "__main__":
    main()
