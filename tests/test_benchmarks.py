"""The benchmarks start, the README names them, and what they count and compute is right."""

from __future__ import annotations

import importlib
import json
import random
import re
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CLS, MASK, PAD, SEP, UNK, make_samples, pack, tiny_model, word_tokenizer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

from cloze.corruption.view import View
from cloze.models.encoder import Encoder
from cloze.models.vocabulary_loss import vocabulary_loss

FOLDER = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(p.name for p in FOLDER.glob("*.py") if p.name != "common.py")
LAYERS, WIDTH, VOCABULARY, LENGTH, ROWS = 2, 64, 512, 32, 4


def _addmm(_out: Any, a: Any, b: Any, **_: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


IN_PLACE = {torch.ops.aten.addmm_: _addmm}  # which torch's counter leaves out by itself


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`benchmark("limits")`: the module of that name, imported as the scripts import each other."""
    monkeypatch.syspath_prepend(FOLDER)
    names = ("common", *(Path(script).stem for script in SCRIPTS))
    others = {name: sys.modules.pop(name) for name in names if name in sys.modules}  # such as tests/masking
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(others)


@pytest.mark.usefixtures("benchmark")
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_says_how_to_run_it(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(FOLDER / script), run_name="__main__")
    assert end.value.code == 0
    assert f"python benchmarks/{script}" in capsys.readouterr().out
    assert f"`python benchmarks/{script} " in (FOLDER / "README.md").read_text("utf-8").replace(
        ".py`", ".py `"
    )


def test_the_readme_names_what_there_is() -> None:
    named = set(re.findall(r"benchmarks/(\w+\.py)", (FOLDER / "README.md").read_text("utf-8")))
    assert named == set(SCRIPTS)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_operations_are_those_of_a_training_step(family: str, share: float, benchmark: Any) -> None:
    """Forward and backward of a real step under torch's own counter, at predicted tokens only."""
    limits = benchmark("limits")
    shape = limits.family_shape(family, WIDTH)
    size: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
        "intermediate_size": shape["intermediate"], "pad_token_id": PAD, "bos_token_id": CLS,
        "eos_token_id": SEP,
    }  # fmt: skip
    if family == "bert":
        encoder = Encoder(BertForMaskedLM(BertConfig(**size)))
    else:
        config = ModernBertConfig(**size, cls_token_id=CLS, sep_token_id=SEP)
        encoder = Encoder(ModernBertForMaskedLM(config))
    batch = pack([make_samples([LENGTH - 2], seed) for seed in range(ROWS)], LENGTH)
    view = View.of(batch, batch.ids)
    places = torch.arange(round(share * ROWS * LENGTH))
    layer = encoder.vocabulary
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter, sdpa_kernel(SDPBackend.MATH):
        features = encoder(view, places).features
        labels = torch.full_like(places, UNK + MASK)
        vocabulary_loss(features, layer.weight, layer.bias, labels).total.backward()
    size = {"layers": LAYERS, "width": WIDTH, "vocabulary": VOCABULARY, "length": LENGTH, **shape}
    counted = counter.get_total_flops() / (ROWS * LENGTH)
    assert limits.operations(**size, share=share) == pytest.approx(counted, rel=2e-3)
    assert limits.operations(**size, share=share / 2) < 0.99 * counted


def test_products_are_the_operations_without_attention(benchmark: Any) -> None:
    limits = benchmark("limits")
    for family in ("bert", "modernbert"):
        size = {"layers": 4, "width": 256, "vocabulary": 30_522, **limits.family_shape(family, 256)}
        listed = limits.products(**size, share=0.25, tokens=4096)
        linear = sum(6.0 * count * rows * a * b for count, rows, a, b in listed) / 4096
        assert linear == pytest.approx(limits.operations(**size, share=0.25, length=0))


def test_batches_grow_until_memory_ends(benchmark: Any) -> None:
    common = benchmark("common")
    tried = []

    def trial(rows: int, most: int = 32) -> dict[str, Any]:
        def work() -> dict[str, Any]:
            tried.append(rows)
            if rows > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return {"tokens_per_second": common.spread([{8: 10.0, 16: 30.0, 32: 20.0}[rows]])}

        return common.attempt(work)

    best, found = common.grow([8, 16, 32, 64, 128], trial)
    assert (best, found["tokens_per_second"]["median"]) == (16, 30.0)
    assert tried == [8, 16, 32, 64]  # no more after the first that failed
    assert common.grow([64, 8], trial) == (None, {"error": "out of memory"})
    assert common.attempt(lambda: {}["rows"]) == {"error": "KeyError: 'rows'"}


