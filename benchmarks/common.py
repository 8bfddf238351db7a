"""What the benchmarks share: processes of their own, runs in turn, medians with their spread, JSON.

Every arm runs in a fresh interpreter with the environment of the caller, so all have the same threads.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WARM = 10  # steps that are not counted
# What the cloze command sets for itself; stock users do not have it.
SETTINGS = {"GOMP_SPINCOUNT": "1000", "THP_MEM_ALLOC_ENABLE": "1"}
Point = tuple[int, float, int]  # steps, seconds and tokens since the start of training


@dataclass(frozen=True, slots=True)
class Finished:
    """A process that ended: exit code, wall-clock seconds, its greatest resident memory, its last errors.

    Linux counts the parent's memory at the start as the child's, so a parent should be small.
    """

    code: int
    seconds: float
    peak_gib: float
    errors: str


def run(command: Sequence[object], extra: dict[str, str] | None = None, check: bool = True) -> Finished:
    """Run a command to its end, with `extra` in its environment. `check`: leave if it fails."""
    words = [str(word) for word in command]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        begin = time.perf_counter()
        child = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=errors, env=os.environ | (extra or {})
        )
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:  # Ctrl-C: no child goes on alone
            child.kill()
            raise
        seconds = time.perf_counter() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        said = errors.read()[-2000:]
    if check and child.returncode:
        raise SystemExit(f"{said}\nfailed: {' '.join(words)}")
    return Finished(child.returncode, seconds, usage.ru_maxrss / 2**20, said)


def script(name: str, *arguments: object, extra: dict[str, str] | None = None) -> dict[str, Any]:
    """What a script of this folder writes to its --json file; `peak_gib` is added."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        done = run([sys.executable, HERE / name, *arguments, "--json", file], extra)
        return json.loads(file.read_text("utf-8")) | {"peak_gib": done.peak_gib}


def pretrain(
    recipe: str,
    data: str | None,
    budget: str,
    sets: Iterable[str] = (),
    out: Path | None = None,
    extra: dict[str, str] | None = None,
) -> dict[str, Any]:
    """The command `cloze pretrain` in a process of its own.

    Returns: `points` (one for each line of the log; the seconds have the measurements of the gradient's
    variance in them, if the run is long enough for any, not the evaluations at the start and at the end),
    `speeds` (tokens per second of training alone, as logged), `summary` and `peak_gib`. The run is kept if
    `out` says where.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = out or Path(folder) / "run"
        command = [sys.executable, "-m", "cloze", "pretrain", recipe, "--out", target, "--budget", budget]
        command += ["--data", data] if data else []
        for value in ("evaluation.times=1", *sets):
            command += ["--set", value]
        done = run(command, extra)
        lines = (target / "metrics.jsonl").read_text("utf-8").splitlines()
        steps = [r for r in map(json.loads, lines) if r["kind"] == "step"]
        summary = json.loads((target / "summary.json").read_text("utf-8"))
    return {
        "points": [(r["step"], r["seconds"], r["tokens"]) for r in steps],
        "speeds": [r["tokens_per_second"] for r in steps],
        "summary": summary,
        "peak_gib": done.peak_gib,
    }


def whole_speed(points: Sequence[Point]) -> float:
    """Tokens per second from the first point after the warm-up to the end."""
    first = next((p for p in points[:-1] if p[0] >= WARM), points[0])
    last = points[-1]
    return (last[2] - first[2]) / (last[1] - first[1])


def alternate(arms: dict[str, Callable[[], Any]], repeats: int, show: Callable[[Any], str]) -> dict[str, Any]:
    """Each arm's results, run in turn A B A B …; `show` gives the words for a result as it comes."""
    found: dict[str, list[Any]] = {name: [] for name in arms}
    for number in range(repeats):
        for name, arm in arms.items():
            found[name].append(arm())
            print(f"{number + 1}: {name:<32}{show(found[name][-1])}", flush=True)
    return found


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, lowest and highest, and all of them in their order."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "values": list(values),
    }


