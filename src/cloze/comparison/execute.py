"""Making the runs of a comparison: those that are missing, on the devices that there are."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence

import torch

from cloze.comparison.devices import places, run_on
from cloze.comparison.runs import Finished, Job, finish, made_before
from cloze.errors import ClozeError
from cloze.report.reading import read_run
from cloze.run import pretrain
from cloze.training.tracking import Listener

Listen = Callable[[Job], Listener]


def make_runs(
    jobs: Sequence[Job], at_once: int, listen: Listen, done: Callable[[Finished], None]
) -> list[Finished]:
    """All runs, in the order of the jobs; those that have been made are not made again.

    Args:
        at_once: runs on each device at one time.
        listen: who is told of a run while it is made. done: called with each run, old ones first.

    Errors: a run was made with other settings; a run cannot be made; `Interrupted` after Ctrl-C.
    """
    found = made_before(jobs)
    for run in found.values():
        done(run)
    missing = [job for job in jobs if (job.arm, job.seed) not in found]

    def ended(job: Job, error: str | None) -> None:
        found[job.arm, job.seed] = _keep(job, error)
        done(found[job.arm, job.seed])

    for job in missing:
        job.folder.parent.mkdir(parents=True, exist_ok=True)
    where = places(at_once)
    if len(where) > 1:
        torch.cuda.empty_cache()  # the plan has had the first GPU
        run_on(where, missing, listen, ended)
    else:
        for job in missing:
            ended(job, _run_here(job, listen(job)))
    return [found[job.arm, job.seed] for job in jobs]


def _run_here(job: Job, listener: Listener) -> str | None:
    """Make a run in this process; its error, or None."""
    try:
        pretrain(job.recipe, out=job.folder, resume=True, listeners=[listener])
    except ClozeError as error:
        return str(error)
    return None


def _keep(job: Job, error: str | None) -> Finished:
    """What is kept of a run that has ended. A loss that is not finite is a result, other errors are not."""
    if error is not None and not _diverged(job):
        raise ClozeError(f"{job.arm}, seed {job.seed}: {error}")
    run = finish(job, diverged=error is not None)
    shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)  # nobody goes on with it
    return run


def _diverged(job: Job) -> bool:
    try:
        notes = read_run(job.folder).notes
    except ClozeError:  # it has not begun
        return False
    return bool(notes) and "nothing was updated" in notes[-1][1]
