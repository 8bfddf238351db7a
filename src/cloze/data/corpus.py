"""From what the user named to text that is ready to be trained on: tokenizer, stores, held-out split."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from pydantic import Field, ValidationError, field_validator
from transformers import PreTrainedTokenizerFast

from cloze.config import Config, PathText
from cloze.data.blocks import PART_CHARS, Shard, blocks_of
from cloze.data.files import TextSplit, find_all
from cloze.data.heldout import HeldOut
from cloze.data.loader import Loader, special_tokens
from cloze.data.prepare import prepare
from cloze.data.remote import size_of
from cloze.data.rows import (
    Layout,
    Rows,
    build_rows,
    count_held_out,
    count_tokens,
    held_out_threshold,
    shared_text,
)
from cloze.data.sections import section_hash, split_sections
from cloze.data.shards import write_shard
from cloze.data.sources import Source, fingerprint, names_files, read
from cloze.data.store import FORMAT, INDEX, Store
from cloze.data.tokenizer_training import train_tokenizer
from cloze.data.tokenizers import (
    TokenizerReport,
    check_tokenizer,
    identity,
    load_tokenizer,
    save_tokenizer,
)
from cloze.data.vocabulary_extension import count_words, extend_tokenizer, mix
from cloze.errors import ClozeError

log = logging.getLogger("cloze")
EXTENSION_SAMPLE = 20_000_000  # characters that new tokens are learnt from

_NOTHING = "no text is given: use --data PATH (a file, folder, glob, store, address or hub id)"
Progress = Callable[[str, int, int], None]  # what is done, characters, tokens: each since the last call


class TrainTokenizer(Config):
    """A tokenizer trained on the run's own training text."""

    kind: Literal["train"] = "train"
    algorithm: Literal["bpe", "wordpiece", "characters"] = "bpe"
    vocabulary: int = Field(8192, ge=64, description="tokens; rounded to a multiple of 64")
    lowercase: bool = False
    sample: int = Field(
        50_000_000, ge=1000, description="characters that it is trained on, the first of each source"
    )


class LoadTokenizer(Config):
    """A tokenizer folder or hub id; without a path, the one in the model's folder."""

    kind: Literal["load"] = "load"
    path: PathText | None = None
    add_mask_token: bool = False
    extend: int = Field(
        0, ge=0, description="so many new tokens, learnt from the training text (docs/adapt.md)"
    )


TokenizerChoice = Annotated[TrainTokenizer | LoadTokenizer, Field(discriminator="kind")]


class Data(Config):
    """What is trained on.

    Attributes:
        sources: paths, globs, addresses, hub ids or stores, each with a weight; "news=0.7:news.jsonl" for
            short.
        text_field: name of the text column; guessed when there is only one.
        split_text: how .txt and .md files become documents.
        heldout: what is not trained on.
        store: folder for the tokenised corpus; by default a cache in the user's home. Not taken from a file.
    """

    sources: tuple[Source, ...] = ()
    text_field: str | None = None
    split_text: TextSplit = "paragraphs"
    heldout: HeldOut = HeldOut()
    store: PathText | None = None

    @field_validator("sources", mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list | tuple):
            return [Source.parse(v) if isinstance(v, str) else v for v in value]
        return value


