"""The command `cloze`: a function per verb."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding

from cloze.errors import ClozeError
from cloze.launch import is_silent, launched, speaks
from cloze.terminal import LogLines, Terminal, amount, duration

app = typer.Typer(
    name="cloze",
    help="Pretrain encoders by fill-in-the-blank, with low-variance gradients.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(help="List recipes, or show one.", invoke_without_command=True)
app.add_typer(recipes_app, name="recipes")

# No markup: paths and texts have brackets and colons of their own.
EXAMPLE_LINES = 4
out_console = Console(highlight=False, markup=False, emoji=False)
err_console = Console(stderr=True, highlight=False, markup=False, emoji=False)

DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="File, folder, glob, address, store or hub id; repeat it, and weight as NAME=0.7:PATH.",
    ),
]
TextField = Annotated[str | None, typer.Option(help="Column of the text, where it cannot be guessed.")]
Split = Annotated[str | None, typer.Option(help="A .txt file's documents: paragraphs, lines or file.")]
ProbeOption = Annotated[
    bool, typer.Option("--probe", help="Frozen encoder and logistic regression: seconds, not minutes.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Change a field: masking.rate=0.3. Repeatable.")
]


def _version(value: bool) -> None:
    if value:
        from cloze import __version__

        typer.echo(f"cloze {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """Options of every command."""
    if launched() > 1 and context.invoked_subcommand != "pretrain":
        raise ClozeError(f"cloze {context.invoked_subcommand} is one process: start it without torchrun")


@recipes_app.callback()
def recipes(context: typer.Context) -> None:
    """A table of the recipes that ship with cloze."""
    if context.invoked_subcommand is not None:
        return
    from cloze.methods.composite import MAIN
    from cloze.recipes.load import list_recipes

    widths = (15, 24, 11, 11, 11, 8)
    heads = ("recipe", "masking", "corruption", "visibility", "objective", "unbiased")
    out_console.print("".join(f"{h:<{w}}" for h, w in zip(heads, widths, strict=True)), style="bold")
    for recipe in list_recipes():
        for name in recipe.methods():
            own = name == MAIN
            heading = (recipe.name, "yes" if recipe.unbiased else "no") if own else (f"  {name}", "")
            cells = (heading[0], *recipe.choices(name).values(), heading[1])
            out_console.print("".join(f"{c:<{w}}" for c, w in zip(cells, widths, strict=True)).rstrip())
        paper = f" [{recipe.paper}]" if recipe.paper else ""
        out_console.print(Padding(f"{recipe.about}{paper}", (0, 0, 0, 2), expand=False), style="dim")
    out_console.print("\ncloze recipes show NAME > my.yaml  writes one to edit", style="dim")


@recipes_app.command("show")
def show(name: Annotated[str, typer.Argument(help="A recipe.")]) -> None:
    """Print a recipe as commented YAML."""
    from cloze.recipes.load import recipe_text

    typer.echo(recipe_text(name), nl=False)


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a YAML file.")],
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/RECIPE.")] = None,
    budget: Annotated[str | None, typer.Option(help="30m, 2h, 10Mtok or 5000steps.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model to start from: folder of a run or a model, or hub id.")
    ] = None,
    extend_vocabulary: Annotated[
        int | None, typer.Option(help="New tokens for the model's tokenizer, learnt from the text.")
    ] = None,
    text_field: TextField = None,
    split_text: Split = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and masks.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16.")] = None,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile the model with torch.compile.")
    ] = False,
    overrides: SetOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the out folder.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Resume although the recipe has changed.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show size, steps and time; train nothing.")
    ] = False,
) -> None:
    """Pretrain an encoder by a recipe."""
    sets = list(overrides or [])
    for field, value in (
        ("data.text_field", text_field),
        ("data.split_text", split_text),
        ("tokenizer.extend", extend_vocabulary),
        ("seed", seed),
        ("training.precision", precision),
        ("training.compile", compile_ or None),
    ):
        if value is not None:
            sets.append(f"{field}={json.dumps(value)}")  # a column may be named "no" or "1"
    from cloze.run import pretrain as run_pretrain
    from cloze.run import resolve
    from cloze.session import Interrupted

    if dry_run and launched() > 1:
        raise ClozeError("--dry-run is one process: start it without torchrun")
    if dry_run:
        from cloze.estimate import estimate

        chosen, _ = resolve(recipe, data, budget, model, sets)
        for name, value in estimate(chosen).items():
            out_console.print(f"{name:<14} {value}", soft_wrap=True)
        return
    with ExitStack() as stack:
        terminal = _terminal(stack)
        try:
            run = run_pretrain(
                recipe,
                data,
                out,
                budget,
                model=model,
                overrides=sets,
                resume=resume,
                force=force,
                listeners=[terminal],
                progress=terminal.reading,
            )
        except Interrupted as stopped:
            terminal.say(f"stopped at step {stopped.step:,}")
            raise typer.Exit(128 + stopped.signal) from None
    if speaks():
        _print_summary(run.folder, run.summary)


@app.command()
def prepare(
    out: Annotated[Path, typer.Option(help="Folder of the store.")],
    data: DataOption = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder or hub id; default: one is trained.")] = None,
    vocabulary: Annotated[int, typer.Option(help="Size of a trained tokenizer.")] = 16384,
    algorithm: Annotated[str, typer.Option(help="bpe, wordpiece or characters.")] = "bpe",
    add_mask_token: Annotated[
        bool, typer.Option("--add-mask-token", help="Add [MASK] to a tokenizer that has none.")
    ] = False,
    text_field: TextField = None,
    split_text: Split = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one per core.")] = None,
    shard: Annotated[
        str | None, typer.Option(help="On one of many machines: 2/8 is the second of eight shards.")
    ] = None,
    join: Annotated[bool, typer.Option("--merge", help="Make one store of the shards in OUT.")] = False,
) -> None:
    """Tokenise text once, into a store that `pretrain --data STORE` reads."""
    from cloze.data.corpus import make_store
    from cloze.data.shards import merge

    if join:
        if data or shard:
            raise ClozeError("--merge reads nothing but the shards in OUT: leave --data and --shard out")
        _print_totals(str(out), merge(out).totals)
        return
    with ExitStack() as stack:
        terminal = _terminal(stack)
        totals = make_store(
            data or [],
            out,
            tokenizer=tokenizer,
            vocabulary=vocabulary,
            algorithm=algorithm,
            add_mask_token=add_mask_token,
            text_field=text_field,
            split_text=split_text or "paragraphs",
            workers=workers,
            progress=terminal.reading,
            shard=shard,
        )
    _print_totals(str(out) if shard is None else f"{out}, shard {shard}", totals)


def _print_totals(name: str, totals: dict[str, int]) -> None:
    """One line on what is in a store, or a shard, which does not know its documents."""
    kind = "documents" if "documents" in totals else "records"
    out_console.print(
        f"{name}: {totals[kind]:,} {kind}, {totals['tokens']:,} tokens, "
        f"{totals['chars'] / max(1, totals['tokens']):.2f} characters a token",
        soft_wrap=True,
    )


@app.command()
def fill(
    model: Annotated[str, typer.Argument(help="A run, a model folder or a hub id.")],
    text: Annotated[
        str, typer.Argument(help="Text with [MASK]; or a beginning, for a causal language model.")
    ],
    top: Annotated[int, typer.Option(min=1, help="Guesses for each blank.")] = 5,
) -> None:
    """Fill the blanks of a text; a causal language model goes on with a text instead."""
    from cloze.fill import continuation, fill_blanks, model_folder
    from cloze.models.build import reads_causally

    if "[MASK]" not in text and reads_causally(model_folder(model)):
        out_console.print(continuation(model, text), soft_wrap=True)
        return
    for number, guesses in enumerate(fill_blanks(model, text, top), start=1):
        if number > 1:
            out_console.print()
        for guess in guesses:
            out_console.print(
                f"{guess.probability:6.1%}  {guess.token:<16}  {guess.text}", soft_wrap=True, markup=False
            )


@app.command()
def diagnose(
    model: Annotated[str, typer.Argument(help="A run, a checkpoint, a model folder or a hub id.")],
    data: DataOption = None,
    sequences: Annotated[int, typer.Option(help="Sequences that are measured.")] = 64,
    masks: Annotated[int, typer.Option(help="Masks of each sequence; an even number.")] = 8,
    length: Annotated[int | None, typer.Option(help="Tokens of a sequence; default: 128 at most.")] = None,
    rate: Annotated[
        float | None, typer.Option(help="Share that is masked; default: the run's, or 0.15.")
    ] = None,
    parameters: Annotated[str, typer.Option(help="all, body (the layers) or a pattern of names.")] = "all",
    weight: Annotated[
        str | None, typer.Option(help="curvature: also weigh the variance by its cost in loss.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for diagnosis.json and diagnosis.html.")] = None,
    text_field: TextField = None,
    split_text: Split = None,
    seed: Annotated[int, typer.Option(help="Seed of the masks.")] = 0,
) -> None:
    """Measure where the gradient's variance comes from, and what would lower it."""
    from cloze.diagnosis.run import diagnose as run_diagnose
    from cloze.diagnosis.table import lines

    with ExitStack() as stack:
        terminal = _terminal(stack)

        def meter(what: str, done: int, total: int) -> None:
            if terminal.total is None:
                terminal.begin(total)
            terminal.show(f"measuring {what}", done)

        result = run_diagnose(
            model,
            data,
            sequences=sequences,
            masks=masks,
            length=length,
            rate=rate,
            parameters=parameters,
            weight=weight,
            out=out,
            text_field=text_field,
            split_text=split_text,
            seed=seed,
            progress=terminal.reading,
            meter=meter,
        )
        if out is not None:
            terminal.say(f"written: {out / 'diagnosis.json'}, {out / 'diagnosis.html'}")
    _print(lines(result))


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A run, a model folder or a hub id.")],
    suite: Annotated[str, typer.Option(help="Names of suites, with commas between.")],
    data: Annotated[
        list[str] | None, typer.Option(help="Where the suites' data is; SUITE=PATH for one of several.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds, where something is trained.")] = 5,
    tasks: Annotated[str | None, typer.Option(help="Only these tasks, with commas between.")] = None,
    columns: Annotated[
        str | None, typer.Option(help="Columns of the text and then of the label, with commas between.")
    ] = None,
    probe: ProbeOption = False,
    epochs: Annotated[int | None, typer.Option(help="Epochs of fine-tuning; default: by size.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of fine-tuning, in place of the search for it.")
    ] = None,
    length: Annotated[int | None, typer.Option(help="Most tokens of a sequence.")] = None,
    reading: Annotated[
        str | None,
        typer.Option(help="Of a language model: masked, replaced, causal or prefix."),
    ] = None,
    unmask: Annotated[
        str | None,
        typer.Option(help="Causal models: open groups of layers, as in 0011,0110; all: all 16 ways."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for evaluation.json and evaluation.html; default: the run's.")
    ] = None,
) -> None:
    """Measure what an encoder can do: grammar, classification, similarity, retrieval."""
    from cloze.evaluation.run import evaluate as run_evaluate
    from cloze.evaluation.run import run_folder
    from cloze.evaluation.table import lines

    names = _split(suite)
    with ExitStack() as stack:
        terminal = _terminal(stack)

        def meter(what: str, done: int, total: int) -> None:
            if terminal.total != total:
                terminal.begin(total)
            terminal.show(what, done)

        result = run_evaluate(
            model,
            names,
            _places(data or [], names),
            seeds=seeds,
            tasks=_split(tasks),
            columns=_split(columns),
            probe=probe,
            epochs=epochs,
            learning_rate=learning_rate,
            length=length,
            reading=reading,
            unmask=_split(unmask),
            out=out,
            meter=meter,
        )
        folder = run_folder(model) if out is None else out
        if folder is not None:
            terminal.say(f"written: {folder / 'evaluation.json'}, {folder / 'evaluation.html'}")
    _print(lines(result))


