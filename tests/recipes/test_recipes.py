"""Recipes: the shipped ones run; YAML, `extends` and overrides give what they say, or an error says why."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from cloze import ClozeError, Run
from cloze.recipes.load import difference, dump, list_recipes, load_recipe, merge, recipe_text, shipped
from cloze.recipes.schema import Recipe

HEAD = "masking: {kind: uniform, rate: 0.3}\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write a recipe file; its path."""

    def file(text: str, name: str = "mine.yaml") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return file


# -- shipped ----------------------------------------------------------------------------------------------


def test_the_names_that_the_issue_uses_are_shipped() -> None:
    assert {"mlm", "demo", "adapt", "spans", "whole-word"} <= set(shipped())
    assert [recipe.name for recipe in list_recipes()] == shipped()


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_is_explained_and_survives_a_round_trip(
    name: str, write: Callable[..., str]
) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.about
    assert recipe_text(name).startswith("# ")
    assert load_recipe(write(dump(recipe))) == recipe
    # What is shown is what is meant, under any file name.
    assert load_recipe(write(recipe_text(name), "other.yaml")) == recipe


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_trains(
    name: str, train: Callable[..., Run], trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = {"model": str(trained.folder / "model")} if name == "adapt" else {}
    run = train(tmp_path / "run", recipe=name, budget="4steps", **start)
    assert run.summary["recipe"] == name
    assert run.summary["steps"] == 4
    assert run.summary["heldout_loss"] < run.summary["heldout_loss_initial"]
    assert run.summary["choices"] == load_recipe(str(run.folder / "recipe.yaml")).choices()


# -- extends ----------------------------------------------------------------------------------------------


def test_extends_lays_a_file_over_another(write: Callable[..., str]) -> None:
    base = write(
        "extends: mlm\nname: base\nseed: 3\nmasking: {rate: 0.2}\ntraining: {clip: 0.5}\n", "base.yaml"
    )
    recipe = load_recipe(write(f"extends: {base}\nname: top\nmasking: {{rate: 0.4}}\n"))
    assert (recipe.name, recipe.seed, recipe.masking.rate, recipe.training.clip) == ("top", 3, 0.4, 0.5)
    assert recipe.training.optimizer == load_recipe("mlm").training.optimizer


def test_a_file_without_a_name_is_named_by_its_file(write: Callable[..., str]) -> None:
    assert load_recipe(write(HEAD, "my-try.yml")).name == "my-try"


def test_extends_in_a_circle(write: Callable[..., str], tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    write(f"extends: {two}\n", "one.yaml")
    write(f"extends: {one}\n", "two.yaml")
    with pytest.raises(ClozeError, match=r"extends itself: .*one\.yaml -> .*two\.yaml -> .*one\.yaml"):
        load_recipe(str(one))
    with pytest.raises(ClozeError, match="extends must be the name or path"):
        load_recipe(write("extends: [mlm]\n"))
    with pytest.raises(ClozeError, match="did you mean 'spans'"):
        load_recipe(write("extends: span\n"))


# -- merging ----------------------------------------------------------------------------------------------


def test_merge() -> None:
    base = {"a": {"x": 1, "y": {"z": 2}}, "b": [1, 2], "c": {"kind": "one", "rate": 1}}
    over = {"a": {"y": {"w": 3}}, "b": [3], "d": None}
    merged = merge(base, over)
    assert merged == {
        "a": {"x": 1, "y": {"z": 2, "w": 3}},
        "b": [3],
        "c": {"kind": "one", "rate": 1},
        "d": None,
    }
    assert base == {"a": {"x": 1, "y": {"z": 2}}, "b": [1, 2], "c": {"kind": "one", "rate": 1}}


def test_another_kind_replaces_the_fields_and_the_same_kind_keeps_them() -> None:
    base = {"m": {"kind": "spans", "mean": 3.0, "rate": 0.3}}
    assert merge(base, {"m": {"kind": "words"}}) == {"m": {"kind": "words"}}
    assert merge(base, {"m": {"kind": "spans", "rate": 0.1}}) == {
        "m": {"kind": "spans", "mean": 3.0, "rate": 0.1}
    }
    assert merge(base, {"m": {"rate": 0.1}}) == {"m": {"kind": "spans", "mean": 3.0, "rate": 0.1}}


# -- overrides --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("training.optimizer.learning_rate=1e-3", "training.optimizer.learning_rate", 1e-3),
        ("training.optimizer.learning_rate=3E-4", "training.optimizer.learning_rate", 3e-4),
        ("masking.rate=1e-1", "masking.rate", 0.1),
        ("seed=7", "seed", 7),
        ("training.compile=true", "training.compile", True),
        ("data.text_field='no'", "data.text_field", "no"),
        ("data.text_field=null", "data.text_field", None),
        ("training.budget=5_000steps", "training.budget", "5_000steps"),
        ("training.micro_tokens=4096", "training.micro_tokens", 4096),
        ("model.size=tiny", "model.size", "tiny"),
        (" evaluation.rate = 0.2", "evaluation.rate", 0.2),
        ("about=a = b", "about", "a = b"),
        ("training.trackers=[wandb]", "training.trackers", ("wandb",)),
        ("data.sources=news=0.7:news.jsonl", "data.sources.0.weight", 0.7),
    ],
)
def test_an_override(text: str, field: str, value: object) -> None:
    found: object = load_recipe("mlm", [text])
    for key in field.split("."):
        found = found[int(key)] if key.isdigit() else getattr(found, key)  # type: ignore[index]
    assert found == value
    assert type(found) is type(value)