@dataclass(frozen=True, slots=True)
class Corpus:
    """Tokenised text with its split.

    Attributes:
        tokenizer: the one that all stores were made with.
        stores: training text, one store a source; `held_out`: the stores that held-out text is in.
        limits: the hash up to which sections of a store are held out; None: nothing of it is.
        weights: of the sources.
        report: what the tokenizer makes of the text.
    """

    tokenizer: PreTrainedTokenizerFast
    stores: tuple[Store, ...]
    held_out: tuple[Store, ...]
    limits: tuple[int | None, ...]
    weights: tuple[float, ...]
    report: TokenizerReport

    def rows(self, layout: Layout) -> tuple[Rows, ...]:
        """Training rows of each source."""
        pairs = zip(self.stores, self.limits, strict=True)
        return tuple(build_rows(store, layout, limit, held_out=False) for store, limit in pairs)

    def loader(self, layout: Layout, seed: int) -> Loader:
        """Training batches in random order, for ever."""
        return self._loader(self.rows(layout), self.weights, seed)

    def held_out_loader(self, layout: Layout) -> Loader:
        """Held-out batches, each row once."""
        rows = tuple(build_rows(store, layout, limit, held_out=True) for store, limit in self._held_out())
        return self._loader(rows, (1.0,) * len(rows), None)

    def held_out_size(self) -> tuple[int, int]:
        """Characters and tokens of the held-out text."""
        sizes = [count_held_out(store, limit) for store, limit in self._held_out()]
        return sum(characters for characters, _ in sizes), sum(tokens for _, tokens in sizes)

    def _held_out(self) -> list[tuple[Store, int | None]]:
        limits = self.limits if self.held_out is self.stores else (None,) * len(self.held_out)
        return list(zip(self.held_out, limits, strict=True))

    def _loader(self, rows: tuple[Rows, ...], weights: tuple[float, ...], seed: int | None) -> Loader:
        pad = self.tokenizer.pad_token_id
        never = frozenset(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}
        return Loader(rows, weights, seed, pad, never)

    def counts(self, size: int) -> np.ndarray:
        """How often each id occurs in the training text, sources as they are drawn: [size] float64.

        Adds up to the tokens of the text, whatever the weights.
        """
        pairs = zip(self.stores, self.limits, strict=True)
        counts = [count_tokens(store, limit, held_out=False, size=size) for store, limit in pairs]
        if len(counts) == 1:
            return counts[0].astype(np.float64)
        mixed = sum(c * (w / max(1, c.sum())) for c, w in zip(counts, self.weights, strict=True))
        return np.asarray(mixed * (sum(c.sum() for c in counts) / max(mixed.sum(), 1e-300)))

    def shared(self) -> float:
        """Share of the held-out tokens whose section, word for word, is trained on as well."""
        return 0.0 if self.held_out is self.stores else shared_text(self.stores, self.held_out)

    def digests(self) -> dict[str, str]:
        """Digests of the tokenizer, and of the text with its split: equal ones are the same."""
        stores = [store.content for store in (*self.stores, *self.held_out)]
        contents = {"tokenizer": identity(self.tokenizer), "text": [stores, self.limits]}
        return {
            name: hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()
            for name, content in contents.items()
        }

    def layout(self, length: int, longest: int, alone: bool) -> Layout:
        """Rows of `length` tokens for this corpus' tokenizer."""
        return Layout(length, *special_tokens(self.tokenizer), longest=longest, alone=alone)


def open_corpus(
    data: Data,
    choice: TrainTokenizer | LoadTokenizer,
    model_path: str | None = None,
    objects: Sequence[Any] = (),
    progress: Progress | None = None,
) -> Corpus:
    """Read, tokenise and split what `data` names; what was done before is found again.

    Args:
        data: sources and held-out split.
        choice: of the tokenizer.
        model_path: where a tokenizer without a path is looked for.
        objects: `datasets` objects from Python, besides the sources.
        progress: called now and then with what is being done.
    """
    sources: list[Any] = [*data.sources, *objects]
    if not sources:
        raise ClozeError(_NOTHING)
    tokenizer = _tokenizer(data, sources, choice, model_path)
    if tokenizer.pad_token_id is None:
        raise ClozeError(
            "the tokenizer has no padding token: --set tokenizer.add_mask_token=true adds one "
            "(prepare: --add-mask-token)"
        )
    stores = tuple(_store(data, s, tokenizer, progress) for s in sources)
    weights = tuple(s.weight if isinstance(s, Source) else 1.0 for s in sources)
    if data.heldout.path:
        held: tuple[Store, ...] = (_store(data, Source.parse(data.heldout.path), tokenizer, progress),)
        limits: tuple[int | None, ...] = (None,) * len(stores)
    else:
        held = stores
        # One limit for all: a text that two sources share is on one side of it.
        limits = (held_out_threshold(stores, data.heldout),) * len(stores)
    return Corpus(tokenizer, stores, held, limits, weights, _look(tokenizer, stores[0]))


def _look(tokenizer: PreTrainedTokenizerFast, store: Store) -> TokenizerReport:
    texts = [
        str(tokenizer.decode(store.tokens(r, 0, 2000), skip_special_tokens=True))
        for r in range(min(8, len(store)))
    ]
    return check_tokenizer(tokenizer, [t for t in texts if t.split()] or ["?"])


