"""Models from scratch in the published sizes, and from folders of any encoder."""

import itertools
import logging
from pathlib import Path

import pytest
import torch
from helpers import SIZE, letter_tokenizer, tiny_model, word_tokenizer
from pydantic import TypeAdapter, ValidationError
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast

from cloze.data.tokenizers import ids_of, load_tokenizer
from cloze.data.vocabulary_extension import extend_tokenizer, pieces_of_new
from cloze.errors import ClozeError
from cloze.models.build import (
    ModelChoice,
    NewModel,
    PretrainedModelChoice,
    build_model,
    load_masked_lm,
    parameters,
)

SIZES = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_sizes_are_the_published_ones(family: str, size: str) -> None:
    choice = NewModel.model_validate({"family": family, "size": size, "longest": 512})
    with torch.device("meta"):
        config = build_model(choice, word_tokenizer(), seed=0).config
    layers, width, heads = SIZES[size]
    if (family, size) == ("modernbert", "base"):
        layers = 22
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (
        layers,
        width,
        heads,
    )
    assert config.max_position_embeddings == 512
    assert config.vocab_size == 128
    feed_forward = 4 * width if family == "bert" else 3 * width // 2
    assert config.intermediate_size == feed_forward


def test_bert_tiny_has_the_published_number_of_parameters() -> None:
    """4.4 M with 30,522 tokens: 4,386,178 with the pooler, which is not trained here (16,512 fewer)."""
    with torch.device("meta"):
        model = build_model(NewModel(family="bert", size="tiny"), word_tokenizer(30_522), seed=0)
    padding = (30_528 - 30_522) * (128 + 1)
    body = 4_385_920 - 128 * 128 - 128  # as published, without pooler
    head = 128 * 128 + 128 + 2 * 128 + 30_522
    assert parameters(model) == body + head + padding


@pytest.mark.parametrize(("tokens", "rows"), [(64, 64), (65, 128), (96, 128), (1000, 1024)])
def test_the_vocabulary_is_a_multiple_of_64_that_fits_the_tokenizer(tokens: int, rows: int) -> None:
    choice = NewModel(size="tiny", width=32, layers=1, longest=32)
    model = build_model(choice, word_tokenizer(tokens), seed=0)
    assert model.get_input_embeddings().weight.shape == (rows, 32)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.pad_token_id == 0
    assert model.dtype == torch.float32


def test_overrides_dropout_and_seed() -> None:
    def make(seed: int, **fields: object) -> torch.nn.Module:
        given = {"layers": 1, "width": 32, "heads": 2, "longest": 16, **fields}
        return build_model(NewModel.model_validate(given), word_tokenizer(), seed)

    config = make(0, family="bert", dropout=0.2).config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (1, 32, 2)
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.2, 0.2)
    modern = make(0, dropout=0.2).config
    assert (modern.embedding_dropout, modern.mlp_dropout, modern.attention_dropout) == (0.2, 0.2, 0.2)
    torch.manual_seed(5)
    first = torch.nn.utils.parameters_to_vector(make(1).parameters())
    torch.manual_seed(6)
    again, other = (torch.nn.utils.parameters_to_vector(make(s).parameters()) for s in (1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("fields", [{"width": 100, "heads": 3}, {"width": 30, "heads": 10}])
def test_a_width_that_does_not_fit_its_heads_is_an_error(fields: dict[str, int]) -> None:
    with pytest.raises(ClozeError, match=f"model.width={fields['width']}"):
        build_model(NewModel.model_validate(fields), word_tokenizer(), seed=0)


@pytest.mark.parametrize(
    "given",
    [{"kind": "new", "size": "huge"}, {"kind": "old"}, {"kind": "new", "layer": 2}, {"kind": "pretrained"}],
)
def test_bad_choices_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(ModelChoice).validate_python(given)


def test_a_checkpoint_is_loaded_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("modernbert")
    model.save_pretrained(tmp_path)
    loaded = build_model(PretrainedModelChoice(path=str(tmp_path)), word_tokenizer(), seed=0)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    assert caplog.text == ""


def test_half_precision_checkpoints_become_float32(tmp_path: Path) -> None:
    tiny_model("bert").bfloat16().save_pretrained(tmp_path)
    assert load_masked_lm(str(tmp_path)).dtype == torch.float32


@pytest.mark.parametrize("family", ["bert", "modernbert", "electra"])
def test_an_encoder_without_a_head_gets_one_and_says_so_once(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    body = tiny_model(family).base_model
    body.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO):
        loaded = load_masked_lm(str(tmp_path))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.name == "cloze"
    assert "no masked-language-model head" in record.message
    assert capfd.readouterr() == ("", "")
    kept = loaded.base_model.state_dict()
    assert all(torch.equal(v, kept[k]) for k, v in body.state_dict().items() if k in kept)
    assert loaded.get_output_embeddings().weight.shape[0] == SIZE


def test_a_checkpoint_without_parts_of_its_body_is_an_error(tmp_path: Path) -> None:
    model = tiny_model("bert")
    state = {k: v for k, v in model.state_dict().items() if "layer.1.output.dense" not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ClozeError, match=r"lacks parts of the encoder.*layer\.1\.output"):
        load_masked_lm(str(tmp_path))


@pytest.mark.parametrize("path", ["./nowhere", "/no/such/folder", "~/no/such/folder", "a/b/c"])
def test_a_missing_folder_is_an_error(path: str) -> None:
    with pytest.raises(ClozeError, match="no such model folder"):
        load_masked_lm(path)


def test_a_folder_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ClozeError, match=r"config\.json"):
        load_masked_lm(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ClozeError) as error:
        load_masked_lm(str(tmp_path))
    assert "\n" not in str(error.value)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ClozeError, match="masked language model"):
        load_masked_lm(str(tmp_path))


