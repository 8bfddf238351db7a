"""The adapter in the real Trainer: training, resume, evaluation, accumulation, weights."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import story
from helpers import CLS, SEP, SIZE, tiny_model, widest, word_tokenizer
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from cloze.data.tokenizer_training import train_tokenizer
from cloze.errors import ClozeError
from cloze.integrations.transformers import EpochCallback, MaskingCollator, MaskingTrainer
from cloze.masking import Masking
from cloze.masking.fully_explored import FullyExplored
from cloze.masking.rate import RateSchedule
from cloze.masking.uniform import Uniform
from cloze.masking.words import Words

Rows = list[dict[str, list[int]]]
Arguments = Callable[..., TrainingArguments]


class _Recorder:
    """Mixed into a Trainer: the batches it trains on, and the gradient of its last update."""

    seen: list[dict[str, Tensor]]
    gradient: Tensor

    def training_step(self, model: Any, inputs: dict[str, Tensor], *others: Any) -> Tensor:
        self.__dict__.setdefault("seen", []).append(dict(inputs))
        return super().training_step(model, inputs, *others)  # type: ignore[misc]

    def _clip_grad_norm(self, model: Any) -> Any:
        self.gradient = gradient_of(model)
        return super()._clip_grad_norm(model)  # type: ignore[misc]


class Stock(_Recorder, Trainer):
    """A stock Trainer that is looked at."""


class Ours(_Recorder, MaskingTrainer):
    """The same of ours."""


def gradient_of(model: Any) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).clone()


def model_of(family: str = "bert", **changes: Any) -> PreTrainedModel:
    return tiny_model(family, initializer_range=0.05, **changes)


def stock(args: TrainingArguments, rows: Any, policy: Any = "uniform", **options: Any) -> Stock:
    """A stock Trainer with our collator."""
    collator = MaskingCollator(word_tokenizer(), policy)
    return Stock(model_of(), args, collator, rows, callbacks=[EpochCallback(collator)], **options)


def ours(args: TrainingArguments, rows: Any, policy: Any = "uniform", family: str = "bert") -> Ours:
    return Ours(model_of(family), args, MaskingCollator(word_tokenizer(), policy), train_dataset=rows)


# -- training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [stock, ours])
def test_training_lowers_the_loss(make: Callable[..., Any], arguments: Arguments) -> None:
    rows = [{"input_ids": [CLS, *[10 + i % 4] * 12, SEP]} for i in range(16)]
    trainer = make(arguments(max_steps=40, logging_strategy="steps", logging_steps=5), rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] > 3.5
    assert losses[-1] < 2.0


class _Stream(IterableDataset[Any]):
    """Rows without a length, which a Trainer goes through as often as it needs."""

    def __init__(self, rows: Rows):
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


@pytest.mark.parametrize("streamed", [False, True])
def test_epochs_follow_one_another(streamed: bool, rows: Rows, arguments: Arguments) -> None:
    """Each token of a row of the data set is predicted once in a sweep of five epochs."""
    args = arguments(max_steps=20) if streamed else arguments(num_train_epochs=5)
    trainer = stock(args, _Stream(rows) if streamed else rows, FullyExplored(rate=0.2))
    trainer.train()
    seen: dict[tuple[int, ...], Any] = {}
    for batch in trainer.seen:
        masked = batch["labels"] != -100
        clean = torch.where(masked, batch["labels"], batch["input_ids"])
        for ids, hidden, real in zip(clean, masked, batch["attention_mask"].bool(), strict=True):
            key = tuple(ids[real].tolist())
            seen[key] = seen.get(key, 0) + hidden[real].int()
    assert len(seen) == len(rows)
    for count in seen.values():
        assert count[1:-1].eq(1).all()


def test_a_rate_schedule_gets_its_progress(rows: Rows, arguments: Arguments) -> None:
    schedule = Uniform(rate=RateSchedule(start=0.6, end=0.1))
    trainer = ours(arguments(num_train_epochs=4), rows, schedule)
    trainer.train()
    shares = [(b["labels"] != -100).sum() / b["attention_mask"].sum() for b in trainer.seen]
    epochs = [float(torch.stack(shares[i : i + 4]).mean()) for i in range(0, 16, 4)]
    assert all(b < a - 0.05 for a, b in pairwise(epochs))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(rows: Rows, arguments: Arguments, workers: int) -> None:
    options = {"dataloader_num_workers": workers, "dataloader_persistent_workers": workers > 0}
    trainer = ours(arguments(max_steps=6, **options), rows)
    alone = ours(arguments(max_steps=6), rows)
    trainer.train()
    alone.train()
    assert_same_batches(trainer.seen, alone.seen)


# -- resume --------------------------------------------------------------------------------------------------


def assert_same_batches(some: list[dict[str, Tensor]], others: list[dict[str, Tensor]]) -> None:
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def interrupted(make: Callable[[], Any], step: int) -> tuple[Any, Any]:
    """A run of six steps, and one that goes on from its checkpoint at a step; an epoch has four."""
    whole, resumed = make(), make()
    whole.train()
    checkpoint = Path(whole.args.output_dir) / f"checkpoint-{step}"
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert len(whole.seen) == 6
    return whole, resumed


@pytest.mark.parametrize(("make", "workers", "step"), [(stock, 0, 3), (ours, 0, 4), (ours, 2, 3)])
def test_a_resumed_run_is_the_uninterrupted_one(
    make: Callable[..., Any], workers: int, step: int, rows: Rows, arguments: Arguments
) -> None:
    """Masks and, dropout included, the weights: bit for bit."""
    args = arguments(
        max_steps=6, save_strategy="steps", save_steps=step, dataloader_num_workers=workers, weight_decay=0.1
    )
    whole, resumed = interrupted(lambda: make(args, rows), step)
    assert whole.model.config.hidden_dropout_prob > 0
    assert_same_batches(resumed.seen, whole.seen[step:])
    after = resumed.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in whole.model.state_dict().items())


def test_a_resumed_stock_run_draws_other_masks(rows: Rows, arguments: Arguments) -> None:
    """The control: the stock collator with a seed of its own; the rows are the same, the masks are not."""
    args = arguments(max_steps=6, save_strategy="steps", save_steps=3)

    def make() -> Stock:
        collator = DataCollatorForLanguageModeling(word_tokenizer(), seed=0)
        return Stock(model_of(), args, collator, rows)

    whole, resumed = interrupted(make, 3)
    pairs = list(zip(whole.seen[3:], resumed.seen, strict=True))
    assert all(a["attention_mask"].equal(b["attention_mask"]) for a, b in pairs)
    assert not any(a["labels"].equal(b["labels"]) for a, b in pairs[:2])


# -- evaluation ----------------------------------------------------------------------------------------------


def test_an_evaluation_has_fixed_masks_whatever_the_training(rows: Rows, arguments: Arguments) -> None:
    """By hand: the mean over all masked tokens, though the last batch is smaller."""
    rows, held = rows[:8], rows[3:]
    args = arguments(max_steps=4, eval_strategy="steps", eval_steps=2)
    collator = MaskingCollator(word_tokenizer(), Uniform(rate=0.4))
    trainer = Ours(model_of(), args, collator, train_dataset=rows, eval_dataset=held)
    first = trainer.evaluate()
    assert trainer.evaluate()["eval_loss"] == first["eval_loss"]
    batch = collator.evaluation()(held)
    with torch.no_grad():
        logits = trainer.model.eval()(batch["input_ids"], batch["attention_mask"]).logits
    masked = batch["labels"] != -100
    wanted = torch.nn.functional.cross_entropy(logits[masked], batch["labels"][masked])
    assert first["eval_loss"] == pytest.approx(wanted.item(), rel=1e-6)
    right = (logits.argmax(-1) == batch["labels"])[masked].float().mean()
    assert first["eval_accuracy"] == pytest.approx(right.item(), rel=1e-6)
    trainer.train()
    during = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(during) == 2
    assert trainer.evaluate()["eval_loss"] == during[-1] < first["eval_loss"]
    assert trainer.predict(held).metrics["test_loss"] == during[-1]


def test_an_evaluation_leaves_the_training_masks_alone(rows: Rows, arguments: Arguments) -> None:
    options = {"max_steps": 6, "dataloader_num_workers": 2}
    collator = MaskingCollator(word_tokenizer())
    args = arguments(**options, eval_strategy="steps", eval_steps=3)
    trainer = Ours(model_of(), args, collator, train_dataset=rows, eval_dataset=rows)
    alone = ours(arguments(**options), rows)
    trainer.train()
    alone.train()
    assert_same_batches(trainer.seen, alone.seen)


def test_logits_exist_at_the_predicted_tokens_only(rows: Rows, arguments: Arguments) -> None:
    long = [{"input_ids": [CLS, *range(5, 90), SEP]}] * 8
    args = arguments(per_device_train_batch_size=8, per_device_eval_batch_size=8, max_steps=1)
    trainer = ours(args, long)
    with widest(SIZE) as training:
        trainer.train()
    predicted = int((trainer.seen[0]["labels"] != -100).sum())
    assert predicted < 0.4 * 8 * 87
    assert training.rows <= predicted
    with widest(SIZE) as evaluation:
        output = trainer.predict(long)
    assert output.predictions is None
    assert output.label_ids is None
    assert evaluation.rows <= 0.2 * 8 * 87
    batch = trainer.evaluation_collator(long)
    assert trainer.prediction_step(trainer.model, batch, False)[1:] == (None, None)
    other = stock(args, long)
    with widest(SIZE) as control:
        other.train()
    assert control.rows == 8 * 87


# -- one denominator, and weights ----------------------------------------------------------------------------

SPLITS = ((8, 1), (4, 2), (2, 4), (1, 8))


def gradients(make: Callable[[TrainingArguments], Any], arguments: Arguments, splits: Any) -> list[Tensor]:
    """Of one update over eight rows, cut into micro-batches in several ways."""
    found = []
    for size, parts in splits:
        args = arguments(
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
            max_steps=1,
            train_sampling_strategy="sequential",
        )
        trainer = make(args)
        trainer.train()
        assert len(trainer.seen) == parts
        found.append(trainer.gradient)
    return found


def calm(family: str) -> PreTrainedModel:
    """A model without dropout."""
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    return model_of(family, **dict.fromkeys(names, 0.0) if family == "bert" else {})


@pytest.mark.parametrize(("family", "weighted"), [("bert", True), ("modernbert", False)])
def test_accumulation_changes_nothing(
    family: str, weighted: bool, rows: Rows, arguments: Arguments, tilted: Masking
) -> None:
    policy = tilted if weighted else Uniform(rate=0.3)

    def make(args: TrainingArguments) -> Ours:
        return Ours(calm(family), args, MaskingCollator(word_tokenizer(), policy), train_dataset=rows[:8])

    whole, *others = gradients(make, arguments, SPLITS)
    for other in others:
        assert ((other - whole).norm() / whole.norm()).item() < 1e-6


def test_stock_accumulation_multiplies_the_gradient_of_bert(rows: Rows, arguments: Arguments) -> None:
    """The control: BERT takes the denominator and ignores it, so that eight parts count eightfold."""

    def make(args: TrainingArguments) -> Stock:
        collator = MaskingCollator(word_tokenizer())
        return Stock(calm("bert"), args, collator, rows[:8], callbacks=[EpochCallback(collator)])

    whole, parts = gradients(make, arguments, ((8, 1), (1, 8)))
    assert parts.norm() > 4 * whole.norm()


def test_weights_reach_the_gradient(rows: Rows, arguments: Arguments, tilted: Masking) -> None:
    """Against plain logits: Σ w·loss / Σp; without the weights, or with their sum below, it is another."""
    args = arguments(per_device_train_batch_size=8, max_steps=1, train_sampling_strategy="sequential")
    trainer = Ours(calm("bert"), args, MaskingCollator(word_tokenizer(), tilted), train_dataset=rows[:8])
    trainer.train()
    batch = trainer.seen[0]
    weights, mass = batch["token_weights"], batch["reference_mass"].sum()
    text = sum(len(row["input_ids"]) - 2 for row in rows[:8])
    assert mass == pytest.approx(0.3 * text)

    def gradient(weights: Tensor, mass: Tensor) -> Tensor:
        model = calm("bert")
        logits = model(batch["input_ids"], batch["attention_mask"]).logits
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["labels"].flatten(), reduction="none"
        )
        (losses @ weights.flatten() / mass).backward()
        return gradient_of(model)

    def error(other: Tensor) -> float:
        return ((other - trainer.gradient).norm() / trainer.gradient.norm()).item()

    assert error(gradient(weights, mass)) < 1e-5
    assert error(gradient((weights > 0).float(), mass)) > 0.02
    assert error(gradient(weights, weights.sum())) > 0.02


def test_a_stock_trainer_is_not_given_weighted_masks(
    rows: Rows, arguments: Arguments, tilted: Masking
) -> None:
    with pytest.raises(ClozeError, match="MaskingTrainer"):
        stock(arguments(max_steps=1), rows, tilted).train()


def test_a_batch_without_a_mask_is_no_nan(arguments: Arguments) -> None:
    empty = [{"input_ids": [CLS, SEP]}] * 4
    trainer = ours(arguments(max_steps=1, logging_strategy="steps", logging_steps=1), empty)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == 0.0
    assert trainer.gradient.norm() == 0.0
    assert trainer.evaluate(empty)["eval_loss"] == 0.0
    batch = trainer.seen[0]
    lost = calm("bert")(batch["input_ids"], batch["attention_mask"], labels=batch["labels"]).loss
    assert math.isnan(lost.item())  # the control: a stock model alone


_TWO_PROCESSES = """
import sys
import torch
from conftest import story
from helpers import tiny_model, word_tokenizer
from transformers import TrainingArguments
from cloze.integrations.transformers import MaskingCollator, MaskingTrainer

