"""Every dependency has a lower and an upper bound, and what is installed here lies between them."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
ALL = [*PROJECT["project"]["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
ALL += PROJECT["build-system"]["requires"]

QUICK = "pyarrow"  # which has a major version every quarter


def bounds(line: str) -> tuple[list[Version], list[Version]]:
    """Lower and upper bounds of a requirement; what is not one of the two is an error."""
    found: tuple[list[Version], list[Version]] = [], []
    for part in Requirement(line).specifier:
        assert part.operator in (">=", "<"), f"{line}: write >=LOWEST,<UPPER"
        found[part.operator == "<"].append(Version(part.version))
    return found


@pytest.mark.parametrize("line", ALL)
def test_bounds(line: str) -> None:
    lower, upper = bounds(line)
    assert len(lower) == len(upper) == 1, f"{line}: one lower and one upper bound"
    assert lower[0] < upper[0]
    if lower[0].major < 2000:  # not a year
        assert upper[0].major - lower[0].major <= 2 or line.startswith(QUICK)


@pytest.mark.parametrize("line", ALL)
def test_what_is_installed_is_allowed(line: str) -> None:
    wanted = Requirement(line)
    try:
        here = version(wanted.name)
    except PackageNotFoundError:
        pytest.skip(f"{wanted.name} is not installed")
    assert wanted.specifier.contains(here, prereleases=True), f"{wanted.name} {here} is not in {line}"


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    """Those of what users and tests need, but for torch."""
    lines = (Path(__file__).parent / "lowest.txt").read_text("utf-8").splitlines()
    pinned = dict(re.fullmatch(r"([\w-]+)==(\S+)", line).groups() for line in lines if line[0] != "#")  # type: ignore[union-attr]
    needed = [*PROJECT["project"]["dependencies"], *EXTRAS["test"]]
    wanted = {Requirement(line).name: bounds(line)[0][0] for line in needed if not line.startswith("torch")}
    assert {name: Version(number) for name, number in pinned.items()} == wanted


@pytest.mark.parametrize("line", ["a", "a>=1", "a<2", "a>=1,<2,!=1.5", "a==1"])
def test_a_missing_bound_is_seen(line: str) -> None:
    with pytest.raises(AssertionError):
        test_bounds(line)
