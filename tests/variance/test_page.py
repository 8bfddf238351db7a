"""The example of docs/variance.md runs, needs torch only, and prints what the page says it prints."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("transformers", "datasets", "pydantic", "scipy", "accelerate")


def test_the_example_of_the_page(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "variance.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (wanted,) = re.findall(r"^```text\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in HEAVY)
    (tmp_path / "example.py").write_text(f"import sys\n{blocked}{code}", "utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    number = r"-?\d+\.\d+"
    assert re.sub(number, "", done.stdout).split() == re.sub(number, "", wanted).split()
    found, expected = (list(map(float, re.findall(number, text))) for text in (done.stdout, wanted))
    assert found == pytest.approx(expected, rel=0.15, abs=0.03)