class Looked(MaskingTrainer):
    def _clip_grad_norm(self, model):
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        torch.save(gradient.clone(), f"{sys.argv[1]}/gradient-{self.accelerator.process_index}.pt")
        return super()._clip_grad_norm(model)

rows = torch.load(f"{sys.argv[1]}/rows.pt")
args = TrainingArguments(
    sys.argv[1], per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=1, use_cpu=True,
    train_sampling_strategy="sequential", report_to=[], save_strategy="no", per_device_eval_batch_size=3,
)
off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
model = tiny_model("bert", initializer_range=0.05, **off)
trainer = Looked(model, args, MaskingCollator(word_tokenizer()), train_dataset=rows, eval_dataset=rows[:7])
torch.save(trainer.evaluate()["eval_loss"], f"{sys.argv[1]}/loss-{trainer.accelerator.process_index}.pt")
trainer.train()
torch.distributed.barrier()  # a process that leaves before the other is an abort now and then
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_are_one(rows: Rows, arguments: Arguments, tmp_path: Path) -> None:
    """The gradient, and the loss of an evaluation that does not divide evenly, made before the training."""
    torch.save(rows[:8], tmp_path / "rows.pt")
    (tmp_path / "two.py").write_text(_TWO_PROCESSES, "utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "two.py", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    losses = [torch.load(tmp_path / f"loss-{process}.pt") for process in range(2)]
    args = arguments(per_device_train_batch_size=8, max_steps=1, train_sampling_strategy="sequential")
    trainer = Ours(calm("bert"), args, MaskingCollator(word_tokenizer()), train_dataset=rows[:8])
    assert losses == pytest.approx([trainer.evaluate(rows[:7])["eval_loss"]] * 2, rel=1e-6)
    trainer.train()
    for process in range(2):
        other = torch.load(tmp_path / f"gradient-{process}.pt")
        assert ((other - trainer.gradient).norm() / trainer.gradient.norm()).item() < 1e-5


# -- columns, errors and the page ---------------------------------------------------------------------------


def test_columns_of_words_are_kept(rows: Rows, arguments: Arguments) -> None:
    from datasets import Dataset

    numbered = [r | {"word_ids": [i // 2 for i in range(len(r["input_ids"]))], "text": "…"} for r in rows]
    for data in (numbered, Dataset.from_list(numbered)):
        trainer = ours(arguments(max_steps=2), data, Words(rate=0.3))
        trainer.train()
        assert {"input_ids", "labels"} < trainer.seen[0].keys()
        assert not {"word_ids", "text"} & trainer.seen[0].keys()
        with pytest.raises(ClozeError, match="word_ids"):
            stock(arguments(max_steps=2), data, Words(rate=0.3)).train()


def test_arguments_that_need_logits_or_another_loss_are_refused(rows: Rows, arguments: Arguments) -> None:
    collator = MaskingCollator(word_tokenizer())
    for name in ("compute_metrics", "preprocess_logits_for_metrics", "compute_loss_func"):
        with pytest.raises(ClozeError, match=name):
            MaskingTrainer(model_of(), arguments(), collator, train_dataset=rows, **{name: print})
    with pytest.raises(ClozeError, match="label_smoothing_factor"):
        MaskingTrainer(model_of(), arguments(label_smoothing_factor=0.1), collator, train_dataset=rows)
    with pytest.raises(ClozeError, match="MaskingCollator"):
        MaskingTrainer(model_of(), arguments(), DataCollatorForLanguageModeling(word_tokenizer()))


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_the_page_works_as_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All Python of docs/hugging-face.md, in order, on a tiny model and a little text."""
    page = (Path(__file__).parents[3] / "docs" / "hugging-face.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    monkeypatch.chdir(tmp_path)
    tokenizer = train_tokenizer([story(0)], "bpe", 320)
    tokenizer.save_pretrained("my-model")
    tiny_model("bert", vocab_size=len(tokenizer)).save_pretrained("my-model")
    Path("my_text.txt").write_text("\n".join(story(i, 4).replace("\n", " ") for i in range(24)), "utf-8")
    space: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "hugging-face.md", "exec"), space)
    assert space["metrics"]["eval_loss"] > 0
    assert space["loss"].isfinite()
