"""The folder of a run: whether it may be used, and whether what it holds is the run that is asked for."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from cloze.data.corpus import Corpus
from cloze.errors import ClozeError
from cloze.recipes.load import difference, dump, filled
from cloze.recipes.schema import Recipe
from cloze.training.state import Checkpoints, State

log = logging.getLogger("cloze")

# Fields that may change on a resume: they do not change what is computed.
_FREE = (
    "about",
    "data.store",
    "training.budget",
    "training.micro_tokens",
    "training.deterministic",
    "training.workers",
    "training.sharding",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep",
    "training.trackers",
    "evaluation.times",
    "evaluation.variance",
)


class RunFolder:
    """The folder of a run of `recipe`."""

    def __init__(self, folder: Path, recipe: Recipe):
        self.folder, self.recipe = folder, recipe
        self.checkpoints = Checkpoints(folder / "checkpoints", recipe.training.keep)

    def open(self, resume: bool, force: bool) -> tuple[State, dict[str, Tensor]]:
        """The state and tensors to go on from; new ones to start, with the recipe written."""
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise ClozeError(f"{folder} is a file: choose another --out folder")
        try:
            used = folder.is_dir() and any(folder.iterdir())
        except OSError as error:
            raise ClozeError(f"{folder}: cannot be read ({error.strerror or error})") from error
        if used and not (folder / "recipe.yaml").is_file():
            raise ClozeError(f"{folder} is not empty and holds no run of cloze: choose another --out folder")
        begun = any((folder / name).exists() for name in ("checkpoints", "model", "summary.json"))
        if begun and not resume:  # a recipe alone is left by a start that failed
            raise ClozeError(
                f"{folder} holds a run already: use --resume to go on with it, or another --out folder"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            saved = self.checkpoints.load(log.warning)
            if saved is None:
                self.write_recipe()
        except OSError as error:
            raise ClozeError(f"{folder}: cannot be written ({error.strerror or error})") from error
        if saved is None:
            return State(), {}
        self._compare(saved[0], force)
        return saved

    def write_recipe(self) -> None:
        """Keep the recipe: of a run that goes on, when it is sure that it does."""
        temporary = self.folder / ".recipe.yaml.tmp"
        temporary.write_text(dump(self.recipe), encoding="utf-8")
        temporary.replace(self.folder / "recipe.yaml")

    def changes(self, state: State) -> list[str]:
        """What makes this another run than the saved one."""
        lines = difference(filled(state.recipe), self.recipe.model_dump(mode="json")) if state.recipe else []
        return [line for line in lines if not line.startswith(_FREE)]

    def _compare(self, state: State, force: bool) -> None:
        changed = self.changes(state)
        if changed and not force:
            raise ClozeError(
                f"{self.folder} was made by another recipe ({'; '.join(changed)}): use --force to go on with "
                "the new one, or another --out folder"
            )

    def compare_text(self, corpus: Corpus, state: State, force: bool) -> None:
        """Refuse to go on with another text unless forced, and with another tokenizer at all."""
        found = corpus.digests()
        if state.data.get("tokenizer", found["tokenizer"]) != found["tokenizer"]:
            raise ClozeError(
                f"{self.folder}: its text has changed and gives another tokenizer: use another --out folder, "
                f"or keep the old one: --force --set tokenizer={{kind: load, path: {self.folder / 'model'}}}"
            )
        if state.data.get("text", found["text"]) != found["text"] and not force:
            raise ClozeError(
                f"{self.folder}: the text has changed since this run began: use --force to go on with it, "
                "or another --out folder"
            )
        state.data = found

    def is_finished(self, state: State) -> bool:
        """Whether there is nothing left to do."""
        if not state.steps or state.step < state.steps or not (self.folder / "report.html").is_file():
            return False
        if self.changes(state) or self.summary().get("status") != "finished" or not self.is_delivered(state):
            return False
        return state.recipe["training"]["budget"] == self.recipe.training.budget

    def is_delivered(self, state: State) -> bool:
        """Whether model/ and what lies beside it are those of this step."""
        return self.summary().get("steps") == state.step and (self.folder / "model").is_dir()

    def summary(self) -> dict[str, Any]:
        """The content of summary.json; empty where there is none."""
        try:
            return json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