def test_a_schedule_of_rates_and_phases() -> None:
    recipe = load_recipe(
        "mlm",
        [
            "masking.rate={start: 0.4, end: 1e-1}",
            "training.phases=[{share: 0.9, length: 128}, {share: 0.1, length: 512}]",
        ],
    )
    rate = recipe.masking.rate
    assert (rate.start, rate.end, rate.shape) == (0.4, 0.1, "linear")
    assert [phase.length for phase in recipe.training.phases] == [128, 512]
    assert recipe.choices()["masking"] == "single tokens, 40%→10%"


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_a_kind_and_its_fields_does_not_matter(order: int) -> None:
    recipe = load_recipe("mlm", ["masking.kind=spans", "masking.rate=0.25", "masking.mean=2"][::order])
    assert recipe.masking.model_dump() == {"kind": "spans", "rate": 0.25, "mean": 2.0, "longest": 10}
    texts = ["training.optimizer.learning_rate=5e-4", "training.optimizer.kind=adamw"][::order]
    optimizer = load_recipe("mlm", texts).training.optimizer
    assert (optimizer.kind, optimizer.learning_rate) == ("adamw", 5e-4)


def test_another_masking_keeps_the_rate() -> None:
    assert load_recipe("mlm", ["masking.kind=words"]).masking.rate == 0.3
    schedule = load_recipe("mlm", ["masking.rate={start: 0.4, end: 0.2}", "masking.kind=words"])
    assert schedule.masking.rate.start == 0.4


def test_later_overrides_win_and_values_win_over_all() -> None:
    recipe = load_recipe("mlm", ["seed=1", "seed=2", "training.clip=2"], {"training": {"clip": 3}})
    assert (recipe.seed, recipe.training.clip) == (2, 3.0)