def test_the_summary_of_a_gpu(benchmark: Any) -> None:
    gpu = benchmark("gpu")

    def run(speed: float) -> dict[str, Any]:
        return {"tokens_per_second": {"median": speed}}

    result = {
        "limits": {"default": {"at_best": 8e5, "at_shapes": 5e5}},  # GFLOP/s
        "base": {
            "facts": {
                "30%": {"operations_per_token": 2e9, "text_share": 0.9},
                "15%": {"operations_per_token": 1e9, "text_share": 0.9},
            },
            "runs": {
                "30%, eager, 16 rows": run(1e5),
                "30%, eager, 32 rows": {"error": "out of memory"},
                "15%, compiled, 16 rows": run(2e5),
                "15%, compiled, 32 rows": run(4e5),
            },
        },
        "stock": {"arms": {"bert, lines": {"best": {"useful_tokens_per_second": {"median": 9e4}}},
                           "bert, blocks": {"best": {"error": "out of memory"}}}},
    }  # fmt: skip
    found = gpu.summary(result)
    assert found["utilisation"]["base, 30%, eager, 16 rows"]["at_best"] == pytest.approx(0.25)
    assert found["utilisation"]["base, 15%, compiled, 32 rows"]["at_shapes"] == pytest.approx(0.8)
    assert len(found["utilisation"]) == 3
    assert found["ratios"] == {"to bert, lines": pytest.approx(4.0)}
    assert gpu.best_rows(result) == 32


def test_results_of_masking_keep_their_names(benchmark: Any) -> None:
    masking = benchmark("masking")
    assert masking.model_of(128, 4, "modernbert") == "128"
    assert masking.model_of(768, 22, "bert") == "768x22-bert"
    old = {"regime": "scarce", "rate": 0.3, "width": 128}
    assert masking.cell_of(old) == ("scarce", 0.3, "128")
    assert masking.cell_of(old | {"layers": 22, "width": 768}) == ("scarce", 0.3, "768x22")


def test_blocks_hold_all_tokens_in_their_order(benchmark: Any) -> None:
    rows = {"input_ids": [[1, 2, 3], [4, 5], [6, 7, 8, 9]], "attention_mask": [[1] * 3, [1] * 2, [1] * 4]}
    found = benchmark("stock").chop(rows, 4)
    assert found == {"input_ids": [[1, 2, 3, 4], [5, 6, 7, 8]], "attention_mask": [[1] * 4, [1] * 4]}


def test_all_ways_to_score_pairs_give_the_same(tmp_path: Path, benchmark: Any) -> None:
    module = benchmark("minimal_pairs")
    rows = [{"sentence_good": f"w{i} w6 w7", "sentence_bad": f"w8 w{i}"} for i in range(10, 20)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    sentences = module.sentences_of(str(tmp_path / "pairs.jsonl"), 5)
    assert sentences == [text.format(i) for i in (10, 12, 14, 16, 18) for text in ("w{} w6 w7", "w8 w{}")]
    tiny_model("bert").save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    seconds, scores = module.ours(tmp_path, sentences)
    assert seconds > 0 and len(set(scores)) == 10
    for at_once in (True, False):
        assert module.stock(tmp_path, sentences, at_once)[1] == pytest.approx(scores, abs=1e-3)


def test_a_tokenizer_has_exactly_the_ids_asked_for(corpus: Path, tmp_path: Path, benchmark: Any) -> None:
    from cloze.data.tokenizers import ids_of, load_tokenizer

    folder = benchmark("common").make_tokenizer([corpus.read_text("utf-8")], 1_000, tmp_path / "tokenizer")
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer) == ids_of(tokenizer) == 1_000
    assert sorted(tokenizer.get_vocab().values()) == list(range(1_000))
    text = "The river"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text.lower()


