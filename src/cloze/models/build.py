"""Encoders: from scratch in the sizes of the BERT miniatures, or from any checkpoint of transformers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as hf_logging

from cloze.config import Config, PathText
from cloze.data.hub import offline
from cloze.data.tokenizers import ids_of, load_tokenizer
from cloze.data.vocabulary_extension import pieces_of_new
from cloze.errors import ClozeError
from cloze.models.detector import is_detector
from cloze.models.families import MosaicBertConfig, MosaicBertForMaskedLM
from cloze.models.twins import encoder_twin, is_decoder, is_encoder_decoder

Size = Literal["tiny", "mini", "small", "medium", "base"]
# (layers, width) as in the published BERT miniatures (1908.08962); ModernBERT's own base is 22 × 768.
SIZES: dict[str, tuple[int, int]] = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
}


class NewModel(Config):
    """A model from scratch; `layers`, `width` and `heads` override those of `size`."""

    kind: Literal["new"] = "new"
    family: Literal["modernbert", "bert", "electra", "mosaicbert", "t5"] = "modernbert"
    size: Size = "mini"
    layers: int | None = Field(None, ge=1)
    width: int | None = Field(None, ge=16)
    heads: int | None = Field(None, ge=1)
    embedding: int | None = Field(
        None,
        ge=16,
        description="electra: width of its token embeddings; 128, or the width if that is smaller",
    )
    longest: int = Field(512, ge=8, description="greatest length of a sample, in tokens")
    dropout: float = Field(0.0, ge=0.0, lt=1.0)


class PretrainedModelChoice(Config):
    """A checkpoint: a local folder or a hub id. An encoder without an MLM head gets one.

    A causal language model whose family has an encoder twin (BERT, ModernBERT) goes on as that encoder.
    """

    kind: Literal["pretrained"] = "pretrained"
    path: PathText


ModelChoice = Annotated[NewModel | PretrainedModelChoice, Field(discriminator="kind")]


def build_model(choice: ModelChoice, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """The masked-LM of a recipe, in float32 and on the CPU, with its vocabulary fitted to the tokenizer.

    A tokenizer that has tokens besides those of the checkpoint's own one brings rows with it that start from
    the pieces which the own one cuts these tokens into (`start_from_pieces`).

    Errors: a checkpoint that is not there, is not a masked-LM's encoder, or knows fewer tokens than the
    tokenizer has, where that is not its own with more tokens.
    """
    torch.manual_seed(seed)
    if isinstance(choice, NewModel):
        return _new(choice, tokenizer)
    model = load_masked_lm(choice.path, causal=True)
    rows = cast(torch.nn.Embedding, model.get_input_embeddings()).num_embeddings
    size = ids_of(tokenizer)
    pieces = _new_tokens(choice.path, tokenizer, rows)
    if size > rows:
        if size - rows > 8 and not pieces:  # more than the special tokens that `add_mask_token` brings
            raise ClozeError(
                f"{choice.path}: the model knows {rows:,} tokens, the tokenizer has {size:,}: "
                "use the model's own tokenizer (leave `tokenizer` out)"
            )
        model.resize_token_embeddings(-(-size // 64) * 64)
    start_from_pieces(model, pieces)
    return model


def _new_tokens(path: str, tokenizer: PreTrainedTokenizerFast, rows: int) -> dict[int, list[int]]:
    """The ids that the tokenizer has and the checkpoint's own one lacks, with their pieces in the own one.

    None for a checkpoint without a tokenizer, for which transformers may make up one of a few tokens.
    """
    try:
        own = load_tokenizer(path, add_mask_token=True)
    except ClozeError:
        return {}
    return pieces_of_new(own, tokenizer) if 2 * ids_of(own) > rows else {}


@torch.no_grad()
def start_from_pieces(model: PreTrainedModel, pieces: Mapping[int, Sequence[int]]) -> None:
    """Give tokens the mean embedding of others, for reading and for predicting, and their mean bias.

    Args:
        pieces: for each id the ids that its row is the mean of; none of them is itself such an id.
    """
    output = cast(torch.nn.Linear, model.get_output_embeddings())
    weights = [cast(torch.nn.Embedding, model.get_input_embeddings()).weight, output.weight]
    for table in weights if output.bias is None else [*weights, output.bias]:
        for token, parts in pieces.items():
            if parts:
                table[token] = table[list(parts)].mean(0)


def _new(choice: NewModel, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    layers, width = SIZES[choice.size]
    if choice.family == "modernbert" and choice.size == "base":
        layers = 22
    layers, width = choice.layers or layers, choice.width or width
    heads = choice.heads or max(1, width // 64)
    if width % heads or (width // heads) % 2:
        raise ClozeError(
            f"model.width={width} cannot be split over model.heads={heads}: "
            "width/heads must be a whole even number"
        )
    shared: dict[str, Any] = {
        "vocab_size": -(-ids_of(tokenizer) // 64) * 64,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": choice.longest,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if choice.family == "electra":
        return ElectraForMaskedLM(
            ElectraConfig(
                **shared,
                embedding_size=choice.embedding or min(width, 128),
                intermediate_size=4 * width,
                hidden_dropout_prob=choice.dropout,
                attention_probs_dropout_prob=choice.dropout,
            )
        )
    if choice.family == "bert":
        return BertForMaskedLM(
            BertConfig(
                **shared,
                intermediate_size=4 * width,
                hidden_dropout_prob=choice.dropout,
                attention_probs_dropout_prob=choice.dropout,
            )
        )
    if choice.family == "mosaicbert":
        return MosaicBertForMaskedLM(
            MosaicBertConfig(**shared, intermediate_size=4 * width, hidden_dropout_prob=choice.dropout)
        )
    if choice.family == "t5":
        return _new_t5(choice, tokenizer, shared)
    return ModernBertForMaskedLM(
        ModernBertConfig(
            **shared,
            cls_token_id=tokenizer.cls_token_id,
            sep_token_id=tokenizer.sep_token_id,
            intermediate_size=3 * width // 2,
            embedding_dropout=choice.dropout,
            mlp_dropout=choice.dropout,
            attention_dropout=choice.dropout,
        )
    )


def _new_t5(choice: NewModel, tokenizer: PreTrainedTokenizerFast, shared: dict[str, Any]) -> PreTrainedModel:
    """T5 1.1 (gated GELU, a head of its own): so many layers in the encoder, and as many in the decoder.

    The head starts as small as those of other families; transformers gives it the embeddings' scale of 1.
    """
    width, heads = shared["hidden_size"], shared["num_attention_heads"]
    more: dict[str, Any] = {  # and what generation and the length of samples go by
        "tie_word_embeddings": False,
        "n_positions": choice.longest,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    made = T5ForConditionalGeneration(
        T5Config(
            vocab_size=shared["vocab_size"],
            d_model=width,
            d_kv=width // heads,
            d_ff=3 * width // 2,
            num_layers=shared["num_hidden_layers"],
            num_decoder_layers=shared["num_hidden_layers"],
            num_heads=heads,
            feed_forward_proj="gated-gelu",
            dropout_rate=choice.dropout,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.sep_token_id or tokenizer.eos_token_id,
            **more,
        )
    )
    with torch.no_grad():
        made.lm_head.weight.mul_(0.02)
    return made


def load_masked_lm(path: str, causal: bool = False) -> PreTrainedModel:
    """Any checkpoint that `AutoModelForMaskedLM` loads, in float32; says so when it got a new head.

    With `causal` also what is no masked LM but whose encoder goes on as one: a causal LM that has an encoder
    twin (`models/twins.py`; its outputs predict the next token), and a detector of replaced tokens.
    Errors: there is no such checkpoint, or it is of another kind.
    """

    def kind(config: Any) -> Any:
        if is_detector(config) and not causal:
            raise _detects(path, config)
        if is_encoder_decoder(config):
            if not causal:
                raise ClozeError(f"{path}: an encoder-decoder, which writes texts and fills no single blanks")
            return T5ForConditionalGeneration
        if not is_decoder(config):
            return AutoModelForMaskedLM
        if not causal:
            raise ClozeError(
                f"{path}: a causal language model, which predicts next tokens and fills no blanks"
            )
        return AutoModelForCausalLM

    model, missing = _load(kind, path, "a masked language model")
    body = [k for k in missing if k.startswith(model.base_model_prefix + ".")]
    if body:
        raise ClozeError(f"{path}: the checkpoint lacks parts of the encoder itself, such as {body[0]}")
    if missing and is_detector(model.config):
        logging.getLogger("cloze").info("%s is a detector: its encoder goes on, its head does not", path)
    elif missing:
        logging.getLogger("cloze").warning(
            "%s has no masked-language-model head: it gets a new one (%d new tensors)", path, len(missing)
        )
    if not is_decoder(model.config):
        return model
    logging.getLogger("cloze").info("%s is a causal language model: its weights go on as an encoder's", path)
    return encoder_twin(model)


def reads_causally(path: str) -> bool:
    """Whether a checkpoint is a causal language model's: one with an encoder twin, or another stock class."""
    local = Path(path).expanduser().exists() or offline()
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=local, trust_remote_code=False)
    except Exception:  # whatever it is: loading it says so
        return False
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    return is_decoder(config) or (config.model_type != "bert" and causal in (config.architectures or ()))


