"""What the terminal shows while runs are made."""

from __future__ import annotations

import logging
from io import StringIO

from comparison.made_up import plan, run
from rich.console import Console

from cloze.comparison.board import Board


def shown(terminal: bool) -> tuple[str, str]:
    """What is written in all, and the table while a run is half way."""
    text = StringIO()
    console = Console(
        file=text,
        force_terminal=terminal,
        width=80,
        highlight=False,
        markup=False,
        _environ={"TERM": "xterm"},
    )
    names = ["mlm", "a-recipe-with-a-name-that-is-longer-than-the-column"]
    made_up = plan(names, 2)
    with Board(console, made_up) as board:
        board.done(run(names[0], 0, 5.0))
        board.done(run(names[1], 0, 4.75))
        listener = board.listen(made_up.jobs[2])
        listener.begin(100)
        listener.record({"kind": "heldout", "step": 50, "loss": 6.25, "accuracy": 0.1})
        listener.record({"kind": "step", "step": 60, "loss": 6.0})
        logging.getLogger("cloze").warning("something is odd")
        table = StringIO()
        Console(file=table, width=80).print(board.table())
        board.done(run(names[0], 1, None))
    return text.getvalue(), table.getvalue()


def test_a_row_for_each_recipe() -> None:
    whole, table = shown(terminal=True)
    rows = [line.rstrip() for line in table.splitlines()]
    assert max(map(len, rows)) <= 80
    assert rows[0] == "2 of 4 runs, 1m 10s of training left"
    assert [r.split() for r in rows[2:]] == [
        ["mlm", "1/2", "60%", "6.250", "5.0000"],
        ["a-recipe-with-a-name-that-is-longer-tha…", "1/2", "4.7500", "−0.2500"],
    ]
    assert "warning: something is odd" in whole


def test_plain_lines_where_there_is_no_terminal() -> None:
    whole, _ = shown(terminal=False)
    assert whole.splitlines() == [
        "0 of 4 runs, 3m 20s of training left",
        "1/4  mlm, seed 0: held-out loss 5.0000",
        "2/4  a-recipe-with-a-name-that-is-longer-than-the-column, seed 0: held-out loss 4.7500",
        "warning: something is odd",
        "3/4  mlm, seed 1: diverged",
    ]
