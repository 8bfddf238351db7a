"""The same bits from run to run on a GPU: what PyTorch has for it, for the time of a run.

On a CPU runs are bit-equal without it, by code that avoids the few operations that are not (`w[index]` with
equal indices, backwards); there it makes sure that no such operation is used. On a GPU sums of many threads
are added in any order unless they are asked not to.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cloze.errors import ClozeError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED = (
    ":4096:8",
    ":16:8",
)  # with these cuBLAS gives the same bits, says NVIDIA's manual (cublasSetWorkspace)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside, operations give the same bits each time, or are an error; afterwards all is as before.

    Errors: `CUBLAS_WORKSPACE_CONFIG` allows other bits, or CUDA was used before it could be set; an operation
    that has no such implementation.
    """
    if not wanted:
        yield
        return
    _fix_workspace()
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        first = " ".join(str(error).split(". ")[0].split())
        raise ClozeError(
            f"training.deterministic: {first}; set it to false, or choose another recipe"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=only_warned)
        cudnn.deterministic, cudnn.benchmark = before[1:]


def _fix_workspace() -> None:
    """Set what cuBLAS reads when it is first used."""
    value = os.environ.get(WORKSPACE)
    if value in FIXED:
        return
    if value is not None:
        raise ClozeError(
            f"training.deterministic: {WORKSPACE}={value} lets sums on a GPU be added in any order: set it "
            f"to {FIXED[0]}, or leave it out"
        )
    if torch.cuda.is_initialized():
        raise ClozeError(
            f"training.deterministic: CUDA was used in this process before {WORKSPACE} could be set: set it "
            f"to {FIXED[0]} before Python starts"
        )
    os.environ[WORKSPACE] = FIXED[0]
