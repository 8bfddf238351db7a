import gzip
import json

import pytest

from cloze.data.embedded import books


@pytest.fixture(scope="module")
def rows():
    with gzip.open(books(), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_twelve_books_with_the_documented_keys(rows):
    assert len(rows) == 12
    assert len({row["title"] for row in rows}) == 12
    for row in rows:
        assert set(row) == {"title", "author", "year", "words", "text"}
        assert row["words"] == len(row["text"].split())
        assert "\n\n" in row["text"]


def test_every_book_is_old_enough_to_be_in_the_public_domain(rows):
    assert all(isinstance(row["year"], int) and row["year"] < 1930 for row in rows)


def test_the_notice_names_every_book(rows):
    notice = books().with_name("NOTICE.md").read_text(encoding="utf-8")
    for row in rows:
        assert f"| {row['title']} | {row['author']} | {row['year']} | {row['words']:,} |" in notice
    assert f"{sum(row['words'] for row in rows):,} words" in notice
