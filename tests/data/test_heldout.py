"""What is held out depends on the text only, is never too little, and never everything."""

import numpy as np
import pytest
from pydantic import ValidationError

from cloze.data.heldout import HeldOut, threshold
from cloze.errors import ClozeError

Parts = list[tuple[np.ndarray, np.ndarray]]


def corpus(sections: int = 2000, tokens: int = 100, parts: int = 4, seed: int = 0) -> Parts:
    hashes = np.random.default_rng(seed).integers(0, 2**64, sections, np.uint64)
    return [(h, np.full(h.size, tokens)) for h in np.array_split(hashes, parts)]


def held(parts: Parts, limit: int) -> int:
    return sum(int(tokens[hashes <= np.uint64(limit)].sum()) for hashes, tokens in parts)


def test_a_share_of_the_sections_is_held_out() -> None:
    parts = corpus(sections=20_000)
    limit = threshold(parts, HeldOut(share=0.1, minimum=1000))
    assert limit == int(0.1 * 2**64)
    assert abs(held(parts, limit) / 2_000_000 - 0.1) < 0.011  # five standard deviations
    assert abs(held(parts, 2 * limit) / 2_000_000 - 0.1) > 0.011


def test_the_minimum_is_met_by_as_few_sections_as_will_do() -> None:
    parts = corpus()
    config = HeldOut(share=0.001, minimum=20_050)
    limit = threshold(parts, config)
    assert held(parts, limit) == 20_100
    assert held(parts, limit - 1) == 20_000


def test_parts_and_their_order_do_not_matter() -> None:
    for config in (HeldOut(share=0.05, minimum=100), HeldOut(share=0.001, minimum=20_000)):
        limits = {threshold(corpus(parts=n)[::step], config) for n in (1, 4, 7) for step in (1, -1)}
        assert len(limits) == 1


def test_parts_may_come_one_by_one_and_be_empty() -> None:
    empty = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    config = HeldOut(share=0.001, minimum=20_000)
    assert threshold(iter([empty, *corpus(), empty]), config) == threshold(corpus(), config)


@pytest.mark.parametrize("tokens", [0, 15_000, 39_000])
def test_too_short_a_text_is_an_error_that_says_what_to_do(tokens: int) -> None:
    parts = corpus(sections=tokens // 100)
    with pytest.raises(ClozeError) as error:
        threshold(parts, HeldOut(share=0.02, minimum=20_000))
    message = str(error.value)
    assert f"{tokens:,} tokens" in message
    assert "data.heldout.minimum=20,000" in message
    assert "data.heldout.path" in message
    assert "\n" not in message


def test_text_of_twice_the_minimum_is_enough() -> None:
    assert held(corpus(sections=400), threshold(corpus(sections=400), HeldOut(minimum=20_000))) == 20_000


def test_equal_sections_are_held_out_together_so_they_must_not_be_all_there_is() -> None:
    """Repeated text has one hash; holding it out would leave nothing to train on."""
    same = [(np.full(1000, 12345, np.uint64), np.full(1000, 100))]
    with pytest.raises(ClozeError, match="too short"):
        threshold(same, HeldOut(share=0.02, minimum=20_000))


def test_the_share_must_leave_something_to_train_on() -> None:
    low = [(np.array([1, 2, 2**63], np.uint64), np.array([1000, 1000, 10]))]
    with pytest.raises(ClozeError, match="too short"):
        threshold(low, HeldOut(share=0.02, minimum=100))


@pytest.mark.parametrize("given", [{"share": 0.0}, {"share": 0.5}, {"minimum": 0}, {"shares": 0.1}])
def test_bad_values_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        HeldOut.model_validate(given)