# -- mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("masking.rat=0.3", r"unknown field masking\.rat: did you mean 'rate'\? allowed are kind, rate$"),
        ("maskin.rate=0.3", r"unknown field maskin: did you mean 'masking'\? allowed are about, corruption"),
        ("training.optimizer.lr=1", r"field training\.optimizer\.lr: .*allowed are beta1.*learning_rate"),
        ("training.phases=[{share: 1, lenght: 64}]", r"training\.phases\.0\.lenght: did you mean 'length'\?"),
        (
            "masking.kind=whole",
            r"masking: unknown kind 'whole': .*allowed are .*spans, stratified, uniform, words",
        ),
        ("tokenizer.kind=trian", r"tokenizer: unknown kind 'trian': did you mean 'train'\? allowed are load"),
        ("model.size=huge", r"model\.size: .*'tiny', 'mini', 'small', 'medium' or 'base'.*got 'huge'"),
        ("masking.rate=lots", r"masking\.rate: .*number.*got 'lots'"),
        ("masking.rate=0", r"masking\.rate: .*greater than 0"),
        ("masking.rate=1.5", r"masking\.rate: .*less than or equal to 1.*got 1\.5"),
        ("masking.rate={start: 0.3, stop: 0.1}", r"masking\.rate\.stop: .*allowed are end, shape, start"),
        ("seed=-1", r"seed: .*greater than or equal to 0 \(got -1\)"),
        ("seed=1.5", r"seed: .*integer.*got 1\.5"),
        ("seed=", r"seed: .*integer.*got None"),
        ("training.clip=[1]", r"training\.clip: .*number"),
        ("training.compile=perhaps", r"training\.compile: .*boolean.*got 'perhaps'"),
        ("training=fast", r"training: must be a mapping, not 'fast': its fields are budget, .*workers"),
        ("training.budget=soon", r"training\.budget: budget 'soon' is not understood: use such as 30m"),
        ("training.phases=[{share: 0.5}]", r"the shares of training\.phases must add up to 1, not 0\.5"),
        ("training.phases=[]", r"the shares of training\.phases must add up to 1, not 0"),
        ("training.phases.0.length=64", r"training\.phases: must be a list, not \{"),
        ("training.schedule={kind: wsd, warmup: 0.9}", r"training\.schedule: warmup \+ decay"),
        ("data.sources=['news=0:news.txt']", r"'news=0:news\.txt': weight: .*greater than 0"),
        ("masking=words", r"masking: must be a mapping, not 'words': masking\.kind is one of .*spans"),
        ("rate", r"^--set rate: write it as some\.field=value, for example"),
        ("=3", r"^--set =3: write it as"),
        (".rate=3", r"^--set \.rate=3: write it as"),
        ("seed=[1", r"^--set seed=\[1: not valid YAML"),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ClozeError, match=message) as error:
        load_recipe("mlm", [text])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("masking: {kind: uniform\n", r"mine\.yaml: not valid YAML in line 2, column 1"),
        ("- mlm\n", r"mine\.yaml: a recipe is a mapping"),
        ("", r"mine\.yaml: a recipe is a mapping"),
        ("name: x\n", r"mine\.yaml: masking: "),
        (HEAD + "sede: 3\n", r"mine\.yaml: unknown field sede: did you mean 'seed'\?"),
        (HEAD + "seed: three\n", r"mine\.yaml: seed: .*integer.*got 'three'"),
        (HEAD + "model: [new]\n", r"mine\.yaml: model: must be a mapping, .*new, pretrained"),
        (HEAD + "masking: {rate: 0.3}\n", r"mine\.yaml: masking: no kind is given: allowed are .*spans"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(text: str, message: str, write: Callable[..., str]) -> None:
    with pytest.raises(ClozeError, match=message):
        load_recipe(write(text))


def test_an_unknown_recipe(tmp_path: Path) -> None:
    with pytest.raises(ClozeError, match=r"no recipe 'mml': did you mean 'mlm'\?"):
        load_recipe("mml")
    with pytest.raises(ClozeError, match=r"no recipe 'zzz': known are adapt, .*demo, .*mlm"):
        load_recipe("zzz")
    with pytest.raises(ClozeError, match=r"nothing\.yaml: cannot be read as a recipe"):
        load_recipe(str(tmp_path / "nothing.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ClozeError, match=r"binary\.yaml: cannot be read as a recipe"):
        load_recipe(str(tmp_path / "binary.yaml"))


# -- several methods --------------------------------------------------------------------------------------

CAUSAL = "causal: {masking: {kind: none}, visibility: {kind: causal}, objective: {kind: next_token}}"
MIXED = HEAD + f"variants: {{{CAUSAL}}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("masking: {kind: none}\n", "masking.kind=none hides nothing, and objective predicts hidden tokens"),
        ("masking: {kind: none, rate: 0.1}\n", "masking.rate: .*less than or equal to 0"),
        (HEAD + "objective: {kind: next_token}\n", "visibility.kind=all shows: use visibility.kind=causal"),
        (
            HEAD + "objective: {kind: next_toke}\n",
            "objective: unknown kind .* did you mean 'next_token'",
        ),
        (
            HEAD + "objective: {kind: next_token, target: hidden}\n",
            "objective.target: did you mean",
        ),
        (
            HEAD + "visibility: {kind: past}\n",
            "visibility: .*: allowed are all, causal, enc_dec, prefix",
        ),
        (MIXED, "variants.causal is in no stage: name it in stages"),
        (
            MIXED + "stages: [{use: casual}]\n",
            "stages.0.use: .* 'casual': did you mean 'causal'",
        ),
        (MIXED + "stages: [{use: {causal: 1, mian: 3}}]\n", "no variant 'mian': did you mean 'main'"),
        (MIXED + "stages: [{use: {causal: 0, main: 3}}]\n", "stages.0.use: .*greater than 0"),
        (MIXED + "stages: [{use: {}}]\n", "stages.0.use is empty: known are main, causal"),
        (MIXED + "stages: [{use: 3}]\n", "stages.0.use: .*got 3"),
        (MIXED + "stages: [{share: 0.5, use: causal}]\n", "the shares of stages must add up to 1, not 0.5"),
        (MIXED + "stages: {use: causal}\n", "stages: must be a list"),
        (
            MIXED + "stages: [{use: {causal: 1, main: 15}}]\ntraining: {phases: [{rows: 15}]}\n",
            r"of the 15 rows in a step 'causal' would not get one \(its share is 0.0625\)",
        ),
        (HEAD + "variants: {main: {}}\n", "'main' is the name of the recipe's own choices"),
        (
            HEAD + "variants: {a: {maskin: {kind: none}}}\n",
            "field variants.a.maskin: did you mean 'masking'",
        ),
        (HEAD + "variants: {a: {masking: {kind: nothing}}}\n", "variants.a.masking: unknown kind 'nothing'"),
        (HEAD + "variants: {a b: {}}\nstages: [{use: a b}]\n", "variants.a b: "),
    ],
)
def test_a_mistake_in_methods_is_one_line(text: str, message: str, write: Callable[..., str]) -> None:
    with pytest.raises(ClozeError, match=message) as stop:
        load_recipe(write(text))
    assert "\n" not in str(stop.value)


def test_stages_that_are_laid_over_others_drop_the_variants_that_they_leave_out(
    write: Callable[..., str],
) -> None:
    assert load_recipe("electra").variants.keys() == {"mlm"}
    assert load_recipe("electra", ["stages=[{use: main}]"]).variants == {}
    assert load_recipe(write("extends: mcl\nstages: [{share: 1.0}]\n")).variants == {}
    half = "stages=[{share: 0.5, use: causal}, {share: 0.5, use: main}]"
    causal = ["stages=[{use: {causal: 1, main: 3}}]", f"variants={{{CAUSAL}}}"]
    assert load_recipe("clm-then-mlm", [half]).variants.keys() == {"causal"}
    assert load_recipe("clm-then-mlm", ["stages=[{use: main}]", *causal[::-1]]).variants.keys() == {"causal"}
    with pytest.raises(ClozeError, match=r"variants.mlm"):  # it was dropped before
        load_recipe("electra", ["stages=[{use: main}]", "variants.mlm.masking.rate=0.2"])
    with pytest.raises(ClozeError, match=r"did you mean 'mlm'"):
        load_recipe("electra", ["stages=[{use: mln}]"])


def test_a_variant_takes_what_it_does_not_say_from_the_recipe(write: Callable[..., str]) -> None:
    shares = "stages: [{use: {causal: 1, main: 3}}]\n"
    text = MIXED + "corruption: {kind: replace, mask: 0.5, random: 0.5}\n" + shares
    recipe = load_recipe(write(text))
    own, causal = recipe.methods()["main"], recipe.methods()["causal"]
    assert own.corruption == causal.corruption == recipe.corruption
    assert (own.masking.kind, causal.masking.kind) == ("uniform", "none")
    assert (own.objective.kind, causal.objective.kind) == ("mlm", "next_token")
    assert recipe.stages[0].shares() == {"causal": 0.25, "main": 0.75}
    assert recipe.choices("causal") == {
        "masking": "nothing", "corruption": "none", "visibility": "causal", "objective": "next_token",
    }  # fmt: skip


def test_a_kind_that_is_changed_keeps_a_rate_that_fits() -> None:
    sets = ["objective.kind=next_token", "visibility.kind=causal"]
    assert load_recipe("mlm", [*sets, "masking.kind=none"]).masking.rate == 0.0
    assert load_recipe("causal", ["masking.kind=uniform"]).masking.rate == 0.3
    assert load_recipe("mlm", ["masking.rate=0.2", "masking.kind=words"]).masking.rate == 0.2


# -- difference -------------------------------------------------------------------------------------------


def test_difference() -> None:
    one, other = (
        load_recipe("mlm", texts).model_dump(mode="json")
        for texts in ([], ["masking.kind=spans", "seed=3", "training.clip=2", "data.sources=a.txt"])
    )
    assert difference(one, one) == []
    lines = difference(one, other)
    assert {line.partition(":")[0] for line in lines} == {
        "seed", "masking.kind", "masking.mean", "masking.longest", "training.clip", "data.sources",
    }  # fmt: skip
    assert "masking.kind: 'uniform' -> 'spans'" in lines
    assert "seed: 0 -> 3" in lines
    assert "masking.mean: None -> 3.0" in lines


def test_dump_is_plain_yaml_of_every_field() -> None:
    tree = yaml.safe_load(dump(load_recipe("mlm", ["about=blåbær, 日本語"])))
    assert set(tree) == set(Recipe.model_fields)
    assert tree["about"] == "blåbær, 日本語"


def test_a_recipe_extends_its_neighbour_and_keeps_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "base.yaml").write_text("extends: mlm\nname: base\nseed: 7\n", encoding="utf-8")
    (folder / "mine.yaml").write_text("extends: base.yaml\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("configs/mine.yaml")
    assert (recipe.name, recipe.seed) == ("mine", 7)


@pytest.mark.parametrize("name", ["/elsewhere", "../up", ".hidden", "a/b", ""])
def test_a_recipe_cannot_choose_a_folder_by_its_name(name: str) -> None:
    with pytest.raises(ClozeError, match="name"):
        load_recipe("mlm", [f"name='{name}'"])


def test_a_pretrained_model_keeps_its_tokenizer() -> None:
    with pytest.raises(ClozeError, match=r"tokenizer\.kind=load"):
        load_recipe("mlm", ["model={kind: pretrained, path: x}"])


# -- hostile files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 5000, "nested too deeply"),
        ("extends: mlm\nabout: " + "[" * 60 + "]" * 60, "nested too deeply"),
        ("extends: mlm\nabout: 2001-99-99\n", "not valid YAML: month"),
        ("extends: mlm\nabout: !!python/object/apply:os.system [id]\n", "not valid YAML in line 2"),
        ("extends: mlm\nabout: \0\n", "not valid YAML"),
        ("a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
            f"{n}: &{n} [{', '.join([f'*{m}'] * 8)}]\n" for m, n in pairwise("abcdefghij")
        ), "too many values"),
        ("a: &a [*a]\n", "nested too deeply"),
        ("extends: mlm\nseed: 0x" + "f" * 5000, "a number of 20,000 bits is too large"),
        ("extends: mlm\n? 0x" + "f" * 5000 + "\n: 1\n", "a number of 20,000 bits is too large"),
        ("about: " + "x" * 1_100_000, "characters are no recipe"),
        ("1: 2\n", "recipe|field|keys"),
    ],
    ids=["open", "deep", "date", "object", "nul", "aliases", "circle", "digits", "key", "large", "number"],
)  # fmt: skip
def test_a_file_of_a_stranger(text: str, message: str, write: Callable[..., str]) -> None:
    with pytest.raises(ClozeError, match=message) as error:
        load_recipe(write(text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["[a]", "{a: b}", "null", "[[uniform]]"])
def test_a_kind_that_is_no_word(value: str) -> None:
    with pytest.raises(ClozeError, match="masking"):
        load_recipe("mlm", [f"masking.kind={value}"])


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e999"])
def test_numbers_that_are_none(value: str) -> None:
    with pytest.raises(ClozeError, match=r"training\.clip.*finite"):
        load_recipe("mlm", [f"training.clip={value}"])


def test_a_file_does_not_choose_where_the_store_is_written(
    write: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(f"extends: mlm\ndata: {{store: {tmp_path / 'elsewhere'}, split_text: lines}}\n")
    with caplog.at_level(logging.WARNING, "cloze"):
        recipe = load_recipe(path)
    assert recipe.data.store is None
    assert recipe.data.split_text == "lines"
    assert "data.store is left out" in caplog.text
    assert load_recipe(path, [f"data.store={tmp_path}"]).data.store == str(tmp_path)  # who runs it may


def test_a_run_writes_into_its_folder_and_the_cache_alone(
    write: Callable[..., str], train: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, run = tmp_path / "home", tmp_path / "run"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("CLOZE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(home)
    path = write(f"extends: mlm\ndata: {{store: {home / 'store'}}}\nabout: ../../{home}\nname: x\n")
    before = {p for p in tmp_path.rglob("*") if not p.is_relative_to(run)}
    train(run, recipe=path)
    after = {p for p in tmp_path.rglob("*") if not p.is_relative_to(run)}
    assert {p.relative_to(tmp_path).parts[0] for p in after - before} == {"cache"}
