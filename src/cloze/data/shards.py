"""One store made by many machines: each writes a shard, and a merge joins them without touching the text.

A shard is a folder of parts, as a store is. Because parts do not go over the ends of blocks (blocks.py), the
whole store has the same part files: the merge gives them their names and writes the index.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from transformers import PreTrainedTokenizerFast

from cloze import __version__
from cloze.data.blocks import PART_CHARS, Block, Cutter, Shard
from cloze.data.prepare import (
    Progress,
    contents,
    digest_of,
    finish,
    key_of,
    open_same,
    write_json,
    write_parts,
)
from cloze.data.store import FORMAT, INDEX, PARTIAL, SHARD, Store
from cloze.errors import ClozeError

_SAME = {
    "of": "is one of another number of shards",
    "versions": "was made by another version",
    "tokenizer": "was made with another tokenizer",
    "fingerprint": "was made from other text (paths, sizes and times of files, and options, must agree)",
    "key": "was made with other options",
    "vocabulary": "was made with another tokenizer",
}


def shard_folder(out: Path, shard: Shard) -> Path:
    """Where a shard of the store `out` is written."""
    return out / f"shard-{shard.number:05d}-of-{shard.of:05d}"


def write_shard(
    blocks: Sequence[Block],
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    shard: Shard,
    *,
    fingerprint: str,
    workers: int | None = None,
    part_chars: int = PART_CHARS,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Tokenise one shard of the blocks into its own folder below `out`; arguments as for `prepare`.

    A finished shard, or a finished store in `out`, is left as it is; an interrupted shard goes on after its
    finished parts. A shard may be empty.

    Returns: `records`, `tokens` and `chars` of the shard.

    Errors: as `prepare`.
    """
    key = key_of(fingerprint, tokenizer, part_chars)
    if (store := open_same(out, key)) is not None:
        return store.totals
    folder = shard_folder(out, shard)
    about: dict[str, Any] = {
        "format": FORMAT,
        "number": shard.number,
        "of": shard.of,
        "versions": f"cloze {__version__}, tokenizers {tokenizers.__version__}",
        "tokenizer": digest_of(tokenizer.backend_tokenizer.to_str()),
        "fingerprint": fingerprint,
        "key": key,
        "vocabulary": len(tokenizer),
    }
    found = _index(folder / SHARD)
    if found is None or {name: found.get(name) for name in about} != about:
        if found is not None:  # a shard of other data: its parts are not kept
            write_json(folder / PARTIAL, {"key": None})
            (folder / SHARD).unlink()
        cutter = Cutter(blocks, part_chars, shard)
        parts = write_parts(cutter, tokenizer, folder, digest_of(key, str(shard)), workers, progress)
        counts = [[block, *counted] for block, counted in cutter.counts.items()]
        found = about | {"blocks": counts, "parts": parts}
        write_json(folder / SHARD, found)
        (folder / PARTIAL).unlink(missing_ok=True)
    return {name: sum(part[name] for part in found["parts"]) for name in ("records", "tokens", "chars")}


def merge(out: Path) -> Store:
    """Make one store of the shards in the folder `out`, and open it: the files that one machine would write.

    Parts are linked (copied, where the file system has no links), then the index is written, then the shards
    are deleted. Before the index is there the folder is no store, and the merge can be repeated.

    Errors: no shards, or a shard that is missing, unfinished, there twice, damaged, or not of the same text,
    tokenizer, options, version and number of shards as the others.
    """
    folders = sorted(out.glob("shard-*-of-*"))
    if (out / INDEX).exists():  # merged before, and perhaps stopped while the shards were deleted
        store = Store.open(out)
        if any((_index(folder / SHARD) or {}).get("key", store.key) != store.key for folder in folders):
            raise ClozeError(f"{out}: holds a store of other data than its shards; delete one or the other")
    elif not folders:
        raise ClozeError(f"{out}: no shards here; cloze prepare --shard 1/N --out {out} makes one of them")
    else:
        _join(out, _read(folders))
        store = Store.open(out)
    for folder in folders:
        shutil.rmtree(folder)
    return store