def load_causal_lm(path: str) -> PreTrainedModel:
    """Any checkpoint that `AutoModelForCausalLM` loads, in float32. Errors: there is none, or parts lack."""
    model, missing = _load(lambda config: AutoModelForCausalLM, path, "a causal language model")
    if missing:
        raise ClozeError(f"{path}: the checkpoint lacks parts of the model, such as {missing[0]}")
    return model


def load_body(path: str) -> PreTrainedModel:
    """The encoder of any checkpoint without a head, in float32, as `AutoModel` gives it.

    A causal LM that has an encoder twin gives that: its tokens see both sides.
    """
    model, missing = _load(_body_class, path, "an encoder")
    missing = [k for k in missing if "pooler" not in k]  # which masked language models do not train
    if missing:
        raise ClozeError(f"{path}: the checkpoint lacks parts of the encoder itself, such as {missing[0]}")
    return cast(PreTrainedModel, encoder_twin(model).base_model) if is_decoder(model.config) else model


def load_decoder(path: str) -> PreTrainedModel:
    """The body of a causal LM as `AutoModel` gives it, in float32: a decoder, not its encoder twin."""
    return _load(lambda config: AutoModel, path, "a decoder")[0]


def _body_class(config: Any) -> Any:
    if is_encoder_decoder(config):
        return T5EncoderModel
    return AutoModelForCausalLM if is_decoder(config) else AutoModel