def paired(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Spread of the ratios within rounds."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def words(found: dict[str, Any], form: str = ",.0f") -> str:
    """A spread in a few words: median [low, high]."""
    return "{} [{}, {}]".format(*(format(found[k], form) for k in ("median", "low", "high")))


def attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` gives, or {"error": in a line}: what it had on the GPU is free again afterwards."""
    import torch

    try:
        found = work()
    except Exception as error:
        said = " ".join(str(error).split())
        full = isinstance(error, torch.OutOfMemoryError) or "out of memory" in said
        found = {"error": "out of memory" if full else f"{type(error).__name__}: {said[:300]}"}
    gc.collect()  # after the handler: the error itself keeps what its functions had
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def grow(sizes: Iterable[int], trial: Callable[[int], dict[str, Any]]) -> tuple[int | None, dict[str, Any]]:
    """Try one size after the other until a trial has an "error".

    Returns:
        The size with the most `tokens_per_second` (its median) and that trial; None and the error if even
        the first fails.
    """
    best: tuple[int | None, dict[str, Any]] = (None, {"error": "nothing was tried"})
    for size in sizes:
        found = trial(size)
        if "error" in found:
            return best if best[0] is not None else (None, found)
        if best[0] is None or found["tokens_per_second"]["median"] > best[1]["tokens_per_second"]["median"]:
            best = (size, found)
    return best


def where(device: str = "cpu", precision: str = "fp32") -> dict[str, Any]:
    """Hardware, versions, commit (of a copy without git: the variable GIT_COMMIT) and date."""
    import torch

    from cloze.report.environment import environment

    commit = os.environ.get("GIT_COMMIT", "")
    if shutil.which("git"):
        git = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude=*"]
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or commit
    found = environment(torch.device(device), precision)
    return found | {"commit": commit or None, "date": time.strftime("%Y-%m-%d")}


def write_json(
    path: Path | None, content: dict[str, Any], device: str = "cpu", precision: str | None = None
) -> None:
    """Write a result with `where` it was made, all or nothing; None: nowhere.

    `precision`: None is fp32 on a CPU, bf16 elsewhere.
    """
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    made = where(device, precision or ("fp32" if device == "cpu" else "bf16"))
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content | {"made": made}, indent=1) + "\n", "utf-8")
    temporary.replace(path)


def texts(data: str, field: str | None = None, split: str = "paragraphs") -> Iterator[str]:
    """The documents of a corpus, as `cloze pretrain --data` reads them."""
    from cloze.data.sources import Source, read

    return (document.text for document in read(Source.parse(data), split, field))  # type: ignore[arg-type]


def write_texts(path: Path, documents: Iterable[str]) -> Path:
    """A .jsonl file with the field `text`."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in documents)
    return path


def make_tokenizer(documents: Iterable[str], size: int, folder: Path) -> Path:
    """A lower-casing WordPiece tokenizer of exactly `size` ids, saved in `folder` unless it is there.

    Trained on the text; unused entries of the plain vocabulary, as BERT's has them, fill it up.
    """
    if (folder / "tokenizer.json").is_file():
        return folder
    from cloze.data.tokenizer_training import train_tokenizer

    tokenizer = train_tokenizer(documents, "wordpiece", size // 64 * 64, lowercase=True)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    vocabulary = content["model"]["vocab"]
    # Added tokens must be in it too: those that are not get new numbers behind the last entry when loaded.
    vocabulary |= {token["content"]: token["id"] for token in content["added_tokens"]}
    vocabulary |= {f"[unused{number}]": number for number in range(len(tokenizer), size)}
    file.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    return folder


def first(documents: Iterable[str], characters: int) -> Iterator[str]:
    """The documents up to so many characters, at least one."""
    for text in documents:
        yield text
        characters -= len(text)
        if characters <= 0:
            return
