"""The wheel that is built from the source distribution, installed away from the checkout."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Runs in another directory, with the wheel's folder first on the path.
PROGRAM = """
import sys
from datetime import datetime, timezone
from importlib import resources
import pgtick
from pgtick._fast.encode import RowEncoder
from pgtick.tables import BOOK_TICKERS
assert pgtick.__file__.startswith(sys.argv[1]), pgtick.__file__
row = pgtick.BookTickerSnapshot(timestamp=datetime.now(timezone.utc), symbol_id=1, bid_price=1.5, ask_price=2)
batch = RowEncoder(BOOK_TICKERS).encode([row])
assert batch.n_rows == 1 and not batch.errors
files = {entry.name for entry in resources.files("pgtick.migrations").iterdir()}
assert "001_exchanges_and_symbols.py" in files, files
print("works")
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    # Without --sdist or --wheel, build makes the wheel from the sdist. The environment has what it builds with.
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
        text=True,
    )
    return folder


def test_sdist_carries_the_sources_and_nothing_made(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"src/_fast/encode.pyx", "src/_fast/symbols.pyx", "migrations/001_exchanges_and_symbols.py"} <= names
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert not [name for name in names if name.endswith((".c", ".cpp", ".so", ".pyc"))]


def test_wheel_carries_migrations_and_stubs_and_no_sources(built: Path) -> None:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    assert {"pgtick/py.typed", "pgtick/_fast/encode.pyi", "pgtick/_fast/symbols.pyi"} <= names
    for migration in (ROOT / "migrations").glob("*.py"):
        assert f"pgtick/migrations/{migration.name}" in names
    for module in (ROOT / "src" / "pgtick").rglob("*.py"):
        assert f"pgtick/{module.relative_to(ROOT / 'src' / 'pgtick')}" in names
    assert not [name for name in names if name.endswith((".c", ".cpp", ".pyx", ".pxi"))]


def test_wheel_works_with_the_checkout_out_of_reach(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel], check=True
    )
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, site],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert ran.stdout == "works\n", ran.stderr
