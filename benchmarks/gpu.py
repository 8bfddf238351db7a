"""All that is measured on one GPU, in the order of importance, each part within its time.

    python benchmarks/gpu.py --all --minutes 9 --out FOLDER

Parts, each in a process of its own that is ended when its time is over (its results until then are kept):
tests (`pytest -m gpu`), limits, base (ModernBERT 22 x 768, vocabulary 50,368, packed rows of 1,024, the
profile with it), stock (`Trainer` with SDPA and bf16: ModernBERT and BERT base at their best batches, on
padded texts and on joined and chopped ones), long (8,192 tokens, whole books), small (4 x 512), memory.
FOLDER/gpu.json holds everything, also what was there before (--parts base stock …: these only; without parts
it only makes text and tokenizer in the folder --material, which needs no GPU). Printed at the end: tokens per
second, utilisation (operations that the samples need, to the rate of the fastest bf16 product and to that at
the shapes used), and useful tokens per second to stock's.
Without --data the text is the paragraphs of the embedded books. --device cpu tries the script on tiny models.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import HERE, first, make_tokenizer, texts, write_json, write_texts

BASE, SMALL, TINY = (22, 768), (4, 512), (2, 64)
LIMITS = {  # seconds of each part
    "tests": 180, "limits": 60, "base": 300, "stock": 270, "long": 150, "small": 120, "memory": 120,
}  # fmt: skip


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--all", action="store_true", help="all parts")
    parser.add_argument("--parts", nargs="+", choices=list(LIMITS), default=[])
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--data", help="texts of natural lengths, as for cloze pretrain --data")
    parser.add_argument("--text-field")
    parser.add_argument("--material", type=Path, help="folder where text and tokenizer are kept and found")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    return parser.parse_args()


def make_material(folder: Path, chosen: argparse.Namespace) -> None:
    """texts.jsonl, books.jsonl (whole ones) and a tokenizer in the folder, unless they are there."""
    from cloze.data.sections import split_paragraphs

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "texts.jsonl").is_file():
        books = list(texts("cloze:books"))
        write_texts(folder / "books.jsonl", books)
        if chosen.data:
            found = texts(chosen.data, chosen.text_field)
        else:
            found = (part for book in books for part in split_paragraphs(book))
        write_texts(folder / "texts.jsonl", (t for t in first(found, 40_000_000) if t.strip()))
    size = 50_368 if chosen.device == "cuda" else 1_024
    make_tokenizer(first(texts(str(folder / "texts.jsonl")), 20_000_000), size, folder / "tokenizer")


def command(part: str, work: Path, chosen: argparse.Namespace, result: dict[str, Any]) -> list[object]:
    """What runs a part, without the interpreter; it writes work/part.json."""
    file, gpu = work / f"{part}.json", chosen.device == "cuda"
    layers, width = (BASE if part != "small" else SMALL) if gpu else TINY
    size: list[object] = ["--layers", layers, "--width", width, "--device", chosen.device]
    if part == "tests":
        spread_out = ["-n", 4] if importlib.util.find_spec("xdist") else []
        tests = HERE.parent / "tests" / "models" / "test_gpu.py"
        flags = ["-m", "gpu", "-q", "-W", "default", "-p", "no:cacheprovider"]
        return ["-m", "pytest", *flags, tests, *spread_out]
    if part == "limits":
        rows = best_rows(result) or (64 if gpu else 2)
        more = ["--vocabulary", 50_368 if gpu else 1_024, "--share", 0.3, "--length", 1024 if gpu else 64]
        return [HERE / "limits.py", *size, *more, "--rows", rows, "--seconds", 0.3, "--json", file]
    if part == "memory":
        return [HERE / "memory.py", *size, "--json", file, "--plot", chosen.out / "memory.png"]
    data = work / ("books.jsonl" if part == "long" else "texts.jsonl")
    name = "gpu_stock.py" if part == "stock" else "gpu_ours.py"
    found = [HERE / name, *size, "--data", data, "--tokenizer", work / "tokenizer", "--json", file]
    if part == "stock":
        tiny = ["--workers", 0, "--steps", 12, "--longer", 14, "--rows", 2, 4, "--length", 64]
        return found if gpu else [*found, *tiny]
    if not gpu:
        found += ["--workers", 0, "--steps", 2, 2, 1, "--rows", 2, 4, "--length", 64]
        return [*found, *(["--profile", "--more"] if part == "base" else ["--rates", 0.3])]
    if part == "base":
        return [*found, "--profile", "--more"]
    rows = [2, 4, 8, 16] if part == "long" else [64, 128, 256, 512]
    found += ["--rates", 0.3, "--length", 8192 if part == "long" else 1024, "--rows", *rows]
    return [*found, *(["--heldout", work / "texts.jsonl"] if part == "long" else [])]


def run_part(words: list[object], limit: float, log: Path | None) -> str:
    """Run a part, all of its processes ended after so many seconds; how it went."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    out = log.open("w") if log else None
    child = subprocess.Popen(
        [sys.executable, *map(str, words)], env=environment, stdout=out, stderr=out, start_new_session=True
    )
    try:
        code = child.wait(limit)
        return "done" if code == 0 else f"exit code {code}"
    except subprocess.TimeoutExpired:
        return f"ended after {limit:.0f} s"
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if out:
            out.close()


