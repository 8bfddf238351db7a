"""The text that ships inside the package, so that the first run needs no download.

Twelve public-domain books, 0.70 M words: enough to watch every part of a pretraining run, far too little
for a model worth keeping. Titles, source and rights are in `corpus/NOTICE.md`.
"""

from importlib.resources import files
from pathlib import Path

BOOKS = "cloze:books"
"""The embedded books as a data source; it names no folder, so a run can move with its clone."""


def books() -> Path:
    """The path of the packaged corpus: gzipped JSON lines, a book a line.

    Keys of a line: `title`, `author`, `year` (of first publication), `words` (their number) and `text`
    (markdown, a blank line between paragraphs).
    """
    return Path(str(files("cloze") / "data" / "corpus" / "books.jsonl.gz"))
