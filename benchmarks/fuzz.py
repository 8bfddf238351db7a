"""Broken and hostile input by the thousand: whatever comes, the answer is a result or one line (ClozeError).

    python benchmarks/fuzz.py --cases 100000 --seed 0

Each case takes one of TARGETS in turn: a data file (every ending, plain and compressed) that `read` streams,
a recipe file, and `--set` texts with a `--data` text. Cases are good input with a few mutations, and pieces
that have broken readers elsewhere (HOSTILE), all drawn from --seed, so a case is found again by its number
(--first). A case fails by any exception that is no ClozeError, a message of more than one line, a document
that no tokenizer takes, or by running for longer than SECONDS; all of them together by memory that grows by
more than MEGABYTES. They are printed; the last line is "N cases, F failed", the exit code 0 only if none did.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from cloze.data.files import ENDINGS
from cloze.data.sources import Source, read
from cloze.errors import ClozeError
from cloze.recipes.load import dump, load_recipe, recipe_text, shipped

SECONDS, MEGABYTES, SHOWN = 20, 600, 5
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


def try_reader(dice: random.Random, folder: Path) -> None:
    """One data file of any kind, read to its end."""
    ending = dice.choice([e for e in ENDINGS if e != ".parquet" or dice.random() < 0.1])
    data = mutate(dice, good_file(dice, ending))
    if ending != ".parquet" and dice.random() < 0.3:
        packed = dice.choice((".gz", ".zst"))
        data = gzip.compress(data) if packed == ".gz" else pa.Codec("zstd").compress(data, asbytes=True)
        data, ending = mutate(dice, data, 1), ending + packed
    file = folder / f"data{ending}"
    file.write_bytes(data)
    field = dice.choice((None, None, None, "text", "n", "\ud800"))
    for document in read(Source(path=str(file)), dice.choice(("paragraphs", "lines", "file")), field):
        document.text.encode("utf-8")
        json.dumps(document.meta, ensure_ascii=False).encode("utf-8")


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
    """What became of a case ("read" or "refused"), and how it failed; None: it did not."""
    dice = random.Random(f"{seed} {number}")
    signal.alarm(SECONDS)
    try:
        TARGETS[target](dice, folder)
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


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", choices=TARGETS, action="append", help="may be repeated")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.disable(logging.ERROR)
    signal.signal(signal.SIGALRM, _ring)
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


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