def _print(lines: Iterable[str]) -> None:
    """Lines of a result; one that does not start with a space is a heading."""
    for line in lines:
        heading = bool(line) and not line.startswith(" ")
        out_console.print(line, style="bold" if heading else None, soft_wrap=True)


def _meter(terminal: Terminal) -> Callable[[str, int, int], None]:
    """Shows how far a thing is, and then the next one."""

    def meter(what: str, done: int, total: int) -> None:
        if terminal.plain:
            return terminal.show(f"{what}: {done:,} of {total:,}", None)
        if terminal.total != total:
            terminal.begin(total)
        terminal.show(what, done)

    return meter


def _split(names: str | None) -> list[str]:
    return [name.strip() for name in (names or "").split(",") if name.strip()]


def _places(data: list[str], suites: list[str], option: str = "--data") -> dict[str, str]:
    """Where the data of each suite is: "SUITE=PATH", or "PATH" for all that have none of their own."""
    named = dict(d.split("=", 1) for d in data if d.split("=", 1)[0] in suites and "=" in d)
    common = [d for d in data if not ("=" in d and d.split("=", 1)[0] in suites)]
    if len(common) > 1:
        raise ClozeError(f"{option} {common[1]}: for which suite? write {option} SUITE=PATH")
    return {name: common[0] for name in suites if common} | named


