"""What each recipe's gradient noise comes from: the terms of `cloze diagnose` for several runs, as one table.

    python benchmarks/terms.py RUNS/mlm-0 RUNS/causal-0 --json benchmarks/results/terms.json

RUNS are folders of runs, such as a comparison leaves them. Each is measured on its own held-out text. The
mask term is what differs between draws for one text: of masks, or of visible prefixes; where nothing is drawn
it is 0 by definition. Terms of different recipes are of gradients of different losses, so their shares
compare, not their sizes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import write_json

import cloze
from cloze.diagnosis.advice import interval, percent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--masks", type=int, default=6)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    found: dict[str, Any] = {}
    print("| recipe | drawn | rate | data term | mask term | mask share |")
    print("| --- " * 6 + "|")
    for run in chosen.runs:
        summary = json.loads((run / "summary.json").read_text("utf-8"))
        m = cloze.diagnose(run, sequences=chosen.sequences, masks=chosen.masks).measurements
        cells = (interval(m.data_term), interval(m.mask_term), percent(m.mask_share))
        drawn = m.setting.drawn or "nothing"
        print(f"| {summary['recipe']} | {drawn} | {m.setting.rate:.0%} | {' | '.join(cells)} |", flush=True)
        found[summary["recipe"]] = {
            "drawn": drawn,
            "rate": m.setting.rate,
            "measures": summary["heldout_of"],
            "tokens": summary["tokens_seen"],
            **{name: getattr(m, name).as_dict() for name in ("data_term", "mask_term", "mask_share")},
        }
    write_json(chosen.json, {"sequences": chosen.sequences, "masks": chosen.masks, "recipes": found})


if __name__ == "__main__":
    main()