def speeds(part: dict[str, Any]) -> dict[str, float]:
    """Tokens per second of the runs of a part that went well."""
    runs = part.get("runs", {}).items()
    return {name: run["tokens_per_second"]["median"] for name, run in runs if "error" not in run}


def best_rows(result: dict[str, Any]) -> int | None:
    """Rows of the fastest run of `base`."""
    found = speeds(result.get("base", {}))
    return int(max(found, key=lambda name: found[name]).split(", ")[2].split()[0]) if found else None


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Utilisation of each run, and the best useful speed at 15% to the best of each stock arm."""
    limits = result.get("limits", {}).get("default", {})
    found: dict[str, Any] = {"utilisation": {}, "ratios": {}}
    for part in ("base", "long", "small"):
        for name, speed in speeds(result.get(part, {})).items():
            cost = result[part]["facts"][name.split(",")[0]]["operations_per_token"]
            shares = {k: speed * cost / (1e9 * limits[k]) for k in ("at_best", "at_shapes") if k in limits}
            row = {"tokens_per_second": speed, "tflops": speed * cost / 1e12}
            found["utilisation"][f"{part}, {name}"] = row | shares
    mine = {n: s for n, s in speeds(result.get("base", {})).items() if n.startswith("15%")}
    for name, arm in result.get("stock", {}).get("arms", {}).items():
        if mine and "useful_tokens_per_second" in arm.get("best", {}):
            useful = max(mine.values()) * result["base"]["facts"]["15%"]["text_share"]
            found["ratios"][f"to {name}"] = useful / arm["best"]["useful_tokens_per_second"]["median"]
    return found


def show(found: dict[str, Any]) -> None:
    """Print a summary."""
    print(f"\n{'':<40}{'tokens/s':>12}{'TFLOP/s':>9}{'of best':>9}{'of shapes':>10}")
    for name, row in found["utilisation"].items():
        shares = (f"{row[k]:.1%}" if k in row else "-" for k in ("at_best", "at_shapes"))
        print("{:<40}{:>12,.0f}{:>9.1f}{:>9}{:>10}".format(name, *list(row.values())[:2], *shares))
    for name, ratio in found["ratios"].items():
        print(f"useful tokens/s at 15% {name:<22}{ratio:>8.2f} x")


def main() -> None:
    chosen = options()
    end = time.monotonic() + 60 * chosen.minutes
    chosen.out.mkdir(parents=True, exist_ok=True)
    file = chosen.out / "gpu.json"
    result: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        work = chosen.material or Path(folder)
        make_material(work, chosen)
        for part in LIMITS if chosen.all else chosen.parts:
            left = min(LIMITS[part], end - time.monotonic() - 5)
            if left < 15:
                print(f"== {part}: no time left", flush=True)
                continue
            print(f"== {part}", flush=True)
            (work / f"{part}.json").unlink(missing_ok=True)
            begin, log = time.monotonic(), chosen.out / "tests.txt" if part == "tests" else None
            how = run_part(command(part, work, chosen, result), left, log)
            if log:
                print("\n".join(log.read_text("utf-8").splitlines()[-12:]))
            made = work / f"{part}.json"
            found = json.loads(made.read_text("utf-8")) if made.is_file() else {}
            result[part] = found | {"ended": how, "seconds": time.monotonic() - begin}
            result["summary"] = summary(result)
            write_json(file, result, chosen.device)
            print(f"== {part}: {how}, {result[part]['seconds']:.0f} s", flush=True)
    if "summary" in result:
        show(result["summary"])


if __name__ == "__main__":
    main()