@app.command()
def compare(
    recipes: Annotated[list[str], typer.Argument(help="Recipes or YAML files; the first is the baseline.")],
    data: DataOption = None,
    budget: Annotated[
        str, typer.Option(help="Of each run: 10Mtok, 1e15flop, 10m (of training) or 500steps.")
    ] = "10Mtok",
    seeds: Annotated[int, typer.Option(help="Runs of each recipe.")] = 3,
    sweep: Annotated[
        list[str] | None, typer.Option(help="Vary a field: masking.rate=0.15,0.3,0.5. Repeatable.")
    ] = None,
    suite: Annotated[str | None, typer.Option(help="Downstream suites, with commas between.")] = None,
    suite_data: Annotated[
        list[str] | None, typer.Option(help="Where the suites' data is; SUITE=PATH for one of several.")
    ] = None,
    probe: ProbeOption = False,
    out: Annotated[Path, typer.Option(help="Folder; the same command goes on in it.")] = Path(
        "runs/comparison"
    ),
    model: Annotated[str | None, typer.Option(help="Model that all start from: folder or hub id.")] = None,
    text_field: TextField = None,
    split_text: Split = None,
    overrides: SetOption = None,
    margin: Annotated[
        float | None, typer.Option(help="Say where a recipe is no more than this worse, in nats.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Runs at one time, on each GPU or on the CPU's cores.")] = 1,
    search: Annotated[
        str | None, typer.Option(help="Find the best of the swept settings under this total budget.")
    ] = None,
) -> None:
    """Compare recipes under one budget, over seeds, with intervals; or search for the best setting."""
    from cloze.comparison.board import Board
    from cloze.comparison.plan import Plan
    from cloze.comparison.run import compare as run_compare
    from cloze.comparison.search import search as run_search
    from cloze.comparison.table import lines
    from cloze.session import Interrupted

    sets = list(overrides or [])
    sets += [f"data.text_field={json.dumps(text_field)}"] if text_field is not None else []
    sets += [f"data.split_text={json.dumps(split_text)}"] if split_text is not None else []
    names = _split(suite)
    with ExitStack() as stack:
        reading = stack.enter_context(ExitStack())
        terminal = _terminal(reading)

        def watch(plan: Plan) -> Board:
            reading.close()
            return Board(err_console, plan)

        common: dict[str, Any] = {
            "model": model,
            "sweeps": sweep or [],
            "overrides": sets,
            "jobs": jobs,
            "progress": terminal.reading,
            "watch": watch,
        }
        try:
            if search is not None:
                shown = run_search(recipes, data, search, out=out, **common).lines()
            else:
                meter = _meter(stack.enter_context(Terminal(err_console)))
                places = _places(suite_data or [], names, "--suite-data")
                found = run_compare(
                    recipes,
                    data,
                    budget,
                    seeds=seeds,
                    out=out,
                    suites=names,
                    suite_data=places,
                    probe=probe,
                    margin=margin,
                    meter=meter,
                    **common,
                )
                shown = [*lines(found), "", f"{'report':<14} {out / 'report.html'}"]
        except Interrupted as stopped:
            raise typer.Exit(128 + stopped.signal) from None
    _print(shown)