def _join(out: Path, shards: dict[Path, dict[str, Any]]) -> None:
    """Make the store of shards that add up."""
    first = _checked(out, shards)
    counts = _counts(shards)
    parts = [part | {"folder": folder} for folder, about in shards.items() for part in about["parts"]]
    parts.sort(key=lambda part: (part["block"], part["turn"]))
    _complete(out, parts, counts)
    content = contents(parts, counts)
    try:
        for left in (*out.glob("part-*.arrow"), *out.glob(".part-*.tmp")):  # by a merge that was stopped
            left.unlink()
        for part, listed in zip(parts, content["parts"], strict=True):
            _link(part["folder"] / part["file"], out / listed["file"])
        shutil.copytree(next(iter(shards)) / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    except OSError as error:
        raise ClozeError(f"{out}: cannot be merged ({error}); merge again") from None
    finish(out, content, first["fingerprint"], first["key"], first["vocabulary"])


def _read(folders: Iterable[Path]) -> dict[Path, dict[str, Any]]:
    """What each shard says of itself. Errors: one that is unfinished or cannot be read."""
    found = {}
    for folder in folders:
        about = _index(folder / SHARD)
        if about is None:
            raise ClozeError(f"{folder}: this shard is unfinished; prepare it again, it goes on from there")
        if about.get("format") != FORMAT:
            raise ClozeError(f"{folder}: shard of format {about.get('format')}, this version makes {FORMAT}")
        found[folder] = about
    return found


def _index(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _checked(out: Path, shards: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    """The first of the shards. Errors: one of another kind than the first, one missing, one twice."""
    (first_folder, first), *others = shards.items()
    for folder, about in others:
        for name, what in _SAME.items():
            if about.get(name) != first.get(name):
                raise ClozeError(
                    f"{folder}: {what} ({_short(about.get(name))}) than {first_folder.name} "
                    f"({_short(first.get(name))}); delete the wrong one"
                )
    numbers: dict[int, Path] = {}
    for folder, about in shards.items():
        twice = numbers.setdefault(about["number"], folder)
        if twice != folder:
            raise ClozeError(f"{folder}: is shard {about['number']} as {twice.name} is; delete one of them")
    missing = [str(number) for number in range(1, first["of"] + 1) if number not in numbers]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ClozeError(
            f"{out}: of {first['of']} shards these are missing: {shown}; "
            f"prepare them by --shard {missing[0]}/{first['of']}"
        )
    return first


def _short(value: object) -> str:
    return str(value) if len(str(value)) < 60 else f"{str(value)[:57]}…"


def _counts(shards: dict[Path, dict[str, Any]]) -> dict[int, list[int]]:
    """[documents, parts] of each block. Errors: two shards have read different things in it."""
    counts: dict[int, list[int]] = {}
    for folder, about in shards.items():
        for block, *counted in about["blocks"]:
            if counts.setdefault(block, counted) != counted:
                raise ClozeError(
                    f"{folder}: block {block} has {counted[0]:,} documents here and {counts[block][0]:,} in "
                    "another shard: the text has changed meanwhile; prepare the shards again"
                )
    return counts


def _complete(out: Path, parts: Iterable[dict[str, Any]], counts: dict[int, list[int]]) -> None:
    """Errors: the parts are not exactly those of the blocks, or a file is not as it was written."""
    found = sorted((part["block"], part["turn"]) for part in parts)
    if found != [(block, turn) for block in sorted(counts) for turn in range(counts[block][1])]:
        raise ClozeError(f"{out}: the shards do not add up; delete them and prepare them again")
    for part in parts:
        file = part["folder"] / part["file"]
        size = file.stat().st_size if file.exists() else None
        if size != part["bytes"]:
            state = "is missing" if size is None else f"has {size:,} bytes instead of {part['bytes']:,}"
            raise ClozeError(
                f"{file}: this part {state}; copy the shard again, or delete and prepare it again"
            )


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it: whole, under its name, or not at all."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        os.link(source, temporary)
    except OSError:  # no links here
        shutil.copyfile(source, temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
    os.replace(temporary, target)
