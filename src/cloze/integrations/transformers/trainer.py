"""A Trainer that honours the weights of the masks, and the callback that tells a collator the epoch.

The loss hook of the stock Trainer sees neither the inputs nor, therefore, their weights, and its
denominator counts labels, where the sum of the reference probabilities is due. Some models (BERT in
transformers 5.23) ignore the denominator that they are given and multiply their gradient by the number of
micro-batches; here the model only makes logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from cloze.errors import ClozeError
from cloze.integrations.transformers.collator import IGNORED, MaskingCollator

_OURS = ("labels", "token_weights", "reference_mass")  # columns that the model does not get


class EpochCallback(TrainerCallback):
    """Tells a collator the epoch, in a resumed run too. For `Trainer`; `MaskingTrainer` has one."""

    def __init__(self, collator: MaskingCollator):
        self.collator = collator
        self.epoch = 0

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An evaluation may come before the training."""
        self.collator.set_epoch(0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Where a resumed run goes on; 0 for a fresh one."""
        self.epoch = int(state.epoch or 0)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the data loader is asked for the first batch."""
        self.collator.set_epoch(self.epoch, state.num_train_epochs)
        self.epoch += 1


class MaskingTrainer(Trainer):
    """Trains any masked-LM model with a `MaskingCollator`, weights included.

    The loss of an update is Σ w·loss / Σp with w = p/π, both over all its micro-batches and processes, so
    that gradient accumulation changes nothing but rounding. Logits exist at the predicted tokens only.
    `evaluate` and `predict` give the loss and accuracy per token on masks that never change, those of
    `evaluation_collator`, and keep no logits. For one device, or one process per GPU (DDP).

    Takes the arguments of `Trainer`. Errors: another collator; arguments that need logits or another loss.
    """

    model: Any
    _signature_columns: Any

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        data_collator: MaskingCollator | None = None,
        callbacks: list[Any] | None = None,
        **kwargs: Any,
    ):
        if not isinstance(data_collator, MaskingCollator):
            raise ClozeError("MaskingTrainer needs data_collator=MaskingCollator(tokenizer, policy)")
        for name in ("compute_metrics", "preprocess_logits_for_metrics", "compute_loss_func"):
            if kwargs.get(name) is not None:
                raise ClozeError(f"MaskingTrainer has its own loss and keeps no logits: leave out {name}")
        collator = data_collator.with_weights()
        callbacks = [*(callbacks or ()), EpochCallback(collator)]
        super().__init__(model, args, collator, callbacks=callbacks, **kwargs)
        for name in ("torch_compile", "label_smoothing_factor"):
            if getattr(self.args, name):
                raise ClozeError(f"MaskingTrainer cannot do {name}: leave it out, or use Trainer")
        if self.args.n_gpu > 1:
            raise ClozeError("MaskingTrainer takes one GPU a process: start it with torchrun or accelerate")
        self.model_accepts_loss_kwargs = True  # or Trainer would divide the loss once more
        self.evaluation_collator = collator.evaluation()
        self._sums = torch.zeros(3, dtype=torch.float64)  # of an evaluation: loss, correct, tokens

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one update and, for the count of their labels, their Σp over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        mass = sum((b["reference_mass"].sum().to(device) for b in batches), torch.zeros((), device=device))
        return batches, self.accelerator.gather(mass).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Σ w·loss / Σp; `num_items_in_batch` is the Σp of the update, None: that of this batch."""
        places, losses, logits = self._predict(model, inputs)
        total = (losses * inputs["token_weights"].flatten()[places]).sum()
        if num_items_in_batch is None:
            loss = total / inputs["reference_mass"].sum().clamp(min=1e-8)
        else:  # gradients are averaged over processes
            loss = total * self.accelerator.num_processes / num_items_in_batch.clamp(min=1e-8)
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def _predict(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Places [N] (flat indices), losses [N] and logits [N, vocabulary] of the predicted tokens."""
        labels = inputs["labels"].flatten()
        places = (labels != IGNORED).nonzero().squeeze(1)

        def gather(_layer: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (arguments[0].flatten(0, -2).index_select(0, places), *arguments[1:])

        layer = self.accelerator.unwrap_model(model).get_output_embeddings()
        hook = layer.register_forward_pre_hook(gather)
        try:
            logits = model(**{k: v for k, v in inputs.items() if k not in _OURS}, return_dict=True).logits
        finally:
            hook.remove()
        losses = nn.functional.cross_entropy(logits.float(), labels[places], reduction="none")
        return places, losses, logits

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Add the batch to the sums of the evaluation; no logits leave it."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            places, losses, logits = self._predict(model, inputs)
        right = logits.argmax(dim=1) == inputs["labels"].flatten()[places]
        rows, length = inputs["labels"].shape
        each = torch.stack([losses, right.float(), torch.ones_like(losses)], dim=1)
        sums = losses.new_zeros(rows, 3).index_add_(0, places // length, each)
        self._sums += self.accelerator.gather_for_metrics(sums).cpu().double().sum(dim=0)
        return losses.sum() / max(1, losses.numel()), None, None

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Loss and accuracy per token, where the stock loop has a mean of the means of batches."""
        self._sums.zero_()
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        if not self.is_in_train:  # or a training that follows would not be wrapped for its processes
            self.model._is_accelerate_prepared = False
        loss, right = (self._sums[:2] / self._sums[2].clamp(min=1.0)).tolist()
        ours = {f"{metric_key_prefix}_loss": loss, f"{metric_key_prefix}_accuracy": right}
        return output._replace(metrics=(output.metrics or {}) | ours)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """With the fixed masks."""
        return self._fixed(super().get_eval_dataloader, eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """With the fixed masks."""
        return self._fixed(super().get_test_dataloader, test_dataset)

    def _fixed(self, make: Callable[[Any], Any], dataset: Any) -> Any:
        training, self.data_collator = self.data_collator, self.evaluation_collator
        try:
            return make(dataset)
        finally:
            self.data_collator = training

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns that the collator reads, beside the model's."""
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*{*self._signature_columns, "word_ids", "special_tokens_mask"}]
