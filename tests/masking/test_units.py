"""Tokens, words and spans partition the maskable tokens and never cross a sample."""

from dataclasses import replace

import pytest
import torch
from helpers import CLS, Sample, by_sample, make_samples, pack, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from cloze.data.batch import Batch
from cloze.masking.units import Units, spans, tokens, words


def check(batch: Batch, units: Units) -> None:
    """A partition of the maskable tokens, in order, within samples."""
    assert torch.equal(units.of >= 0, batch.maskable)
    inside = units.of[batch.maskable]
    count = units.sample.numel()
    assert inside.unique().tolist() == list(range(count))
    assert (inside.diff() >= 0).all()
    assert (units.sample.diff() >= 0).all()
    assert torch.equal(units.sample[inside], batch.segments[batch.maskable])
    firsts = torch.full((count,), 10**6).scatter_reduce(0, inside, batch.index[batch.maskable], "amin")
    assert torch.equal(units.first, firsts)


def mixed() -> Batch:
    samples = make_samples([9, 1, 0, 30, 2, 17, 5])
    samples[3] = replace(samples[3], fixed=frozenset({0, 7, 8, 20, 29}))
    samples[4] = replace(samples[4], fixed=frozenset({0, 1}))
    return pack([samples[:3], [], samples[3:4], samples[4:]], length=40)


@pytest.mark.parametrize("cut", [tokens, words, lambda b: spans(b, 3, 3.0, 10)])
def test_units_partition_the_maskable_tokens(cut) -> None:  # type: ignore[no-untyped-def]
    batch = mixed()
    check(batch, cut(batch))


def test_the_check_finds_a_unit_that_crosses_samples() -> None:
    batch = mixed()
    joined = replace(batch, segments=torch.where(batch.segments == 1, 0, batch.segments))
    with pytest.raises(AssertionError):
        check(batch, words(joined))


def test_tokens_are_units_of_one() -> None:
    batch = mixed()
    assert tokens(batch).sample.numel() == int(batch.maskable.sum())


def test_words_are_the_tokenizers_own() -> None:
    sample = Sample(key=1, ids=(7, 8, 9, 10, 11, 12), units=(0, 0, 1, 2, 2, 2))
    other = Sample(key=2, ids=(7, 8), units=(2, 2))
    batch = pack([[sample, other]], length=12)
    assert words(batch).of.tolist() == [[-1, 0, 0, 1, 2, 2, 2, -1, -1, 3, 3, -1]]
    assert words(batch).first.tolist() == [0, 2, 3, 0]


def test_words_do_not_cross_samples_even_without_specials() -> None:
    """Neighbours that have the same unit number are two words."""
    batch = pack([[Sample(1, (7, 8), (0, 0)), Sample(2, (9,), (0,))]], length=8)
    bare = Batch(
        *(getattr(batch, n)[:, [1, 2, 5]] for n in ("ids", "segments", "index", "units", "maskable")),
        batch.keys,
        batch.visits,
    )
    assert CLS not in bare.ids
    assert words(bare).of.tolist() == [[0, 0, 1]]


def test_a_word_that_a_special_token_interrupts_is_two() -> None:
    sample = Sample(1, (7, 4, 9, 9), (0, 0, 0, 0), fixed=frozenset({1}))
    assert words(pack([[sample]], 6)).of.tolist() == [[-1, 0, -1, 1, 1, -1]]


def lengths(batch: Batch, units: Units) -> torch.Tensor:
    """Words in each span."""
    word = words(batch)
    start = torch.zeros(word.sample.numel(), dtype=torch.long)
    start[word.of[batch.maskable]] = units.of[batch.maskable]
    return torch.bincount(start)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 99), st.integers(1, 6))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_spans_are_runs_of_whole_words_no_longer_than_longest(
    sizes: list[int], seed: int, longest: int
) -> None:
    batch = pack([[s] for s in make_samples(sizes, seed)], length=44)
    units = spans(batch, seed, 4.0, longest)
    check(batch, units)
    if not units.sample.numel():
        return
    assert lengths(batch, units).max() <= longest
    word = words(batch).of
    for w in word[word >= 0].unique():
        assert units.of[word == w].unique().numel() == 1


@pytest.mark.parametrize(("mean", "longest"), [(1.0, 10), (3.0, 10), (3.0, 2), (5.0, 100)])
def test_span_lengths_are_geometric_cut_at_longest(mean: float, longest: int) -> None:
    n = 30_000
    batch = pack([[Sample(1, (7,) * n, tuple(range(n)))]], length=n + 2)
    found = lengths(batch, spans(batch, 0, mean, longest))[:-1].double()

    def expected(mean: float) -> float:
        return mean * (1 - (1 - 1 / mean) ** longest)

    error = float(found.std() / found.numel() ** 0.5)
    assert abs(float(found.mean()) - expected(mean)) <= 5 * error
    assert abs(float(found.mean()) - expected(mean + 0.25)) > 5 * error
    short = (found == 1).double().mean()
    if longest > 2:
        assert abs(float(short) - 1 / mean) < 5 * (0.25 / found.numel()) ** 0.5


def test_each_visit_and_seed_cuts_anew() -> None:
    (sample,) = make_samples([200])
    cuts = [
        spans(pack([[replace(sample, visit=visit)]], 202), seed, 3.0, 10).of.tolist()
        for visit, seed in ((0, 0), (1, 0), (0, 1), (0, 0))
    ]
    assert cuts[0] != cuts[1]
    assert cuts[0] != cuts[2]
    assert cuts[0] == cuts[3]


def test_units_do_not_depend_on_the_company() -> None:
    samples = make_samples([30, 12, 25, 3, 18])
    batch = pack([samples[:2], samples[2:4], samples[4:]], length=48)
    whole = by_sample(batch, _names(batch))
    for rows in ([2, 0], [1], [0, 1, 2]):
        part = rows_of(batch, rows)
        mine = by_sample(part, _names(part))
        assert mine == {k: v for k, v in whole.items() if k in mine}
    for sample in samples:
        alone = pack([[sample]], length=48)
        assert by_sample(alone, _names(alone)) == {sample.key: whole[sample.key]}


def _names(batch: Batch) -> torch.Tensor:
    """The first token of the span that each token is in."""
    units = spans(batch, 5, 3.0, 10)
    return torch.where(units.of >= 0, units.first[units.of.clamp(min=0)], -1)


@pytest.mark.parametrize("cut", [tokens, words, lambda b: spans(b, 3, 3.0, 10)])
def test_nothing_to_mask(cut) -> None:  # type: ignore[no-untyped-def]
    for batch in (pack([[]], 8), pack([make_samples([0, 0])], 8)):
        units = cut(batch)
        assert units.sample.numel() == 0
        assert (units.of == -1).all()


def test_a_span_leaves_half_of_its_sample() -> None:
    batch = pack([make_samples([12])], length=14)
    count = words(batch).sample.numel()
    for seed in range(200):
        found = spans(batch, seed, mean=50.0, longest=50)
        of_word = found.of.flatten()[(words(batch).of.flatten() >= 0)]
        sizes = [words(batch).of[found.of == u].unique().numel() for u in of_word.unique().tolist()]
        assert max(sizes) <= max(1, count // 2)
        assert sum(sizes) == count