def test_a_few_more_tokens_are_made_room_for_and_many_are_an_error(tmp_path: Path) -> None:
    model = tiny_model("bert")
    model.save_pretrained(tmp_path)
    choice = PretrainedModelChoice(path=str(tmp_path))
    grown = build_model(choice, word_tokenizer(SIZE + 1), seed=0)
    assert grown.get_input_embeddings().weight.shape[0] == 128
    assert grown.get_output_embeddings().weight is grown.get_input_embeddings().weight
    assert torch.equal(grown.get_input_embeddings().weight[:SIZE], model.get_input_embeddings().weight)
    with pytest.raises(ClozeError, match="the model knows 96 tokens, the tokenizer has 105"):
        build_model(choice, word_tokenizer(SIZE + 9), seed=0)
    fewer = build_model(choice, word_tokenizer(SIZE - 20), seed=0)
    assert fewer.get_input_embeddings().weight.shape[0] == SIZE


FAMILIES = ("bert", "roberta", "modernbert", "electra", "eurobert", "mpnet", "deberta-v2")


def own_and_extended(folder: Path, size: int) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """A tokenizer of 64 tokens, saved in `folder`, and one with `size` words more."""
    own = letter_tokenizer()
    own.save_pretrained(folder)
    words = {"".join(pair): 9.0 for pair in itertools.permutations("abcdefgh", 2)}
    extend_tokenizer(own, words, size, folder / "extended")
    return own, load_tokenizer(folder / "extended")


@pytest.mark.parametrize(("new", "rows"), [(20, SIZE), (3, SIZE), (40, 128)])
@pytest.mark.parametrize(
    ("family", "tie"), [*((f, True) for f in FAMILIES), ("modernbert", False), ("eurobert", False)]
)
def test_new_tokens_start_from_their_pieces(
    family: str, new: int, rows: int, tie: bool, tmp_path: Path
) -> None:
    """Also where the checkpoint has rows to spare (96 for 64 tokens); all other rows stay as they were."""
    model = tiny_model(family, tie_word_embeddings=tie)
    model.save_pretrained(tmp_path)
    own, extended = own_and_extended(tmp_path, new)
    assert (ids_of(own), ids_of(extended)) == (64, 64 + new)
    grown = build_model(PretrainedModelChoice(path=str(tmp_path)), extended, seed=0)
    assert grown.config.vocab_size == rows
    pieces = pieces_of_new(own, extended)
    assert sorted(pieces) == list(range(64, 64 + new))
    before, after = model.get_output_embeddings(), grown.get_output_embeddings()
    tables = [(model.get_input_embeddings().weight, grown.get_input_embeddings().weight)]
    tables += [(before.weight, after.weight)]
    tables += [(before.bias, after.bias)] if before.bias is not None else []
    for old, now in tables:
        assert now.shape[0] == rows
        assert torch.equal(now[:64], old[:64])
        for token, parts in pieces.items():
            assert torch.allclose(now[token], old[parts].mean(0))
        assert torch.equal(now[64 + new : SIZE], old[64 + new : SIZE])
    assert (after.weight is grown.get_input_embeddings().weight) == (
        before.weight is model.get_input_embeddings().weight
    )
    grown.save_pretrained(tmp_path / "grown")
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path / "grown").eval()
    ids = torch.tensor([extended("ab ba abc")["input_ids"]])
    assert ids.max() >= 64
    assert torch.allclose(stock(input_ids=ids).logits, grown.eval()(input_ids=ids).logits, atol=1e-6)


def test_only_the_models_own_tokenizer_can_be_extended(tmp_path: Path) -> None:
    """The control: as many tokens, but they are not those of the model's own tokenizer and some more."""
    tiny_model("bert").save_pretrained(tmp_path)
    _, extended = own_and_extended(tmp_path, 45)
    choice = PretrainedModelChoice(path=str(tmp_path))
    assert build_model(choice, extended, seed=0).config.vocab_size == 128
    with pytest.raises(ClozeError, match="the model knows 96 tokens, the tokenizer has 109"):
        build_model(choice, word_tokenizer(64 + 45), seed=0)


def test_tokens_from_add_tokens_start_from_their_pieces_too(tmp_path: Path) -> None:
    model = tiny_model("bert")
    model.save_pretrained(tmp_path)
    own, _ = own_and_extended(tmp_path, 1)
    added = load_tokenizer(tmp_path)
    assert added.add_tokens(["abc", "hgf"]) == 2
    added.add_special_tokens({"extra_special_tokens": ["[DOC]"]})
    grown = build_model(PretrainedModelChoice(path=str(tmp_path)), added, seed=0)
    rows, old = grown.get_input_embeddings().weight, model.get_input_embeddings().weight
    parts = own.convert_tokens_to_ids(["a", "##b", "##c"])
    assert torch.allclose(rows[added.convert_tokens_to_ids("abc")], old[parts].mean(0))
    assert torch.equal(rows[added.convert_tokens_to_ids("[DOC]")], old[66])  # a special token has no pieces


def test_parameters_count_shared_ones_once() -> None:
    model = tiny_model("bert")
    names = dict(model.named_parameters(remove_duplicate=False))
    assert parameters(model) == sum(p.numel() for p in {id(p): p for p in names.values()}.values())
    assert parameters(model) < sum(p.numel() for p in names.values())