def _load(kind: Callable[[Any], Any], path: str, what: str) -> tuple[PreTrainedModel, list[str]]:
    """A model from a folder or the hub, and the names of the tensors that its checkpoint lacks.

    `kind` names the class that loads a configuration.
    """
    folder = Path(path).expanduser()
    if not folder.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise ClozeError(f"{path}: no such model folder")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ClozeError(f"{path}: not a model folder (it has no config.json)")
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # a new head is reported by the caller, in one line
    hf_logging.disable_progress_bar()
    try:
        source = str(folder) if folder.exists() else path
        local = folder.exists() or offline()  # the hub's client tries for a minute before it gives up
        config = AutoConfig.from_pretrained(source, local_files_only=local, trust_remote_code=False)
        model, report = kind(config).from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=local,
            trust_remote_code=False,
            use_safetensors=True,  # never a pickle
        )
    except ClozeError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ClozeError(f"{path}: cannot be loaded as {what}: {first}") from error
    finally:
        hf_logging.set_verbosity(level)
    return model, sorted(report["missing_keys"])


def _detects(path: str, config: Any) -> ClozeError:
    return ClozeError(
        f"{path}: tells replaced tokens from original ones ({config.architectures[0]}), and fills no blanks; "
        "its encoder can be fine-tuned and embeds text (cloze evaluate --suite classify, tag, sentences, …)"
    )


def check_head(model: PreTrainedModel, path: str) -> None:
    """Refuse a checkpoint that came without a masked-LM head, so that its losses say nothing."""
    if is_encoder_decoder(model.config):
        raise ClozeError(f"{path}: an encoder-decoder, which writes texts and fills no single blanks")
    kinds = model.config.architectures or []
    if is_detector(model.config):
        raise _detects(path, model.config)
    ends = ("ForMaskedLM", "ForPreTraining") if model.config.model_type != "electra" else ("ForMaskedLM",)
    if not any(kind.endswith(ends) for kind in kinds):
        raise ClozeError(
            f"{path}: a {', '.join(kinds) or 'model'} has no masked-language-model head, so its loss says "
            "nothing; pretrain it first (cloze pretrain adapt)"
        )


def parameters(model: torch.nn.Module) -> int:
    """Number of parameters, shared ones counted once."""
    return sum(p.numel() for p in model.parameters())