@app.command()
def export(
    runs: Annotated[
        list[Path], typer.Argument(help="A run's folder; of several the weights' mean goes out.")
    ],
    to: Annotated[Path, typer.Option(help="New folder for the model.")],
) -> None:
    """Copy a run's model out, or the mean of several: a plain model folder for transformers."""
    from cloze.export import auto_class, export_model

    export_model(runs, to)
    out_console.print(f"{to}: loads with {auto_class(to)}.from_pretrained({str(to)!r})", soft_wrap=True)


def _terminal(stack: ExitStack) -> Terminal:
    """A terminal that shows the package's log, until the stack closes."""
    console = err_console if speaks() else Console(quiet=True)
    terminal = stack.enter_context(Terminal(console))
    handler = LogLines(terminal)
    logger = logging.getLogger("cloze")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    stack.callback(logger.removeHandler, handler)
    return terminal


def _samples(folder: Path) -> list[dict[str, Any]]:
    """The examples of a run; none, where it has none."""
    try:
        found = json.loads((folder / "samples.json").read_text(encoding="utf-8"))["examples"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return list(found)


def _print_summary(folder: Path, summary: dict[str, Any]) -> None:
    from cloze.evaluation.examples import in_words

    loss, unigram = summary["heldout_loss"], summary["unigram_loss"]
    area = summary.get("heldout_auc")
    if area is None:
        side = "below" if unigram >= loss else "above"
        learnt = (
            ("held-out loss", f"{loss:.3f} ({abs(unigram - loss):.2f} nats {side} the unigram loss)"),
            ("accuracy", f"{summary['heldout_accuracy']:.1%} of the held-out {summary['heldout_of']}"),
        )
    else:
        share = f"{summary['heldout_replaced']:.1%} of the held-out tokens are replaced"
        learnt = (
            ("held-out loss", f"{loss:.3f} ({summary['heldout_of']})"),
            ("AUC", f"{area:.3f} ({share}; 0.5 is chance)"),
        )
    lines = (
        *learnt,
        ("seen", f"{amount(summary['tokens_seen'])} tokens in {duration(summary['seconds'])}, "
                 f"{amount(summary['tokens_per_second'])} tokens/s, {summary['steps']:,} steps"),
        ("model", f"{folder / 'model'} ({amount(summary['parameters'])} parameters)"),
        ("report", str(folder / "report.html")),
    )  # fmt: skip
    for name, value in lines:
        out_console.print(f"{name:<14} {value}", soft_wrap=True)
    for name, text in in_words(_samples(folder)):
        for number, line in enumerate(textwrap.wrap(text, max(40, out_console.width - 15))[:EXAMPLE_LINES]):
            out_console.print(f"{'' if number else name:<14} {line}", soft_wrap=True)
    if area is not None:
        out_console.print(f"{'':<14} [found<original]  (missed<original)  {{false alarm}}")


# typer brings its own click in some versions: its classes are reached through typer.
_UsageError: Any = typer.BadParameter.__mro__[1]


def main() -> None:
    """Entry point: mistakes are one line and exit code 2, `--debug` shows their traceback."""
    arguments = [a for a in sys.argv[1:] if a != "--debug"]  # also behind the command
    debug = len(arguments) != len(sys.argv) - 1
    # Threads that spin for long starve each other as soon as anything else runs (benchmarks/threads.py).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Large pages: taking fresh memory by 4 KiB is a quarter of a step in bf16.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if not debug:
        warnings.filterwarnings("ignore")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        code = app(arguments or ["--help"], prog_name="cloze", standalone_mode=False)
    except ClozeError as error:
        code = 2 if is_silent(error) else _fail(str(error), debug)
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "cloze"
        message = f"{error.format_message().rstrip('.')} (see: {command} --help)"
        code = 2 if is_silent(error) else _fail(message, debug)
    except typer.Exit as error:
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    stopped = code in (128 + signal.SIGINT, 128 + signal.SIGTERM)  # typer makes a code of an interrupt
    if stopped and speaks():
        err_console.print(f"go on with: {_again()}", soft_wrap=True)
    sys.exit(code if isinstance(code, int) else 0)


def _again() -> str:
    """The command that goes on with what was stopped."""
    arguments = [a for a in sys.argv[1:] if a != "--resume"]
    again = shlex.join(["cloze", *arguments, *(["--resume"] if "pretrain" in arguments[:2] else [])])
    return again if launched() == 1 else f"torchrun … -m {again}"


def _fail(message: str, debug: bool) -> int:
    if debug:
        err_console.print_exception()
    err_console.print(f"error: {' '.join(message.split())}", soft_wrap=True, markup=False)
    return 2
