"""What a run measured of its own gradients' noise, as a table."""

from typing import Any

from cloze.report.estimates import both, table
from cloze.report.reading import Run

COLUMNS = {
    "mask share": ("mask_share", True),
    "data term + covariance": ("break_even", False),
    "noise scale": ("noise_scale", False),
    "spread of scores": ("score_cv", False),
    "proposal saves": ("proposal_saving", True),
}


def noise_table(run: Run) -> str:
    """One row for each point at which it was measured; columns that no row knows are left out."""
    heads = [
        name
        for name, (key, _) in COLUMNS.items()
        if any({key, f"{key}_low"} & r.keys() for r in run.variance)
    ]
    rows = [
        (f"step {int(record['step']):,}", *(both(_estimate(record, key), share) for key, share in cells))
        for record in run.variance
        for cells in [[COLUMNS[head] for head in heads]]
    ]
    return table(("", *heads), rows)


def _estimate(record: dict[str, Any], key: str) -> dict[str, Any]:
    return {"value": record.get(key), "low": record.get(f"{key}_low"), "high": record.get(f"{key}_high")}