def _tokenizer(
    data: Data, sources: Sequence[Any], choice: TrainTokenizer | LoadTokenizer, model_path: str | None
) -> PreTrainedTokenizerFast:
    made = [folder for s in sources if (folder := finished_store(s)) is not None]
    if isinstance(choice, LoadTokenizer) and choice.extend and made:
        raise ClozeError(
            f"tokenizer.extend: the tokenizer of the store {made[0]} is fixed: give the original text"
        )
    if isinstance(choice, LoadTokenizer) and (choice.path or model_path):
        tokenizer = load_tokenizer(choice.path or str(model_path), choice.add_mask_token)
        return _extended(data, sources, tokenizer, choice.extend) if choice.extend else tokenizer
    if made:
        log.info("the tokenizer is that of the store %s", made[0])
        return load_tokenizer(made[0] / "tokenizer")
    if isinstance(choice, LoadTokenizer):
        raise ClozeError(
            "tokenizer.path is missing: give a tokenizer folder or hub id, or tokenizer.kind=train"
        )
    whole = data.heldout.path is not None
    name = [choice.model_dump(), data.heldout.share, whole, *(_fingerprint(data, s) for s in sources)]
    folder = _cache(data) / "tokenizers" / _digest(name)
    if not (folder / "tokenizer.json").is_file():
        texts = _training_text(data, sources, choice.sample)
        first = next(texts, "")  # text that cannot be read is an error before anything is said
        log.info("training a tokenizer of %s tokens", f"{choice.vocabulary:,}")
        tokenizer = train_tokenizer(
            chain([first], texts), choice.algorithm, choice.vocabulary, choice.lowercase
        )
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        save_tokenizer(tokenizer, temporary)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    return load_tokenizer(folder)


def _extended(
    data: Data, sources: Sequence[Any], tokenizer: PreTrainedTokenizerFast, size: int
) -> PreTrainedTokenizerFast:
    """The tokenizer with new tokens from the training text."""
    weights = [s.weight if isinstance(s, Source) else 1.0 for s in sources]
    name = [size, identity(tokenizer), data.heldout.share, data.heldout.path is not None, weights]
    folder = _cache(data) / "tokenizers" / _digest([*name, *(_fingerprint(data, s) for s in sources)])
    if not (folder / "tokenizer.json").is_file():
        log.info("learning %s new tokens", f"{size:,}")
        part = EXTENSION_SAMPLE // len(sources)
        counts = [count_words(tokenizer, _training_text(data, [source], part)) for source in sources]
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        new, saved = extend_tokenizer(tokenizer, mix(counts, weights), size, temporary)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        examples = ", ".join(tokenizer.convert_tokens_to_string([token]).strip() for token in new[:3])
        log.info("%s new tokens (%s, …): %.1f%% fewer tokens", f"{len(new):,}", examples, 100 * saved)
    return load_tokenizer(folder)


def _training_text(data: Data, sources: Sequence[Any], characters: int) -> Iterator[str]:
    """Text for the tokenizer: the first part of each source, without what the share holds out."""
    limit = int(data.heldout.share * 2**64) if not data.heldout.path else -1
    for source in sources:
        left = characters // len(sources)
        documents = read(source, data.split_text, data.text_field)
        for text in chain.from_iterable(split_sections(document.text) for document in documents):
            if section_hash(text) > limit:
                yield text
                left -= len(text)
            if left <= 0:
                break


