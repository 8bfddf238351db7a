"""What a run would take, without running it: `cloze pretrain --dry-run`."""

from __future__ import annotations

import resource
import time

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerFast

from cloze.corruption.replace import Vocabulary
from cloze.data.batch import Batch
from cloze.data.corpus import LoadTokenizer, TrainTokenizer, source_tokens
from cloze.data.tokenizers import load_tokenizer
from cloze.masking.rate import mean_rate
from cloze.methods.build import build_method
from cloze.models.build import PretrainedModelChoice, build_model, parameters
from cloze.models.encoder import isolate
from cloze.recipes.schema import Recipe
from cloze.terminal import amount, duration
from cloze.training.budget import Budget
from cloze.training.optimisers import build_optimizers
from cloze.training.precision import autocast, quick_products

_STEPS = 3


@quick_products()
def estimate(recipe: Recipe) -> dict[str, str]:
    """Size, memory, steps, tokens and hours of a run, as lines for a person.

    Builds the model and times a few steps on random tokens in memory; reads only the sizes of the data
    (and a few kilobytes of it), trains nothing and writes nothing.
    """
    tokenizer = _tokenizer(recipe)
    model = build_model(recipe.model, tokenizer, recipe.seed)
    vocabulary = Vocabulary(len(tokenizer), tokenizer.mask_token_id, torch.arange(5, len(tokenizer)))
    accelerator = Accelerator(cpu=torch.backends.mps.is_available())
    encoder = isolate(model)
    counts = torch.ones(encoder.vocabulary.weight.shape[0])
    method = build_method(
        recipe.objective, recipe.masking, recipe.corruption, encoder, vocabulary, counts, recipe.seed
    ).to(accelerator.device)
    optimizers = build_optimizers(method, recipe.training.optimizer)
    phases = recipe.training.phases
    longest = encoder.longest()
    cast = autocast(accelerator.device, recipe.training.precision)
    size = parameters(method)

    if recipe.training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    method.train()

    def now() -> float:
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    seconds = 0.0
    for phase in phases:
        micro = recipe.training.micro_tokens or phase.length * phase.rows
        rows = min(phase.rows, max(1, micro // phase.length))
        times = []
        for _ in range(_STEPS):
            start = now()
            batch = _random_batch(rows, phase.length, vocabulary.size, longest)
            work = method.prepare(batch.to(accelerator.device), 0.5)
            with cast():
                outcome = method(work)
            weights = method.weights(work)
            sum(value / weights[term] for term, value in outcome.sums.items()).backward()
            between = now()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            times.append((between - start) * -(-phase.rows // rows) + now() - between)
        seconds += phase.share * sorted(times)[_STEPS // 2]

    per_step = sum(p.share * p.rows * p.length for p in phases)
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
        "masking": f"{recipe.choices()['masking']}: {amount(mean_rate(recipe.masking.rate) * per_step)} "
        "predicted tokens a step",
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
    choice = recipe.tokenizer
    if isinstance(choice, LoadTokenizer):
        model = recipe.model.path if isinstance(recipe.model, PretrainedModelChoice) else ""
        return load_tokenizer(choice.path or model, choice.add_mask_token)
    assert isinstance(choice, TrainTokenizer)
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


def _random_batch(rows: int, length: int, vocabulary: int, longest: int) -> Batch:
    column = torch.arange(length)
    place = (column % longest).expand(rows, length).clone()
    pieces = -(-length // longest)  # samples in a row
    sample = torch.arange(rows)[:, None] * pieces + column // longest
    keys = torch.arange(rows * pieces)
    ids = torch.randint(5, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    everywhere = torch.ones((rows, length), dtype=torch.bool)
    return Batch(ids, sample, place, place, everywhere, keys, torch.zeros_like(keys), dense=pieces == 1)
