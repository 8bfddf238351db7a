"""Which parameter is updated by what: read off real encoders by their names."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM, PreTrainedModel

from cloze.training.optimisers import OptimizerChoice, build_optimizers


def bert(tied: bool = True) -> PreTrainedModel:
    return BertForMaskedLM(
        BertConfig(
            vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            tie_word_embeddings=tied,
        )
    )  # fmt: skip


def modernbert() -> PreTrainedModel:
    return ModernBertForMaskedLM(
        ModernBertConfig(
            vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            pad_token_id=0,
        )
    )  # fmt: skip


def membership(optimizers: list[torch.optim.Optimizer]) -> dict[str, tuple[str, float]]:
    """{name: (optimiser, weight decay)}; every name once."""
    found: dict[str, tuple[str, float]] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for name in group["names"]:
                assert name not in found
                found[name] = (type(optimizer).__name__, group["weight_decay"])
    return found


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize(
    "model", [bert(), bert(tied=False), modernbert()], ids=["bert", "untied", "modernbert"]
)
def test_every_parameter_is_updated_once_and_each_tensor_once(kind: str, model: PreTrainedModel) -> None:
    optimizers = build_optimizers(model, OptimizerChoice.model_validate({"kind": kind}))
    tensors = [p for o in optimizers for g in o.param_groups for p in g["params"]]
    assert sorted(map(id, tensors)) == sorted(id(p) for p in model.parameters())
    names = dict(model.named_parameters())
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            assert all(names[n] is p for n, p in zip(group["names"], group["params"], strict=True))


def test_muon_gets_the_matrices_of_the_body_only() -> None:
    model = bert()
    found = membership(build_optimizers(model, OptimizerChoice(kind="muon", weight_decay=0.3)))
    muon = {name for name, (optimizer, _) in found.items() if optimizer == "Muon"}
    layer = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    layer += ("intermediate.dense", "output.dense")
    expected = {f"bert.encoder.layer.{i}.{part}.weight" for i in range(2) for part in layer}
    assert muon == expected | {"cls.predictions.transform.dense.weight"}
    assert all(found[name] == ("Muon", 0.3) for name in muon)
    assert found["bert.embeddings.word_embeddings.weight"] == ("AdamW", 0.3)
    assert found["bert.embeddings.position_embeddings.weight"] == ("AdamW", 0.3)


def test_an_untied_head_stays_with_adamw() -> None:
    found = membership(build_optimizers(bert(tied=False), OptimizerChoice(kind="muon")))
    assert found["cls.predictions.decoder.weight"][0] == "AdamW"


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("model", [bert(), modernbert()], ids=["bert", "modernbert"])
def test_biases_and_norms_do_not_decay_and_all_else_does(kind: str, model: PreTrainedModel) -> None:
    choice = OptimizerChoice.model_validate({"kind": kind, "weight_decay": 0.3})
    found = membership(build_optimizers(model, choice))
    flat = {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
    assert flat
    assert {name for name, (_, decay) in found.items() if decay == 0.0} == flat
    assert all(found[name][0] == "AdamW" for name in flat)


def test_frozen_parameters_are_left_out_and_a_model_without_matrices_needs_no_muon() -> None:
    model = bert()
    model.bert.embeddings.requires_grad_(False)
    found = membership(build_optimizers(model, OptimizerChoice(kind="muon")))
    assert not [name for name in found if "embeddings" in name]
    assert [type(o).__name__ for o in build_optimizers(nn.LayerNorm(4), OptimizerChoice(kind="muon"))] == [
        "AdamW"
    ]


def test_settings_arrive() -> None:
    choice = OptimizerChoice(kind="muon", learning_rate=0.5, beta1=0.7, beta2=0.8, epsilon=1e-3, momentum=0.6)
    adamw, muon = build_optimizers(bert(), choice)
    assert adamw.defaults["betas"] == (0.7, 0.8)
    assert adamw.defaults["eps"] == 1e-3
    assert muon.defaults["momentum"] == 0.6
    assert {g["lr"] for o in (adamw, muon) for g in o.param_groups} == {0.5}
