"""What a run would take, without running it: `cloze pretrain --dry-run`."""

from __future__ import annotations

import resource
import time

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerFast

from cloze.assembly import method_of
from cloze.corruption.replace import Vocabulary
from cloze.data.batch import Batch
from cloze.data.corpus import LoadTokenizer, finished_store, source_tokens
from cloze.data.store import PARAGRAPH, SENTENCE, UNIT
from cloze.data.tokenizers import add_sentinels, load_tokenizer
from cloze.errors import ClozeError
from cloze.methods.build import vocabulary_of
from cloze.models.build import PretrainedModelChoice, build_model, parameters
from cloze.models.encoder_decoder import wrap
from cloze.progress import stretches
from cloze.recipes.schema import Recipe
from cloze.terminal import amount, duration
from cloze.training.budget import Budget
from cloze.training.loop import Trainer
from cloze.training.precision import quick_products
from cloze.training.state import State

_STEPS = 3


@quick_products()
def estimate(recipe: Recipe) -> dict[str, str]:
    """Size, memory, steps, tokens and hours of a run, as lines for a person.

    Builds the model and times a few steps on random tokens in memory; reads only the sizes of the data
    (and a few kilobytes of it), trains nothing and writes nothing.
    """
    tokenizer = _tokenizer(recipe)
    if recipe.infills:
        add_sentinels(tokenizer)
    model = build_model(recipe.model, tokenizer, recipe.seed)
    vocabulary = vocabulary_of(tokenizer)
    accelerator = Accelerator(cpu=torch.backends.mps.is_available())
    encoder = wrap(model)
    method = method_of(recipe, encoder, vocabulary).to(accelerator.device)
    phases = recipe.training.phases
    # Rows as the run has them: of one sample each where the model cannot keep several apart.
    longest = encoder.longest()
    lengths = [phase.length if encoder.isolates else min(phase.length, longest) for phase in phases]
    if recipe.training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    method.train()
    settings = recipe.training.model_copy(update={"compile": False})
    trainer = Trainer(method, [], settings, State(steps=10**6), recipe.seed, accelerator)

    def step(rows: int, length: int, micro: int) -> tuple[float, float]:
        """Seconds of a step of so many micro-batches, the middle one of a few, and its predicted share."""
        times, at = [], trainer.state.step
        for _ in range(_STEPS):
            batches = [_random_batch(i, rows, length, vocabulary, longest) for i in range(micro)]
            trainer.state.step = at
            start = time.perf_counter()
            result = trainer.step(batches)  # ends with numbers on the CPU, so a GPU is done as well
            times.append(time.perf_counter() - start)
        trainer.state.step = at
        return sorted(times)[_STEPS // 2], result.predicted / result.tokens

    seconds = predicted = 0.0
    for start, end in stretches([phase.share for phase in phases], method.stages):
        trainer.state.step = round((start + end) / 2 * trainer.state.steps)
        number = trainer.phase_at(trainer.state.step)
        phase, length = phases[number], lengths[number]
        mine = phase.rows // method.copies
        most = recipe.training.micro_tokens
        rows = mine if most is None else min(mine, max(1, most // (length * method.copies)))
        micro = -(-mine // rows)
        one, share = step(rows, length, 1)
        each = max(0.0, step(rows, length, 2)[0] - one) if micro > 1 else 0.0
        seconds += (end - start) * (one + (micro - 1) * each)
        predicted += (end - start) * share * phase.rows * length

    size = parameters(method)
    per_step = sum(p.share * p.rows * length for p, length in zip(phases, lengths, strict=True))
    budget = Budget.parse(recipe.training.budget)
    steps = budget.steps(per_step, seconds)
    tokens = steps * per_step
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if accelerator.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    corpus = [source_tokens(recipe.data, s) for s in recipe.data.sources]
    lines = {
        "model": f"{type(model).__name__}, {amount(size)} parameters",
        "memory": f"{amount(16 * size)}B of weights, gradients, optimiser; peak {amount(peak)}B",
        "masking": f"{recipe.choices()['masking']}: {amount(predicted)} predicted tokens a step",
        "steps": f"{steps:,} of {amount(per_step)} tokens ({recipe.training.budget})",
        "tokens": amount(tokens),
        "time": f"{duration(steps * seconds)} at {amount(per_step / seconds)} tokens/s (timed now on "
        f"{accelerator.device})",
    }
    if corpus:
        lines["text"] = " + ".join(corpus_line for corpus_line, _ in corpus)
        known = sum(n for _, n in corpus)
        if known:
            passes = tokens / known
            lines["passes"] = f"{passes:.2g} over the text" if passes < 10 else f"{passes:,.0f} over the text"
    return lines


def _tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """The tokenizer that the run would have, or one of its size."""
    choice = recipe.tokenizer
    own = recipe.model.path if isinstance(recipe.model, PretrainedModelChoice) else None
    if isinstance(choice, LoadTokenizer) and (choice.path or own):
        tokenizer = load_tokenizer(choice.path or str(own), choice.add_mask_token)
        tokenizer.add_tokens([f"[new{number}]" for number in range(choice.extend)])
        return tokenizer
    stores = [folder for s in recipe.data.sources if (folder := finished_store(s)) is not None]
    if stores:
        return load_tokenizer(stores[0] / "tokenizer")
    if isinstance(choice, LoadTokenizer):
        raise ClozeError(
            "tokenizer.path is missing: give a tokenizer folder or hub id, or tokenizer.kind=train"
        )
    return _stand_in(choice.vocabulary)


def _stand_in(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of the size that is asked for, with meaningless tokens."""
    from tokenizers import Tokenizer, models

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocabulary = {
        token: i for i, token in enumerate([*special, *(f"t{i}" for i in range(size - len(special)))])
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]")),
        pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip


def _random_batch(number: int, rows: int, length: int, vocabulary: Vocabulary, longest: int) -> Batch:
    column = torch.arange(length)
    place = (column % longest).expand(rows, length).clone()
    pieces = -(-length // longest)  # samples in a row
    sample = torch.arange(rows)[:, None] * pieces + column // longest
    keys = torch.arange(rows * pieces)
    generator = torch.Generator().manual_seed(0)
    ids = vocabulary.ordinary[torch.randint(vocabulary.ordinary.numel(), (rows, length), generator=generator)]
    everywhere = torch.ones((rows, length), dtype=torch.bool)
    # Text of no structure in particular: sentences of 20 tokens, four in a paragraph, a document each sample.
    opens = (place % 80 == 0) * PARAGRAPH + (place % 20 == 0) * SENTENCE + UNIT
    return Batch(
        ids,
        sample,
        place,
        place,
        everywhere,
        keys,
        torch.zeros_like(keys),
        pieces == 1,
        number * rows,
        opens.to(torch.uint8),
        keys,
    )
