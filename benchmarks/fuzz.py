"""Broken and hostile input by the thousand: whatever comes, the answer is a result or one line (ClozeError).

    python benchmarks/fuzz.py --cases 100000 --seed 0

Each case takes one of TARGETS in turn: a data file (every ending, plain and compressed) that `read` streams,
a recipe file, and `--set` texts with a `--data` text. Cases are good input with a few mutations, and pieces
that have broken readers elsewhere (HOSTILE), all drawn from --seed, so a case is found again by its number
(--first). A case fails by any exception that is no ClozeError, a message of more than one line, a document
that no tokenizer takes, or by running for longer than SECONDS; all of them together by memory that grows by
more than MEGABYTES. They are printed; the last line is "N cases, F failed", the exit code 0 only if none did.

    python benchmarks/fuzz.py --guided 600 --seed 0

Cases of the readers for so many seconds, guided by coverage: a case that makes `cloze.data` take a step from
line to line which no case before did is kept and varied further. Slower by what tracing costs, and deeper.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import pyarrow as pa

import cloze.data.sources
from cloze.data.files import ENDINGS
from cloze.data.sources import Source, read
from cloze.errors import ClozeError
from cloze.recipes.load import dump, load_recipe, recipe_text, shipped

SECONDS, MEGABYTES, SHOWN = 20, 600, 5
C, T = TypeVar("C"), TypeVar("T")
WORDS = (
    "river", "the", "Straße", "عربى", "שלום", "日本語", "👩‍👩‍👧", "é", "\u202e", "naïve", "0", "1e400",
    "a" * 300,
)  # fmt: skip
HOSTILE = (
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc0\x80", b"\\ud800", b'"\\udfff"', b"\r",
    b"\r\n", b"\x1a", b"\x85", b"\xe2\x80\xa8", b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"-1e99999",
    b"NaN", b"Infinity", b'"', b"'", b"\t", b",", b"{}", b"[]", b"null", b"true", b"\n\n", b" ", b":",
    b"- ", b"&a ", b"*a", b"<<: *a", b"!!python/object/apply:os.system [id]", b"!!binary AAAA",
    b"!!set {a}", b"? ", b"| ", b"%YAML 9", b"2001-99-99", b"0b2", b"0x", b"1:99:99", b"~", b"---\n",
    b"...\n", b"kind", b"extends: mlm\n", b"=", b"..", b"\x1f\x8b", b"PAR1", b"(\xb5/\xfd",
    b"{kind: [uniform]}", b"{kind: {a: b}}", b"\xf0\x9f\x98\x80", b"\xcc\x81",
)  # fmt: skip
VALUES = (
    "", "null", "0", "-1", "1", "0.3", ".nan", ".inf", "-.inf", "1e400", "9" * 400, "[]", "[a]", "{}",
    "{kind: x}", "{kind: [a]}", "{kind: null}", "{start: 0.3, end: 0.1}", "true", "text", "2001-99-99",
    "1:99:99", "!!set {a}", "[[[[[[]]]]]]", "[" * 1500, "{a: " * 1500, "&a [*a]", "*a", "'", '"', "\ud800",
    "\0", "é", "a\nb", "../../etc", "/", "!!python/name:os.system", "0x7fffffffffffffffffff", "0b", "1_000",
    "50steps", "1Mtok", "mlm", "{1: 2}", "- a",
)  # fmt: skip


# -- what is tried ------------------------------------------------------------------------------------------


def mutate(dice: random.Random, content: bytes, most: int = 4) -> bytes:
    """The content with up to `most` changes: pieces cut, doubled, moved, flipped or put in."""
    data = bytearray(content)
    for _ in range(dice.choice((0, 1, 1, 2, most))):
        a, b = sorted((dice.randrange(len(data) + 1), min(len(data), dice.randrange(len(data) + 1))))
        b = min(b, a + dice.choice((1, 8, 64, 4096)))
        kind = dice.randrange(6)
        if kind == 0:
            del data[a:b]
        elif kind == 1:
            data[a:a] = data[a:b]
        elif kind == 2 and data:
            data[min(a, len(data) - 1)] ^= 1 << dice.randrange(8)
        elif kind == 3:
            data[a:b] = dice.randbytes(b - a)
        else:
            data[a : a if kind == 4 else b] = dice.choice(HOSTILE)
    return bytes(data)


def words(dice: random.Random) -> str:
    """A few words, in one line or several."""
    return "".join(
        dice.choice(WORDS) + dice.choice((" ", "\n", "\n\n", ", ")) for _ in range(dice.randrange(12))
    )


def good_file(dice: random.Random, ending: str) -> bytes:
    """A small file that is right."""
    rows: list[dict[str, Any]] = [
        {"text": words(dice), "n": dice.randrange(9), "meta": words(dice)}
        for _ in range(dice.randrange(1, 9))
    ]
    if ending in (".txt", ".md"):
        return "\n\n".join(row["text"] for row in rows).encode()
    if ending == ".json" and dice.random() < 0.5:
        return json.dumps(rows).encode()
    if ending in (".csv", ".tsv"):
        sign = "," if ending == ".csv" else "\t"
        lines = [
            sign.join(json.dumps(v, ensure_ascii=False).replace('\\"', '""') for v in r.values())
            for r in rows
        ]
        return "\n".join([sign.join(rows[0]), *lines]).encode()
    if ending == ".parquet":
        sink = pa.BufferOutputStream()
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), sink)
        return bytes(sink.getvalue().to_pybytes())
    return "".join(json.dumps(r, ensure_ascii=dice.random() < 0.5) + "\n" for r in rows).encode()


SPLITS, FIELDS = ("paragraphs", "lines", "file"), (None, None, None, "text", "n", "\ud800")


def packed(data: bytes, ending: str) -> bytes:
    """The data as a file with this last ending."""
    return gzip.compress(data) if ending == ".gz" else pa.Codec("zstd").compress(data, asbytes=True)


def read_all(file: Path, data: bytes, split: str, field: str | None) -> None:
    """Write a data file and read it to its end."""
    file.write_bytes(data)
    for document in read(Source(path=str(file)), split, field):
        document.text.encode("utf-8")
        json.dumps(document.meta, ensure_ascii=False).encode("utf-8")


def try_reader(dice: random.Random, folder: Path) -> None:
    """One data file of any kind, read to its end."""
    ending = dice.choice([e for e in ENDINGS if e != ".parquet" or dice.random() < 0.1])
    data = mutate(dice, good_file(dice, ending))
    if ending != ".parquet" and dice.random() < 0.3:
        last = dice.choice((".gz", ".zst"))
        data, ending = mutate(dice, packed(data, last), 1), ending + last
    field = dice.choice(FIELDS)
    read_all(folder / f"data{ending}", data, dice.choice(SPLITS), field)


def try_recipe(dice: random.Random, folder: Path) -> None:
    """One recipe file, commented as shipped, resolved, or short, with something broken in it."""
    name = dice.choice(shipped())
    kind = dice.randrange(3)
    if kind == 0:
        text = recipe_text(name).encode()
    elif kind == 1:
        text = dump(load_recipe(name)).encode()
    else:
        field, value = setting(dice)
        text = f"extends: {name}\n{field.partition('.')[0]}: {value}\n".encode("utf-8", "surrogatepass")
    file = folder / "recipe.yaml"
    file.write_bytes(mutate(dice, text))
    dump(load_recipe(str(file)))


def try_overrides(dice: random.Random, folder: Path) -> None:
    """One to three --set texts, and what --data says."""
    texts = []
    for _ in range(dice.randrange(1, 4)):
        field, value = setting(dice)
        if dice.random() < 0.3:
            parts = field.split(".")
            parts[dice.randrange(len(parts))] = dice.choice(
                ("kind", "0", "", "\ud800", "a b", "extends", "x" * 300)
            )
            field = ".".join(parts)
        text = f"{field}={value}"
        if dice.random() < 0.3:
            text = mutate(dice, text.encode("utf-8", "surrogatepass"), 2).decode("utf-8", "surrogateescape")
        texts.append(text)
    if dice.random() < 0.2:
        Source.parse(dice.choice(("", "a=", "a=1:", "=:x", "x/y:z")) + dice.choice(VALUES))
    dump(
        load_recipe(
            dice.choice((*shipped(), *VALUES)) if dice.random() < 0.1 else dice.choice(shipped()), texts
        )
    )


TARGETS: dict[str, Callable[[random.Random, Path], None]] = {
    "readers": try_reader,
    "recipes": try_recipe,
    "overrides": try_overrides,
}
_found: dict[str, str] = {}


def setting(dice: random.Random) -> tuple[str, str]:
    """A field of some shipped recipe, section or leaf, with a value that it has there or with any other."""

    def walk(tree: Any, prefix: str) -> None:
        if isinstance(tree, dict):
            for key, value in tree.items():
                _found[prefix + key] = json.dumps(value)
                walk(value, f"{prefix}{key}.")

    if not _found:
        for name in shipped():
            walk(load_recipe(name).model_dump(mode="json"), "")
    field = dice.choice(list(_found))
    return field, _found[field] if dice.random() < 0.4 else dice.choice(VALUES)


# -- how it is judged ---------------------------------------------------------------------------------------


class Hang(Exception):
    """A case that did not come to an end."""


def _ring(*_: Any) -> None:
    raise Hang(f"still running after {SECONDS} s")


def attempt(target: str, number: int, seed: int, folder: Path) -> tuple[str, str | None]:
    """What became of a case ("taken" or "refused"), and how it failed; None: it did not."""
    dice = random.Random(f"{seed} {number}")
    return judged(lambda: TARGETS[target](dice, folder))


def judged(case: Callable[[], None]) -> tuple[str, str | None]:
    """What became of a case ("taken" or "refused"), and how it failed; None: it did not."""
    signal.alarm(SECONDS)
    try:
        case()
        return "taken", None
    except ClozeError as error:
        said = str(error)
        return "refused", None if "\n" not in said.strip() else f"more than one line: {said[:300]!r}"
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "/cloze/" in f.filename] or frames
        place = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
        return "failed", f"{type(error).__name__} at {place}: {str(error)[:200]!r}"
    finally:
        signal.alarm(0)


# -- guided by what the code does --------------------------------------------------------------------------


class Coverage:
    """Steps from line to line in some files: what a case made the code do."""

    def __init__(self, files: Iterable[str]):
        self.files, self.steps = frozenset(files), set[tuple[str, int, int]]()

    def of(self, case: Callable[[], T]) -> tuple[T, set[tuple[str, int, int]]]:
        """What the case gives, and its steps."""
        self.steps = set()
        sys.settrace(self._called)
        try:
            return case(), self.steps
        finally:
            sys.settrace(None)

    def _called(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        name = frame.f_code.co_filename
        if name not in self.files:
            return None
        last = 0

        def line(frame: FrameType, event: str, _arg: Any) -> Any:
            nonlocal last
            if event == "line":
                self.steps.add((name, last, frame.f_lineno))
                last = frame.f_lineno
            return line

        return line


@dataclass
class Found:
    """What a search found; `kept`: cases that did something new, `steps`: after the seeds and at the end."""

    kept: int
    steps: tuple[int, int]
    ends: Counter[str]
    problems: list[str]


def guided(
    seeds: Sequence[C],
    vary: Callable[[random.Random, Sequence[C]], C],
    try_: Callable[[C], None],
    files: Iterable[str],
    dice: random.Random,
    more: Callable[[int], bool],
) -> Found:
    """Vary cases, and keep those that make the code do what no case before did, to be varied again.

    Args:
        seeds: first cases. vary: a new case from those that were kept. try_: runs one.
        files: whose steps count. more: whether to go on, after so many cases.
    """
    coverage, known, kept = Coverage(files), set[tuple[str, int, int]](), list[C]()
    ends, problems, first, number = Counter[str](), list[str](), 0, 0
    while number < len(seeds) or more(number):
        case = seeds[number] if number < len(seeds) else vary(dice, kept)
        (end, problem), steps = coverage.of(lambda case=case: judged(lambda: try_(case)))  # type: ignore[misc]
        ends[end] += 1
        if problem:
            problems.append(f"{problem} {case!r:.400}")
            print(f"case {number}: {problems[-1]}", flush=True)
        elif steps - known or number < len(seeds):
            kept.append(case)
        known |= steps
        number += 1
        first = len(known) if number == len(seeds) else first
    return Found(len(kept), (first, len(known)), ends, problems)


@dataclass(frozen=True, slots=True)
class File:
    """A data file and how it is read; `last` is "", ".gz" or ".zst", and `data` what is inside.

    `outer`: the compressed bytes are broken too, by this seed; None: they are not.
    """

    ending: str
    data: bytes
    last: str = ""
    outer: int | None = None
    split: str = "paragraphs"
    field: str | None = None

    def read(self, folder: Path) -> None:
        """Write it and read it to its end."""
        data = packed(self.data, self.last) if self.last else self.data
        data = data if self.outer is None else mutate(random.Random(self.outer), data, 1)
        read_all(folder / f"data{self.ending}{self.last}", data, self.split, self.field)


def vary(dice: random.Random, kept: Sequence[File]) -> File:
    """One of the files that were kept, the later ones more often, with something changed."""
    file = kept[max(dice.randrange(len(kept)), dice.randrange(len(kept)))]
    data = file.data
    if dice.random() < 0.15:
        other = dice.choice(kept).data
        data = data[: dice.randrange(len(data) + 1)] + other[dice.randrange(len(other) + 1) :]
    file = replace(file, data=mutate(dice, data, 8)[:100_000])
    if dice.random() < 0.2:
        file = replace(file, split=dice.choice(SPLITS), field=dice.choice(FIELDS))
    if file.ending != ".parquet" and dice.random() < 0.1:
        file = replace(file, ending=dice.choice([e for e in ENDINGS if e != ".parquet"]))
    if file.ending != ".parquet" and dice.random() < 0.1:
        file = replace(file, last=dice.choice(("", ".gz", ".zst")))
    return replace(file, outer=dice.randrange(2**32) if dice.random() < 0.1 else None)


def search(seconds: float, seed: int, folder: Path) -> Found:
    """Guided cases of the readers for so long."""
    dice, until = random.Random(seed), time.perf_counter() + seconds
    seeds = [File(ending, good_file(dice, ending)) for ending in ENDINGS]
    plain = [file for file in seeds if file.ending != ".parquet"]
    seeds += [replace(file, last=last) for file in plain for last in (".gz", ".zst")]
    files = map(str, Path(cloze.data.sources.__file__).parent.glob("*.py"))
    return guided(seeds, vary, lambda c: c.read(folder), files, dice, lambda _: time.perf_counter() < until)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--guided", type=float, metavar="SECONDS", help="guided cases of the readers instead")
    parser.add_argument("--only", choices=TARGETS, action="append", help="may be repeated")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.disable(logging.ERROR)
    signal.signal(signal.SIGALRM, _ring)
    if args.guided is not None:
        sys.exit(run_guided(args))
    names = args.only or list(TARGETS)
    ends: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    slowest, began = 0.0, time.perf_counter()
    before = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.first, args.first + args.cases):
            target = names[number % len(names)]
            start = time.perf_counter()
            end, problem = attempt(target, number, args.seed, Path(folder))
            slowest = max(slowest, time.perf_counter() - start)
            ends[f"{target} {end}"] += 1
            if problem:
                failures[problem.partition(":")[0] + ":" + problem.partition(":")[2].partition(":")[0]] += 1
                if failures.total() <= SHOWN or failures.most_common()[-1][1] == 1:
                    print(f"case {number} ({target}): {problem}", flush=True)
            if number - args.first == min(500, args.cases - 1):
                before = _peak()  # what imports and caches take is not growth
    grown = _peak() - before
    if grown > MEGABYTES:
        failures["memory"] += 1
        print(f"memory grew by {grown} MB")
    print(", ".join(f"{name}: {count:,}" for name, count in sorted(ends.items())))
    print(f"slowest case {slowest:.2f} s; memory grew by {grown} MB; {time.perf_counter() - began:.0f} s")
    if args.json:
        content = {"cases": args.cases, "seed": args.seed, "failed": failures.total(), "ends": ends}
        args.json.write_text(
            json.dumps(content | {"grown_mb": grown, "slowest": round(slowest, 2)}, indent=1) + "\n"
        )
    print(f"{args.cases:,} cases, {failures.total():,} failed")
    sys.exit(1 if failures else 0)


def run_guided(args: argparse.Namespace) -> int:
    """`--guided`; the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        search(0.0, args.seed, Path(folder))  # what imports and caches take is not growth
        before = _peak()
        found = search(args.guided, args.seed, Path(folder))
    grown = _peak() - before
    problems = found.problems + ([f"memory grew by {grown} MB"] if grown > MEGABYTES else [])
    print(", ".join(f"{name}: {count:,}" for name, count in sorted(found.ends.items())))
    first, last = found.steps
    print(f"{found.kept:,} cases kept; {first:,} steps of the code by good files, {last:,} in all")
    if args.json:
        content = {"seconds": args.guided, "seed": args.seed, "cases": found.ends.total(), "ends": found.ends}
        content |= {"kept": found.kept, "steps": found.steps, "failed": len(problems), "grown_mb": grown}
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{found.ends.total():,} cases, {len(problems):,} failed")
    return 1 if problems else 0


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
