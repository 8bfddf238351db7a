"""Which recipes a comparison has: names, sweeps, and that all are measured alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloze.comparison.arms import Sweep, differences, make_arms
from cloze.errors import ClozeError
from cloze.recipes.load import load_recipe


def test_recipes_and_sweeps_are_multiplied() -> None:
    arms = make_arms(["mlm", "spans"], "x.txt", sweeps=["masking.rate=0.15,0.3", "training.clip=1,2"])
    assert [arm.name for arm in arms] == [
        f"{recipe} rate={rate} clip={clip}"
        for recipe in ("mlm", "spans")
        for rate in (0.15, 0.3)
        for clip in (1, 2)
    ]
    assert [arm.recipe.masking.rate for arm in arms] == [0.15, 0.15, 0.3, 0.3] * 2
    assert {arm.recipe.data.sources[0].path for arm in arms} == {"x.txt"}
    assert differences(arms[3], arms[0]) == ["masking.rate: 0.15 -> 0.3", "training.clip: 1.0 -> 2.0"]
    assert len({arm.folder for arm in arms}) == 8
    assert all("/" not in arm.folder and " " not in arm.folder for arm in arms)


def test_values_may_be_mappings() -> None:
    sweep = Sweep.parse("masking={kind: uniform, rate: 0.15},{kind: spans, rate: 0.15}")
    assert [words for words, _ in sweep.settings()] == ["masking=uniform", "masking=spans"]
    arms = make_arms(["mlm"], "x", sweeps=["masking={kind: uniform, rate: 0.15},{kind: uniform, rate: 0.3}"])
    assert [arm.recipe.masking.rate for arm in arms] == [0.15, 0.3]
    assert arms[1].name == "mlm masking={kind: uniform, rate: 0.3}"
    assert arms[1].folder == "mlm-masking=-kind-uniform-rate-0.3"


def test_settings_for_all() -> None:
    arms = make_arms(["mlm", "spans"], "x", overrides=["masking.rate=0.2", "evaluation.times=3"])
    assert {arm.recipe.masking.rate for arm in arms} == {0.2}
    assert {arm.recipe.evaluation.times for arm in arms} == {3}


def test_all_are_measured_as_the_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("extends: spans\nevaluation: {times: 33}\ndata: {sources: [other.txt]}\n")
    with caplog.at_level("INFO", "cloze"):
        arms = make_arms(["mlm", str(own)])
    assert arms[1].name == "own"
    assert arms[1].recipe.evaluation == arms[0].recipe.evaluation
    assert arms[1].recipe.data == arms[0].recipe.data
    assert arms[1].recipe.masking.kind == "spans"
    assert "own: as for mlm: evaluation.times: 33 -> 10" in caplog.text


@pytest.mark.parametrize(
    ("recipes", "sweeps", "words"),
    [
        (["mlm"], [], "there is one recipe"),
        (["mlm"], ["masking.rate=0.3"], "there is one recipe"),
        (["mlm", "mlm"], [], "two recipes are named mlm"),
        (["mlm", "spnas"], [], "did you mean 'spans'"),
        (["mlm"], ["masking.rate"], "some.field=a,b,c"),
        (["mlm"], ["masking.rate="], "some.field=a,b,c"),
        (["mlm"], ["masking.rate=0.3,0.3"], "a value is there twice"),
        (["mlm"], ["masking.rate={a"], "not valid YAML"),
        (["mlm"], ["masking.rat=0.3,0.4"], "did you mean 'rate'"),
        (["mlm"], ["seed=0,1"], "seed must be the same"),
        (["mlm"], ["evaluation.rate=0.1,0.2"], "evaluation.rate must be the same"),
        (["mlm"], ["data.heldout.share=0.1,0.2"], "must be the same"),
        (["mlm"], ["training.budget=1h,2h"], "training.budget must be the same"),
        (["mlm", "adapt"], [], "recipe adapt starts from a model"),
    ],
)
def test_mistakes(recipes: list[str], sweeps: list[str], words: str) -> None:
    with pytest.raises(ClozeError) as error:
        make_arms(recipes, "x.txt", sweeps=sweeps)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_recipe_object_is_an_arm_too() -> None:
    mine = load_recipe("mlm", ["masking.rate=0.4", "name=mine"])
    assert [arm.name for arm in make_arms(["mlm", mine], "x")] == ["mlm", "mine"]
