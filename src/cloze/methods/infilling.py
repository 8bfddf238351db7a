"""Infilling: what spans held is written out, one token after the other, from the text around them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cloze.corruption.replace import Vocabulary
from cloze.corruption.sentinels import Answers, Sentinels, joined, separate
from cloze.corruption.view import View
from cloze.data.batch import Batch
from cloze.errors import ClozeError
from cloze.masking.base import Masking
from cloze.masking.plan import MaskPlan
from cloze.masking.rate import rate_at
from cloze.masking.spans import Spans
from cloze.methods.base import Method, Outcome, Pass, Reading, TokenWork
from cloze.models.encoder import Encoded, Encoder
from cloze.models.encoder_decoder import EncoderDecoder
from cloze.models.twins import decoder_twin
from cloze.models.vocabulary_loss import vocabulary_loss

EXAMINED = Spans(rate=0.15)  # hidden in held-out text, whatever spans the run hides


class Infilling(Method[TokenWork]):
    """Span corruption (T5, 1910.10683, §3.1.4) over an encoder-decoder or one network (2204.05832, §3.1).

    The loss is the mean over the tokens of all answers: sentinels, hidden tokens, and an end for each sample.
    Held-out text is measured on its hidden tokens alone. In one network (`visibility` causal or prefix) each
    sample's answer stands behind its given text, with the mask token between them.
    """

    everywhere = True  # all that is hidden is predicted: a mask cannot choose among it

    def __init__(
        self,
        encoder: Encoder | EncoderDecoder,
        masking: Masking,
        corruption: Sentinels,
        visibility: str,
        vocabulary: Vocabulary,
        seed: int,
    ):
        super().__init__()
        self.encoder, self.masking, self.corruption = encoder, masking, corruption
        self.visibility, self.vocabulary, self.seed = visibility, vocabulary, seed
        self.sees = (visibility,)
        self.measures = "tokens of hidden ends" if masking.kind == "rest" else "tokens of hidden spans"

    def coefficients(self, progress: float) -> dict[str, float]:
        return {"infill": 1.0}

    def rate(self, progress: float) -> float:
        return self.masking.real(rate_at(self.masking.rate, progress))

    def prepare(self, batch: Batch, progress: float) -> TokenWork:
        return self.work(batch, self.masking.plan(batch, self.rate(progress), self.seed))

    def work(self, batch: Batch, plan: MaskPlan) -> TokenWork:
        found = self._answers(batch, plan)
        weights = torch.ones_like(found.labels, dtype=torch.float32)
        density = 1.0  # of the answers' tokens
        return TokenWork(
            batch, plan, found.views, found.places, found.targets, found.labels, weights, density
        )

    def examine(self, batch: Batch, plan: MaskPlan, seed: int) -> TokenWork:
        masking = self._examined()
        work = self.work(batch, masking.plan(batch, masking.rate, seed))  # type: ignore[arg-type]
        text = work.targets >= 0
        return replace(
            work,
            places=work.places[text],
            targets=work.targets[text],
            labels=work.labels[text],
            token_weights=work.token_weights[text],
        )

    def _examined(self) -> Masking:
        """What hides held-out text: the same for all runs of one kind."""
        return self.masking if self.masking.kind == "rest" else EXAMINED

    def _answers(self, batch: Batch, plan: MaskPlan) -> Answers:
        if isinstance(self.encoder, EncoderDecoder):
            return separate(batch, plan, self.vocabulary, self.encoder.start)
        found = joined(batch, plan, self.vocabulary, self.vocabulary.mask, self.visibility == "prefix")
        size, longest = int(found.views[0].positions.max()) + 1, self.encoder.longest()
        if size > longest:
            raise ClozeError(
                f"a sample has {size} tokens with its answer, the model takes {longest}; lower "
                "length in training.phases and evaluation.length, or raise model.longest"
            )
        return found

    def weights(self, work: TokenWork) -> dict[str, Tensor]:
        return {"infill": work.token_weights.sum(dtype=torch.float64)}

    def passes(self, work: TokenWork) -> list[Pass]:
        """Of an encoder-decoder each stack is half of the body, more or less."""
        *first, last = work.views
        share = 1.0 / len(work.views)
        seen = [Pass(self.encoder, view, 0, share) for view in first]
        return [*seen, Pass(self.encoder, last, int(work.predicted), share)]

    def forward(self, work: TokenWork) -> Outcome:
        layer = self.encoder.vocabulary
        norms = self.norms and torch.is_grad_enabled()
        out = vocabulary_loss(
            self._encode(work.views, work.places).features,
            layer.weight,
            layer.bias,
            work.labels,
            work.token_weights,
            norms=norms,
        )
        feedback = {"loss": out.loss, "guess": out.guess}
        if norms:
            feedback |= {"residual": out.residual, "hidden_gradient": out.hidden_gradient}
        return Outcome({"infill": out.total}, feedback)

    def _encode(self, views: tuple[View, ...], places: Tensor) -> Encoded:
        found: Encoded = self.encoder(*views, places)
        return found

    @torch.no_grad()
    def answer(self, batch: Batch, seed: int, most: int = 64) -> tuple[Tensor, Tensor, Tensor]:
        """What it writes for one sample (a batch of one row), greedily, where held-out masks hide its text.

        Returns: the given text, the answer with its end or after `most` tokens, and the true one; ids.
        """
        device = self.encoder.vocabulary.weight.device
        masking = self._examined()
        found = self._answers(batch, masking.plan(batch, masking.rate, seed))  # type: ignore[arg-type]
        views = tuple(view.to(device) for view in found.views)
        last, given = views[-1], views[0]
        first = int(found.places[0])  # the output that predicts the first token
        ids = last.ids[:, : first + 1]
        for _ in range(most):
            one = torch.zeros_like(ids)
            place = torch.arange(ids.shape[1], device=device)[None]
            open = None if last.open is None else place < first
            now = View(ids, one, place, place, causal=True, open=open)
            features = self._encode((*views[:-1], now), place[0, -1:]).features
            layer = self.encoder.vocabulary
            token = torch.nn.functional.linear(features, layer.weight, layer.bias).argmax(1)
            ids = torch.cat([ids, token[None]], 1)
            if int(token) == self.vocabulary.end or ids.shape[1] >= self.encoder.longest():
                break
        inside = given.ids[0] if len(views) == 2 else given.ids[0, :first]
        return inside.cpu(), ids[0, first + 1 :].cpu(), found.labels.cpu()

    @property
    def reading(self) -> Reading | None:
        return "seq2seq" if isinstance(self.encoder, EncoderDecoder) else "causal"

    def export(self) -> PreTrainedModel:
        return self.encoder.model if self.reading == "seq2seq" else decoder_twin(self.encoder.model)