def _store(data: Data, source: Any, tokenizer: PreTrainedTokenizerFast, progress: Progress | None) -> Store:
    folder = finished_store(source)
    if folder is not None:
        store = Store.open(folder)
        if identity(load_tokenizer(store.tokenizer_folder)) != identity(tokenizer):
            raise ClozeError(
                f"{folder}: this store was made with another tokenizer; give the original text instead, "
                f"or tokenizer.kind=load with tokenizer.path={store.tokenizer_folder}"
            )
        return store
    name = source.path if isinstance(source, Source) else type(source).__name__
    print_ = _fingerprint(data, source)
    folder = _cache(data) / "stores" / _digest([FORMAT, print_, identity(tokenizer)])
    with _alone(folder):
        return prepare(
            blocks_of([source], data.split_text, data.text_field),
            tokenizer,
            folder,
            fingerprint=print_,
            progress=None if progress is None else lambda chars, tokens: progress(name, chars, tokens),
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While it lasts no other process makes this store: of runs that start together one does, others wait."""
    if (folder / INDEX).is_file():
        yield
        return
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("another process is tokenising the same text: waiting for it")
            lock.acquire()
    except (OSError, NotImplementedError) as error:  # a disk without locks, or one that cannot be written
        log.debug("%s: no lock (%s)", folder, error)
    try:
        yield
    finally:
        lock.release()


def finished_store(source: Any) -> Path | None:
    """The folder of a store that is named as a source; None: it is something else."""
    if not isinstance(source, Source):
        return None
    folder = Path(source.path).expanduser()
    return folder if (folder / INDEX).is_file() else None


def source_tokens(data: Data, source: Source) -> tuple[str, int]:
    """A line on a source's size, and its tokens (four characters each where it is not tokenised)."""
    folder = finished_store(source)
    if folder is not None:
        tokens = Store.open(folder).totals["tokens"]
        return f"{source.path}: {tokens:,} tokens", tokens
    if not names_files(source.path):
        return f"{source.path}: a hub data set of unknown size", 0
    sizes = [(file, size_of(file)) for file in find_all(source.path)]
    # Compressed text is about a third of its size; Parquet is compressed inside.
    text = sum(size * (3 if file.suffix in (".gz", ".zst", ".parquet") else 1) for file, size in sizes)
    files = f"{len(sizes)} file{'s' if len(sizes) > 1 else ''}"
    return f"{source.path}: {files}, about {text / 1e6:,.1f} MB or {text / 4e6:,.1f} M tokens", text // 4


def _fingerprint(data: Data, source: Any) -> str:
    return fingerprint(source, data.split_text, data.text_field)


def _cache(data: Data) -> Path:
    if data.store:
        return Path(data.store).expanduser()
    return cache_folder()


def cache_folder() -> Path:
    """Where tokenised text is kept: $CLOZE_CACHE, else cloze/ in the user's cache folder."""
    root = os.environ.get("CLOZE_CACHE")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cloze"


def _digest(parts: object) -> str:
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=10).hexdigest()


def make_store(
    sources: Sequence[Any],
    out: Path,
    *,
    tokenizer: str | None = None,
    vocabulary: int = 16384,
    algorithm: str = "bpe",
    text_field: str | None = None,
    split_text: str = "paragraphs",
    add_mask_token: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    shard: str | None = None,
    part_chars: int = PART_CHARS,
) -> dict[str, int]:
    """Tokenise sources into one store in the folder `out` (the command `cloze prepare`).

    Args:
        sources: as `Data.sources`.
        tokenizer: folder or hub id; None trains one of `vocabulary` tokens by `algorithm`.
        add_mask_token: to a tokenizer that has no mask or padding token.
        workers: processes; None is one per core.
        shard: "2/8" makes the second of eight shards of the store instead, for `cloze.data.shards.merge`.
        part_chars: characters of a part; the same for all shards.

    Returns: `records`, `tokens` and `chars` of the store or shard, and of a store `documents`.
    """
    try:
        given = {"sources": list(sources), "text_field": text_field, "split_text": split_text, "store": None}
        data = Data.model_validate(given)
        choice: TrainTokenizer | LoadTokenizer = LoadTokenizer(path=tokenizer, add_mask_token=add_mask_token)
        if tokenizer is None:
            choice = TrainTokenizer.model_validate({"algorithm": algorithm, "vocabulary": vocabulary})
    except ValidationError as error:
        first = error.errors()[0]
        raise ClozeError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']} (got {first['input']!r})"
        ) from error
    if not data.sources:
        raise ClozeError(_NOTHING)
    part = None if shard is None else Shard.parse(shard)
    loaded = _tokenizer(data, data.sources, choice, None)
    name = ", ".join(s.path for s in data.sources)
    blocks = blocks_of(data.sources, data.split_text, data.text_field, part_chars)
    common: dict[str, Any] = {
        "fingerprint": _digest([_fingerprint(data, s) for s in data.sources]),
        "workers": workers,
        "part_chars": part_chars,
        "progress": None if progress is None else lambda chars, tokens: progress(name, chars, tokens),
    }
    if part is not None:
        return write_shard(blocks, loaded, out, part, **common)
    return prepare(blocks, loaded, out, **common).totals
