"""The collator: its masks by themselves, beside what the stock collator makes of the same rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conftest import story
from helpers import CLS, FIRST, MASK, PAD, SEP, SIZE, UNK, word_tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from cloze.corruption.replace import Replace
from cloze.data.tokenizer_training import train_tokenizer
from cloze.errors import ClozeError
from cloze.integrations.transformers import MaskingCollator, with_word_ids
from cloze.masking import POLICIES, Masking
from cloze.masking.frequency import Frequency
from cloze.masking.fully_explored import FullyExplored
from cloze.masking.rate import RateSchedule
from cloze.masking.uniform import Uniform
from cloze.masking.words import Words

SPECIAL = torch.tensor([PAD, UNK, CLS, SEP, MASK])


def collator(policy: Any = "uniform", epoch: int = 0, **options: Any) -> MaskingCollator:
    made = MaskingCollator(word_tokenizer(), policy, **options)
    made.set_epoch(epoch)
    return made


def hidden(batch: dict[str, Tensor]) -> Tensor:
    return batch["labels"] != -100


def text_of(rows: Sequence[dict[str, list[int]]], batch: dict[str, Tensor]) -> Tensor:
    """[rows, length] bool: neither special nor padding, from the rows themselves."""
    flags = torch.zeros_like(batch["labels"], dtype=torch.bool)
    for r, row in enumerate(rows):
        flags[r, 1 : len(row["input_ids"]) - 1] = True
    return flags


def uneven(count: int, seed: int = 0) -> list[dict[str, list[int]]]:
    draw = random.Random(seed)
    return [
        {"input_ids": [CLS, *(draw.randrange(FIRST, SIZE) for _ in range(draw.randrange(1, 40))), SEP]}
        for _ in range(count)
    ]


# -- what comes out ------------------------------------------------------------------------------------------


def test_a_batch_has_what_the_stock_collator_gives(rows: list[dict[str, list[int]]]) -> None:
    rows = [row | {"token_type_ids": [0] * 3 + [1] * (len(row["input_ids"]) - 3)} for row in rows]
    stock = DataCollatorForLanguageModeling(word_tokenizer(), pad_to_multiple_of=8)(rows)
    ours = collator(pad_to_multiple_of=8)(rows)
    assert ours.keys() == stock.keys() == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    for name in ("attention_mask", "token_type_ids"):
        assert torch.equal(ours[name], stock[name])
    masked = hidden(ours)
    clean = torch.where(masked, ours["labels"], ours["input_ids"])
    want = word_tokenizer().pad([{"input_ids": row["input_ids"]} for row in rows], pad_to_multiple_of=8)
    assert clean.tolist() == want["input_ids"]
    assert ours["input_ids"].shape[1] % 8 == 0


def test_special_tokens_and_padding_are_never_masked_and_every_row_has_a_mask() -> None:
    rows = [*uneven(60), {"input_ids": [CLS, 7, MASK, 8, SEP, 9, UNK, 10, SEP]}]
    for policy in (Uniform(rate=0.15), Uniform(rate=1.0)):
        batch = collator(policy)(rows)
        clean = word_tokenizer().pad(rows, return_tensors="pt")["input_ids"]
        assert not (hidden(batch) & torch.isin(clean, SPECIAL)).any()
        assert hidden(batch).any(dim=1).all()
    assert torch.equal(hidden(batch), ~torch.isin(clean, SPECIAL))
    stock = DataCollatorForLanguageModeling(word_tokenizer(), seed=0)(rows)
    assert not (stock["labels"] != -100).any(dim=1).all()  # the stock collator leaves short rows without


def test_a_special_tokens_mask_is_honoured() -> None:
    row = {"input_ids": [CLS, 7, 8, 9, 10, SEP], "special_tokens_mask": [1, 0, 1, 1, 0, 1]}
    batch = collator(Uniform(rate=1.0))([row])
    assert "special_tokens_mask" not in batch
    assert hidden(batch).tolist() == [[False, True, False, False, True, False]]


def test_the_rate_is_exact_up_to_rounding() -> None:
    rows = uneven(80)
    batch = collator(Uniform(rate=0.3))(rows)
    sizes = text_of(rows, batch).sum(dim=1)
    counts = hidden(batch).sum(dim=1)
    assert ((counts - (0.3 * sizes).clamp(min=1.0)).abs() < 1.0).all()
    stock = DataCollatorForLanguageModeling(word_tokenizer(), mlm_probability=0.3, seed=0)(rows)
    spread = (stock["labels"] != -100).sum(dim=1) - 0.3 * sizes
    assert (spread.abs() > 1.0).any()


def test_rows_may_be_lists_tensors_and_encodings() -> None:
    tokenizer = word_tokenizer()
    encoding = tokenizer("w5 w6 w7 w8 w9 w10")
    ids = encoding["input_ids"]
    forms: list[Any] = [ids, torch.tensor(ids), {"input_ids": torch.tensor(ids)}, encoding]
    batches = [collator()([form, form]) for form in forms]
    for batch in batches:
        assert torch.equal(batch["labels"], batches[0]["labels"])
        assert torch.equal(batch["input_ids"], batches[0]["input_ids"])


def test_replacements_come_from_the_whole_vocabulary_without_specials() -> None:
    """The stock collator puts special tokens into the text; another trainer draws below the largest id."""
    rows = [{"input_ids": [CLS, *[FIRST] * 60, SEP]} for _ in range(1)]
    made = collator(Uniform(rate=1.0), corruption=Replace(mask=0.0, random=1.0))
    stock = DataCollatorForLanguageModeling(
        word_tokenizer(), mlm_probability=1.0, mask_replace_prob=0.0, random_replace_prob=1.0, seed=0
    )
    ours, theirs = [], []
    for epoch in range(60):
        made.set_epoch(epoch)
        batch = made(rows)
        ours.append(batch["input_ids"][hidden(batch)])
        batch = stock([dict(row) for row in rows])
        theirs.append(batch["input_ids"][batch["labels"] != -100])
    assert sorted(set(torch.cat(ours).tolist())) == list(range(FIRST, SIZE))
    assert set(torch.cat(theirs).tolist()) & {PAD, UNK, CLS, SEP}


# -- what masks depend on ------------------------------------------------------------------------------------


def test_masks_are_a_function_of_seed_content_and_epoch(rows: list[dict[str, list[int]]]) -> None:
    first = collator(epoch=3)(rows)
    torch.manual_seed(5)
    collator()(rows)
    assert torch.equal(collator(epoch=3)(rows)["input_ids"], first["input_ids"])
    backwards = collator(epoch=3)(rows[::-1])
    assert torch.equal(backwards["labels"].flip(0), first["labels"])
    assert not torch.equal(collator(epoch=4)(rows)["labels"], first["labels"])
    assert not torch.equal(collator(epoch=3, seed=1)(rows)["labels"], first["labels"])


def test_masks_do_not_depend_on_the_padding(rows: list[dict[str, list[int]]]) -> None:
    def masked(made: MaskingCollator, some: list[Any]) -> list[list[int]]:
        batch = made(some)
        attended = batch["attention_mask"].bool()
        return [line[seen].tolist() for line, seen in zip(batch["labels"], attended, strict=True)]

    left = word_tokenizer()
    left.padding_side = "left"
    wide, leftward = collator(pad_to_multiple_of=64), MaskingCollator(left)
    leftward.set_epoch(0)
    alone = [masked(collator(), [row])[0] for row in rows]
    assert alone == masked(collator(), rows) == masked(wide, rows) == masked(leftward, rows)


def test_equal_rows_have_equal_masks_in_an_epoch_and_near_ones_have_others() -> None:
    row = [CLS, *range(FIRST, FIRST + 30), SEP]
    swapped = [CLS, FIRST + 1, FIRST, *row[3:]]
    batch = collator()([row, row, swapped])
    assert torch.equal(batch["input_ids"][0], batch["input_ids"][1])
    assert not torch.equal(hidden(batch)[0], hidden(batch)[2])


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_see_the_epoch_and_change_no_mask(rows: list[dict[str, list[int]]], workers: int) -> None:
    made = collator()
    loader: DataLoader[Any] = DataLoader(
        rows, 4, collate_fn=made, num_workers=workers, persistent_workers=workers > 0
    )
    for epoch in (0, 1, 5):
        made.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == 4
        for i, batch in enumerate(batches):
            want = collator(epoch=epoch)(rows[4 * i : 4 * i + 4])
            assert all(torch.equal(batch[name], want[name]) for name in want)


def test_a_sweep_over_the_epochs_predicts_every_token_once(rows: list[dict[str, list[int]]]) -> None:
    made = collator(FullyExplored(rate=0.2))
    seen = 0
    for epoch in range(5):
        made.set_epoch(epoch)
        batch = made(rows)
        seen = seen + hidden(batch).int()
    assert torch.equal(seen, text_of(rows, batch).int())


def test_copies_of_one_step_are_rows(rows: list[dict[str, list[int]]]) -> None:
    batch = collator(FullyExplored(rate=0.2, same_step=5))(rows)
    assert {column.shape[0] for column in batch.values()} == {80}
    total = hidden(batch).view(5, 16, -1).sum(dim=0)
    assert torch.equal(total.bool(), text_of(rows, {"labels": batch["labels"][:16]}))
    assert total.max() == 1


def test_a_rate_schedule_moves_with_the_epochs() -> None:
    rows = uneven(60)
    made = collator(Uniform(rate=RateSchedule(start=0.4, end=0.2)))
    with pytest.raises(ClozeError, match="number of epochs"):
        made(rows)
    shares = []
    for epoch in range(4):
        made.set_epoch(epoch, 4)
        batch = made(rows)
        shares.append(float(hidden(batch).sum() / text_of(rows, batch).sum()))
    assert shares == pytest.approx([0.375, 0.325, 0.275, 0.225], abs=0.02)


# -- probabilities -------------------------------------------------------------------------------------------


def frequencies(policy: Masking, rows: list[Any], epochs: int) -> tuple[Tensor, Tensor]:
    """How often each token was predicted, and its mean weight, over many epochs."""
    made = collator(policy, weights=True)
    count, weight = 0, 0
    for epoch in range(epochs):
        made.set_epoch(epoch)
        batch = made(rows)
        count, weight = count + hidden(batch).double(), weight + batch["token_weights"].double()
    return count / epochs, weight / epochs


def deviation(frequency: Tensor, pi: Tensor, epochs: int) -> float:
    """The largest difference between frequencies and π, in standard errors."""
    return float(((frequency - pi).abs() / (pi * (1 - pi) / epochs).sqrt()).max())


@pytest.mark.parametrize("kind", ["uniform", "balanced"])
def test_masks_have_the_stated_probabilities(kind: str) -> None:
    rows = [[CLS, *range(FIRST, FIRST + n), SEP] for n in (3, 10, 25)]
    frequency, _ = frequencies(POLICIES[kind](rate=0.2), rows, 320)
    for r, n in enumerate((3, 10, 25)):
        pi = torch.full((n,), max(0.2, 1 / n), dtype=torch.float64)
        assert deviation(frequency[r, 1 : n + 1], pi, 320) < 5
        assert deviation(frequency[r, 1 : n + 1], 2 * pi, 320) > 5  # a wrong π is found


def test_weights_are_p_over_pi_and_make_up_for_it(tilted: Masking) -> None:
    row = [CLS, *range(FIRST, FIRST + 40), SEP]
    frequency, weight = frequencies(tilted, [row], 800)
    odd = torch.tensor(row[1:-1]) % 2 == 1
    pi = torch.where(odd, 0.6, 0.15).double()
    assert deviation(frequency[0, 1:-1], pi, 800) < 5
    assert deviation(frequency[0, 1:-1], torch.full_like(pi, 0.3), 800) > 5
    error = (0.3**2 * (1 / pi - 1) / 800).sqrt()
    assert ((weight[0, 1:-1] - 0.3).abs() / error < 5).all()
    batch = collator(tilted, weights=True)([row])
    assert batch["reference_mass"].tolist() == pytest.approx([0.3 * 40])
    assert set(batch["token_weights"][hidden(batch)].tolist()) == {0.5, 2.0}


def test_a_policy_that_asks_for_counts_gets_them() -> None:
    row = [CLS, *range(FIRST, FIRST + 40), SEP]
    counts = torch.where(torch.arange(SIZE) % 2 == 1, 1, 1000)
    made = collator(Frequency(rate=0.3, reweight=True), counts=counts, weights=True)
    weights = made([row])["token_weights"]
    assert weights[weights > 0].unique().numel() == 2
    with pytest.raises(ClozeError, match="counts="):
        collator("frequency")


# -- words ---------------------------------------------------------------------------------------------------


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """With short pieces, so that words have several tokens.

    "untrimmed" is a byte-level tokenizer as in the GPT-NeoX family, whose offsets leave no gap between words.
    """
    stories = (story(i) for i in range(4))
    if kind == "wordpiece":
        return train_tokenizer(stories, "wordpiece", 128)
    made = train_tokenizer(stories, "bpe", 320)
    if kind == "untrimmed":
        ends = [(token, made.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
        made.backend_tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=ends
        )
    return made


@pytest.fixture(scope="module", params=["bpe", "wordpiece", "untrimmed"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return make_tokenizer(request.param)


def words_of(tokenizer: PreTrainedTokenizerFast, text: str, length: int) -> list[list[int]]:
    """Places of the tokens of each word in the encoded text, from offsets and white space alone."""
    encoding = tokenizer(text, truncation=True, max_length=length, return_offsets_mapping=True)
    words: dict[int, list[int]] = {}
    for place, (start, stop) in enumerate(encoding["offset_mapping"]):
        piece = text[start:stop]
        if piece.strip() and piece.strip() != ".":
            start += len(piece) - len(piece.lstrip())
            words.setdefault(len(text[:start].split()) + text[:start].endswith(" "), []).append(place)
    return list(words.values())


def test_whole_words_are_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [story(i, 3).replace("\n", " ") for i in range(10, 30)]
    rows = with_word_ids(tokenizer, truncation=True, max_length=60)({"text": texts})
    assert rows.keys() == {"input_ids", "attention_mask", "word_ids"}
    features = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    for policy in (Words(rate=0.3), FullyExplored(rate=0.3, units="words")):
        made = MaskingCollator(tokenizer, policy)
        made.set_epoch(0)
        batch = made(features)
        several = 0
        for line, text in zip(hidden(batch), texts, strict=True):
            for word in words_of(tokenizer, text, 60):
                several += len(word) > 1
                assert line[word].all() or not line[word].any()
        assert several > 100
        rate = hidden(batch).sum() / batch["attention_mask"].sum()
        assert 0.2 < rate < 0.4
        assert hidden(batch).any(dim=1).all()
        share = (batch["input_ids"][hidden(batch)] == tokenizer.mask_token_id).float().mean()
        assert 0.7 < share < 0.9  # 80/10/10 for words, too
    loose = MaskingCollator(tokenizer, Uniform(rate=0.3))
    loose.set_epoch(0)
    broken = hidden(loose(features))
    assert any(
        line[word].any() and not line[word].all()
        for line, text in zip(broken, texts, strict=True)
        for word in words_of(tokenizer, text, 60)
    )


def test_the_stock_collator_takes_byte_level_text_for_one_word() -> None:
    """The control: with the tokenizer "untrimmed" it masks all of a row or nothing."""
    tokenizer = make_tokenizer("untrimmed")
    texts = [story(i, 3).replace("\n", " ") for i in range(10, 60)]
    encoded = tokenizer(texts, padding=True, return_offsets_mapping=True, return_special_tokens_mask=True)
    features = [{name: values[i] for name, values in encoded.items()} for i in range(len(texts))]
    stock = DataCollatorForLanguageModeling(
        tokenizer, whole_word_mask=True, mask_replace_prob=1.0, random_replace_prob=0.0, seed=0
    )
    batch = stock(features)
    share = (batch["labels"] != -100).sum(dim=1) / (batch["attention_mask"].sum(dim=1) - 2)
    assert ((share == 0.0) | (share == 1.0)).all()


def test_words_survive_windows_and_a_tokenizer_that_truncates(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer("a", truncation=True, max_length=4)  # leaves its truncation in the tokenizer
    options = {"truncation": True, "max_length": 16, "stride": 2, "return_overflowing_tokens": True}
    rows = with_word_ids(tokenizer, **options)({"text": [story(1, 4), story(2, 2)]})
    assert [len(x) for x in rows["word_ids"]] == [len(x) for x in rows["input_ids"]]
    assert len(rows["input_ids"]) > 4
    assert max(len(set(x)) for x in rows["word_ids"]) > 4


def test_a_policy_of_words_wants_words(rows: list[dict[str, list[int]]]) -> None:
    for policy in ("words", "spans", {"kind": "fully_explored", "units": "words"}):
        with pytest.raises(ClozeError, match="with_word_ids"):
            collator(policy)(rows)
    named = [row | {"word_ids": [None, *range(len(row["input_ids"]) - 2), None]} for row in rows]
    assert hidden(collator("words")(named)).any()
    with_them, without = collator()(named), collator()(rows)
    assert with_them.keys() == without.keys()
    assert torch.equal(with_them["labels"], without["labels"])


# -- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("mapnet", "masking mapnet needs a model"),
        ("difficulty", "masking difficulty needs a model"),
        ("unifrom", "unknown kind 'unifrom': known are"),
        ({"kind": "uniform", "rate": 2.0}, r"masking.rate.*2.0"),
        ({"kind": "spans", "mena": 2}, "masking.mena"),
    ],
)
def test_a_policy_that_cannot_be_used_is_refused(policy: Any, says: str) -> None:
    with pytest.raises(ClozeError, match=says):
        collator(policy)
    with pytest.raises(ClozeError, match="needs a model"):
        collator("mapnet", counts=torch.ones(SIZE))


def test_an_unknown_epoch_is_an_error(rows: list[dict[str, list[int]]]) -> None:
    with pytest.raises(ClozeError, match="EpochCallback"):
        MaskingCollator(word_tokenizer())(rows)


def test_weights_are_not_lost_silently(rows: list[dict[str, list[int]]], tilted: Masking) -> None:
    with pytest.raises(ClozeError, match="MaskingTrainer"):
        collator(tilted)(rows)
    assert "token_weights" in collator(tilted, weights=True)(rows)


def test_a_tokenizer_without_a_mask_token_is_refused() -> None:
    tokenizer = word_tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(ClozeError, match="mask_token"):
        MaskingCollator(tokenizer)
