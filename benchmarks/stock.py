"""The stock path in one process: BertForMaskedLM, DataCollatorForLanguageModeling and Trainer.

    python benchmarks/stock.py --data cloze:books --tokenizer FOLDER --steps 60 --json FILE

What a user of the well-known example script has, written against the public API: AdamW, linear schedule,
clipping at 1, logging every 10 steps, no checkpoints. `blocks`: texts framed by special tokens, all joined
and chopped into blocks; `lines`: a text a row, cut off at the length, padded to the longest of its batch.
Dropout is 0, which is faster and better in a short run than the library's 0.1 (--dropout). With --device cuda
it is as users have it there, bf16 and the library's own attention (SDPA). The other benchmarks run this file;
alone it prints its speed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import nullcontext
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from common import texts, whole_speed

CALIBRATION = 12  # steps that a budget of time is turned into a number of steps with


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="text, as for cloze pretrain --data")
    parser.add_argument("--text-field")
    parser.add_argument("--split-text", default="paragraphs")
    parser.add_argument("--tokenizer", required=True, help="its folder")
    parser.add_argument("--grouping", choices=["blocks", "lines"], default="blocks")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--family", choices=["bert", "modernbert"], default="bert")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rate", type=float, default=0.15)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--minutes", type=float, help="of training, in place of --steps; a trial comes first")
    parser.add_argument("--quick-products", action="store_true", help="as cloze multiplies on AMD CPUs")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches")
    parser.add_argument("--out", type=Path, help="folder for the model")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def new_model(
    tokenizer: Any,
    layers: int,
    width: int,
    dropout: float,
    seed: int,
    family: str = "bert",
    longest: int = 512,
) -> Any:
    """A model from scratch with the library's own attention; a BERT is as wide as the published miniatures.

    `longest`: tokens that it has positions for, at least 512.
    """
    import torch
    from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

    torch.manual_seed(seed)
    size: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": max(512, longest),
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family == "bert":
        names = "hidden_dropout_prob", "attention_probs_dropout_prob"
        return BertForMaskedLM(
            BertConfig(**size, intermediate_size=4 * width, **dict.fromkeys(names, dropout))
        )
    names = "embedding_dropout", "mlp_dropout", "attention_dropout"
    size |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep")}
    size |= {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    return ModernBertForMaskedLM(
        ModernBertConfig(**size, intermediate_size=3 * width // 2, **dict.fromkeys(names, dropout))
    )


def chop(batch: dict[str, list[list[int]]], length: int) -> dict[str, list[list[int]]]:
    """All texts of a batch joined, and cut into blocks; the rest at its end is dropped."""
    joined = {name: list(chain.from_iterable(rows)) for name, rows in batch.items()}
    starts = range(0, len(joined["input_ids"]) - length + 1, length)
    return {name: [values[i : i + length] for i in starts] for name, values in joined.items()}


def dataset(documents: list[str], tokenizer: Any, grouping: str, length: int) -> Any:
    """The tokenised rows."""
    from datasets import Dataset

    cut = {"truncation": True, "max_length": length} if grouping == "lines" else {}
    rows = Dataset.from_dict({"text": documents}).map(
        lambda batch: tokenizer(batch["text"], return_special_tokens_mask=True, **cut),
        batched=True,
        remove_columns=["text"],
    )
    return rows.map(chop, batched=True, fn_kwargs={"length": length}) if grouping == "blocks" else rows


def train(rows: Any, tokenizer: Any, chosen: argparse.Namespace, steps: int) -> tuple[Any, dict[str, Any]]:
    """The trainer after so many steps, and what they took: seconds and tokens of each step."""
    import torch
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=chosen.rate)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    seen: list[Any] = []
    marks: list[float] = []

    def collate(examples: list[dict[str, list[int]]]) -> Any:
        rows = [example["input_ids"] for example in examples]
        tokens, slots = sum(map(len, rows)), len(rows) * max(map(len, rows))
        useful = tokens - sum(row.count(token) for row in rows for token in special)
        return collator(examples) | {"counts": torch.tensor([tokens, useful, slots])}

    class Counting(Trainer):
        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
            seen.append(inputs.pop("counts"))
            return super().training_step(model, inputs, *rest, **more)

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not marks:
                marks.append(time.perf_counter())

        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if chosen.device == "cuda" and (state.global_step % 10 == 0 or state.global_step == steps):
                torch.cuda.synchronize()  # where logging waits anyway
            marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=chosen.rows,
            max_steps=steps,
            learning_rate=chosen.learning_rate,
            lr_scheduler_type="linear",
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            use_cpu=chosen.device == "cpu",
            bf16=chosen.device == "cuda",
            dataloader_num_workers=chosen.workers,
            seed=chosen.seed,
        )
        model = new_model(
            tokenizer,
            chosen.layers,
            chosen.width,
            chosen.dropout,
            chosen.seed,
            chosen.family,
            chosen.length,
        )
        trainer = Counting(model, arguments, train_dataset=rows, data_collator=collate, callbacks=[Clock()])
        trainer.train()
    counts = torch.stack(seen).tolist()
    return trainer, {
        "seconds": [mark - marks[0] for mark in marks[1:]],
        **{name: [row[i] for row in counts] for i, name in enumerate(("tokens", "useful", "slots"))},
    }


def main() -> None:
    chosen = options()
    import torch

    from cloze.data.tokenizers import load_tokenizer
    from cloze.training.precision import quick_products

    tokenizer = load_tokenizer(chosen.tokenizer)
    documents = list(texts(chosen.data, chosen.text_field, chosen.split_text))
    rows = dataset(documents, tokenizer, chosen.grouping, chosen.length)
    steps = chosen.steps
    if chosen.minutes:
        _, trial = train(rows, tokenizer, chosen, CALIBRATION)
        took = [b - a for a, b in zip(trial["seconds"], trial["seconds"][1:], strict=False)]
        fast = sorted(took)[: len(took) // 2]  # as cloze does: a busy moment must not shorten the run
        steps = max(1, int(60 * chosen.minutes / statistics.mean(fast)))
    with quick_products() if chosen.quick_products else nullcontext():
        trainer, found = train(rows, tokenizer, chosen, steps)
    if chosen.out:
        trainer.save_model(str(chosen.out))
        tokenizer.save_pretrained(chosen.out)
    numbers = range(1, steps + 1)
    result: dict[str, Any] = {
        "points": list(zip(numbers, found["seconds"], accumulate(found["tokens"]), strict=True)),
        "useful_points": list(zip(numbers, found["seconds"], accumulate(found["useful"]), strict=True)),
        "filled": sum(found["tokens"]) / sum(found["slots"]),
        "useful_share": sum(found["useful"]) / sum(found["slots"]),
        "rows_in_all": len(rows),
        "threads": torch.get_num_threads(),
    }
    print(f"{steps} steps, {whole_speed(result['points']):,.0f} tokens/s")
    if chosen.json:
        chosen.json.write_text(json.dumps(result), "utf-8")


if __name__ == "__main__":
    main()
