"""What the README and the examples say can be run as it stands."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_program_of_the_readme_is_the_example() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    example = (ROOT / "examples" / "hello.py").read_text("utf-8")
    assert ast.dump(ast.parse(program)) == ast.dump(ast.parse(example.split('"""\n\n', 1)[1]))


def test_example_stores_and_reads(tmp_path_factory: pytest.TempPathFactory) -> None:
    environment = {**os.environ, "PGTICK_STATE_DIR": str(tmp_path_factory.mktemp("state"))}
    ran = subprocess.run(
        [sys.executable, ROOT / "examples" / "hello.py"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    stored, symbol, latest = ran.stdout.splitlines()
    assert stored == "1 stored"
    assert "exchange='GATEIO_SPOT'" in symbol
    assert "bid_price=97000.1" in latest


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https?://)([^)#]+)", README))))
def test_link_of_the_readme_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