def test_a_large_store_is_a_store(tmp_path: Path, benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    large = benchmark("large_store")
    monkeypatch.setattr(large, "PART", 3_000)
    large.write(tmp_path / "store", 10_000, 320)
    loader = large.opened(tmp_path / "store")
    store = loader.sources[0].store
    assert [store.document(record) for record in (0, 2_999, 3_000, 9_999)] == [0, 2_999, 3_000, 9_999]
    assert len(store) == store.totals["documents"] == 10_000
    assert loader.batch(0, 4).ids.max() < 320
    assert set(large.memory()) == {"all", "anonymous", "mapped", "peak"}


def test_speed_leaves_the_warm_up_out(benchmark: Any) -> None:
    common = benchmark("common")
    slow_start = [(5, 50.0, 500), (10, 100.0, 1000), (20, 101.0, 2000), (30, 102.0, 3000)]
    assert common.whole_speed(slow_start) == 1000.0
    assert common.paired([4.0, 6.0], [2.0, 2.0])["median"] == 2.5


def test_retrieval_asks_for_every_pair_once(benchmark: Any) -> None:
    texts = benchmark("retrieval").documents(20, pairs=5, keys=9, seed=3)
    assert len(set(texts)) == 20
    for text in texts:
        words = text.split()
        first, second = (dict(zip(w[::2], w[1::2], strict=True)) for w in (words[:10], words[10:]))
        assert len(first) == 5 and first == second
    assert any(text.split()[:10] != text.split()[10:] for text in texts)


@pytest.mark.parametrize(("target", "cases"), [("readers", 150), ("recipes", 40), ("overrides", 200)])
def test_fuzz_finds_nothing(target: str, cases: int, benchmark: Any, tmp_path: Path) -> None:
    fuzz = benchmark("fuzz")
    ends = []
    for number in range(cases):
        end, problem = fuzz.attempt(target, number, 1, tmp_path)
        assert problem is None, f"case {number}: {problem}"
        ends.append(end)
    assert {"taken", "refused"} == set(ends)


TOY = """
def parse(data):
    if data[:1] == b"C":
        if data[1:2] == b"L":
            if data[2:3] == b"O":
                raise KeyError("deep")
"""


def test_guided_cases_get_where_blind_ones_do_not(benchmark: Any, tmp_path: Path) -> None:
    """A fault behind three conditions, in 8,000 cases that change a byte: 1 in 16 million by chance."""
    fuzz = benchmark("fuzz")
    (tmp_path / "toy.py").write_text(TOY, encoding="utf-8")
    parse = runpy.run_path(str(tmp_path / "toy.py"))["parse"]

    def change(dice: random.Random, kept: Any) -> bytes:
        data = bytearray(dice.choice(kept))
        data[dice.randrange(len(data))] = dice.randrange(256)
        return bytes(data)

    def run(files: list[str]) -> Any:
        return fuzz.guided([b"...."], change, parse, files, random.Random(0), lambda n: n < 8000)

    found = run([str(tmp_path / "toy.py")])
    assert set(found.problems) and all("KeyError at toy.py" in problem for problem in found.problems)
    assert found.kept == 3  # the seed, C and CL
    blind = run([])
    assert (blind.kept, blind.problems) == (1, [])


def test_the_guided_fuzzer_reads_on(benchmark: Any, tmp_path: Path) -> None:
    fuzz = benchmark("fuzz")
    found = fuzz.search(1.5, 0, tmp_path)
    assert found.problems == []
    assert found.kept < found.ends.total()
    assert found.steps[1] > found.steps[0] > 100
    assert set(found.ends) == {"taken", "refused"}


def test_a_thousand_resumes_of_which_two(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a run that loses something is found."""
    resumes, chaos = benchmark("resumes"), benchmark("chaos")
    monkeypatch.setenv("CLOZE_CACHE", str(tmp_path / "cache"))
    text = chaos.write_text(tmp_path / "text.txt", random.Random(0))
    found = resumes.resume(tmp_path, 2, text, progress=False)
    assert found["failed"] == []
    (tmp_path / "stopped" / "left.tmp").touch()
    assert resumes.compare(tmp_path / "whole", tmp_path / "stopped") == ["file left.tmp"]
    lines = (tmp_path / "stopped" / "metrics.jsonl").read_text("utf-8").splitlines()
    (tmp_path / "stopped" / "metrics.jsonl").write_text("\n".join([*lines, lines[-1]]), "utf-8")
    assert "metrics.jsonl" in resumes.compare(tmp_path / "whole", tmp_path / "stopped")


def test_fuzz_sees_what_breaks(benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz = benchmark("fuzz")
    broken = {"crash": lambda *_: 1 / 0, "hang": lambda *_: time.sleep(5)}
    monkeypatch.setattr(fuzz, "TARGETS", broken)
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    before = signal.signal(signal.SIGALRM, fuzz._ring)
    try:
        assert "ZeroDivisionError" in fuzz.attempt("crash", 0, 0, tmp_path)[1]
        assert "Hang" in fuzz.attempt("hang", 0, 0, tmp_path)[1]
    finally:
        signal.signal(signal.SIGALRM, before)
