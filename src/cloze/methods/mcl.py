"""Multi-perspective course learning: replaced, swapped and inserted tokens, and a second try at mistakes."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from cloze.auc import auc
from cloze.corruption.courses import Courses
from cloze.corruption.rearrange import insert, swap
from cloze.corruption.replace import Vocabulary
from cloze.corruption.view import View
from cloze.data.batch import Batch
from cloze.masking.base import Policy
from cloze.masking.plan import MaskPlan
from cloze.methods.base import Outcome, Pass, TokenWork
from cloze.methods.detection import TERM, detection_loss, judge
from cloze.methods.electra import MLM, Electra, ElectraWork
from cloze.methods.objectives import DetectionObjective
from cloze.models.encoder import Encoder
from cloze.random import Stream, uniform

SWAPPED, INSERTED = "swapped", "inserted"
MLM_AGAIN, TERM_AGAIN = "mlm_again", "detection_again"


@dataclass(frozen=True, slots=True)
class Course:
    """What one course judges, known before a network runs.

    Attributes:
        view: what is judged; inserted tokens are mask tokens yet.
        places: [N] int64, flat indices into the view of the judged tokens. labels: [N] int64, 1 for tokens
            that do not belong there.
        filled: [M] int64, flat indices of the tokens that the generator fills in. draws: [M] float64.
    """

    view: View
    places: Tensor
    labels: Tensor
    filled: Tensor
    draws: Tensor


@dataclass(frozen=True, slots=True)
class MclWork(ElectraWork):
    """ELECTRA's work, with what else is asked about the batch.

    Attributes:
        courses: {name: course}. again: [M] float64, draws for the hidden places when they are written anew.
    """

    courses: dict[str, Course]
    again: Tensor


class Mcl(Electra):
    """Multi-perspective course learning (2305.03981): ELECTRA with more to detect.

    One head judges all courses: does this token belong there? The terms are ELECTRA's `mlm` and `detection`,
    `swapped` and `inserted`, the last three weighted by `objective.weight`, and the corrections `mlm_again`
    and `detection_again`. How the paper corrects is not known here (its abstract and model card do not say),
    so this is a choice: of the hidden places all are corrected but those where the generator was right and
    the model believed it. The loss of `mlm_again` is divided by the weight of all hidden places, which is
    known before: as mistakes become fewer, it falls. Held-out text is judged with replaced tokens alone.
    """

    def __init__(
        self,
        encoder: Encoder,
        masking: Policy,
        corruption: Courses,
        objective: DetectionObjective,
        vocabulary: Vocabulary,
        seed: int,
    ):
        super().__init__(encoder, masking, corruption.generator, objective, vocabulary, seed)
        self.courses = corruption
        self.judged: dict[str, list[tuple[Tensor, Tensor]]] = {}
        """Logits and labels of the last step, of each course but the first."""

    def coefficients(self, progress: float) -> dict[str, float]:
        weight, courses = self.objective.weight, self.courses
        found = super().coefficients(progress)
        found |= {SWAPPED: weight} if courses.swapped else {}
        found |= {INSERTED: weight} if courses.inserted else {}
        found |= {MLM_AGAIN: 1.0} if "generator" in courses.corrections else {}
        return found | ({TERM_AGAIN: weight} if "model" in courses.corrections else {})

    def work(self, batch: Batch, plan: MaskPlan) -> MclWork:
        courses, seed = {}, self.seed
        if self.courses.swapped:
            courses[SWAPPED] = _course(batch, swap(batch, self.courses.swapped, seed), seed)
        if self.courses.inserted:
            longer = insert(batch, self.courses.inserted, self.vocabulary.mask, self.encoder.longest(), seed)
            courses[INSERTED] = _course(batch, longer, seed)
        return self._with(self._judge(batch, plan, seed), courses)

    def examine(self, batch: Batch, plan: MaskPlan, seed: int) -> MclWork:
        return self._with(self._judge(batch, plan, seed), {})

    def _with(self, work: ElectraWork, courses: dict[str, Course]) -> MclWork:
        known: dict[str, Any] = {f.name: getattr(work, f.name) for f in fields(ElectraWork)}
        sample = work.batch.segments.flatten()[work.hidden]
        name = work.batch.keys[sample], work.batch.visits[sample], work.batch.index.flatten()[work.hidden]
        # Inserted tokens have the numbers of the tokens before them, of which the sign tells these apart.
        return MclWork(**known, courses=courses, again=uniform(self.seed, Stream.REWRITE, *name))

    def weights(self, work: TokenWork) -> dict[str, Tensor]:
        assert isinstance(work, MclWork)
        found = super().weights(work)
        judged = {
            name: torch.tensor(course.labels.numel(), dtype=torch.float64, device=course.labels.device)
            for name, course in work.courses.items()
        }
        again = {MLM_AGAIN: found[MLM], TERM_AGAIN: found[TERM]}
        terms = self.coefficients(0.0)
        return found | judged | {term: weight for term, weight in again.items() if term in terms}

    def forward(self, work: TokenWork) -> Outcome:
        assert isinstance(work, MclWork)
        mlm, seen = self._write(work, work.views[0], work.hidden_weights, work.draws)
        total, feedback = self._detect(work, seen)
        sums = {MLM: mlm, TERM: total}
        for name, course in work.courses.items():
            # In all processes alike, whether or not this one's rows have places to fill (`same_passes`).
            view = self._filled(course) if name == INSERTED else course.view
            logits = judge(self.encoder, self.detector, view, course.places)
            sums[name], found = detection_loss(logits, course.labels, torch.ones_like(logits))
            feedback |= {f"{name}/logits": found["logits"], f"{name}/labels": course.labels}
        if self.courses.corrections and torch.is_grad_enabled():
            sums |= self._again(work, seen, feedback)
        return Outcome(sums, feedback)

    def _filled(self, course: Course) -> View:
        """The course's view with samples of the generator in the inserted places."""
        with torch.no_grad():
            tokens = self._sample(self.generator(course.view, course.filled).features, course.draws)
        ids = course.view.ids.flatten().index_copy(0, course.filled, tokens)
        return replace(course.view, ids=ids.view_as(course.view.ids))

    def _again(self, work: MclWork, seen: Tensor, feedback: dict[str, Tensor]) -> dict[str, Tensor]:
        """The corrections: what was wrong is written once more, and that text is judged."""
        clean = work.batch.ids
        doubted = torch.zeros(clean.numel(), dtype=torch.bool, device=clean.device)
        doubted[work.places] = feedback["guess"] > 0
        wrong = (doubted | (seen != clean).flatten()).index_select(0, work.hidden)
        weights = torch.where(wrong, work.hidden_weights, 0.0)
        at = work.hidden[weights > 0]
        ids = clean.flatten().index_fill(0, at, self.vocabulary.mask).view_as(clean)
        mlm, written = self._write(work, replace(work.views[0], ids=ids), weights, work.again)
        sums = {MLM_AGAIN: mlm} if "generator" in self.courses.corrections else {}
        if "model" in self.courses.corrections:
            sums[TERM_AGAIN], found = self._detect(work, written)
            feedback |= {f"{TERM_AGAIN}/logits": found["logits"], f"{TERM_AGAIN}/labels": found["labels"]}
        return sums

    def passes(self, work: TokenWork) -> list[Pass]:
        assert isinstance(work, MclWork)
        first, second = super().passes(work)
        found = [first, second]
        for course in work.courses.values():
            # Filling has no backward pass; it is counted as if it had.
            found += (
                [Pass(self.generator, course.view, course.filled.numel())] if course.filled.numel() else []
            )
            found.append(Pass(self.encoder, course.view, 0))
        found += [first] if self.courses.corrections else []
        return found + ([second] if "model" in self.courses.corrections else [])

    def observe(self, works: list[TokenWork], feedback: list[dict[str, Tensor]]) -> None:
        super().observe(works, feedback)
        names = [key.removesuffix("/logits") for key in (feedback or [{}])[0] if key.endswith("/logits")]
        self.judged = {n: [(f[f"{n}/logits"], f[f"{n}/labels"]) for f in feedback] for n in names}

    def log(self) -> dict[str, float]:
        """As of ELECTRA, and of each other course its positive rate and its AUC."""
        found = super().log()
        for name, pairs in self.judged.items():
            logits, labels = (torch.cat(list(x)) for x in zip(*pairs, strict=True))
            found[f"{name}/positive"] = labels.double().mean().item()
            found[f"{name}/auc"] = auc(logits, labels > 0)
        return {name: value for name, value in found.items() if value == value}


def _course(batch: Batch, view: View, seed: int) -> Course:
    """All of the text is judged; a label is 1 for an inserted token and where another one stands."""
    origin = view.origin.flatten()
    inserted = (origin < 0) & (view.segments.flatten() >= 0)
    text = (origin >= 0) & (batch.index.flatten()[origin] >= 0)
    places = (text | inserted).nonzero().squeeze(1)
    other = batch.ids.flatten()[origin] != view.ids.flatten()
    filled = inserted.nonzero().squeeze(1)
    sample = view.segments.flatten()[filled]
    # Named by the token before, from below: the places that are written anew have the numbers from 0 up.
    before = -1 - batch.index.flatten()[origin[filled - 1]]
    draws = uniform(seed, Stream.REWRITE, batch.keys[sample], batch.visits[sample], before)
    return Course(view, places, (inserted | other)[places].to(torch.int64), filled, draws)
