"""bench/peers runs from one end to the other; its figures are not judged here."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from pgtick.config import DatabaseConfig

ROOT = Path(__file__).parents[1]
#: library -> how its writers and readers are called in the tables
LIBRARIES = {
    "adbc_driver_postgresql": "ADBC",
    "asyncpg": "asyncpg",
    "connectorx": "ConnectorX",
    "cryptofeed": "cryptofeed",
    "pgcopy": "pgcopy",
    "pgpq": "pgpq",
    "pgtick": "pgtick, Structs",
    "psycopg": "psycopg",
}


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))


def _run(config: DatabaseConfig, out: Path, *arguments: str) -> None:
    for library in ("matplotlib", "tabulate"):
        pytest.importorskip(library, reason=f"{library} comes with the extra peers")
    dsn = config.to_dsn(with_password=True)
    command = [sys.executable, str(ROOT / "bench" / "peers"), "--quick", "--dsn", dsn, "--out", str(out)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_peers_quick_run_writes_every_peer_that_is_installed(embedded_config: DatabaseConfig, tmp_path: Path) -> None:
    _run(embedded_config, tmp_path)
    page = (tmp_path / "README.md").read_text("utf-8")
    reasons = [line for line in page.splitlines() if line.startswith("- Skipped: ")]
    for library, name in LIBRARIES.items():
        assert f"| {name}" in page or any(name in reason for reason in reasons), name
        if importlib.util.find_spec(library) is not None:
            assert not [reason for reason in reasons if name in reason]
    targets = (tmp_path / "targets.md").read_text("utf-8")
    assert {f"P{n}" for n in range(1, 13)} <= {
        line.split("|")[1].strip() for line in targets.splitlines() if "|" in line
    }
    assert (tmp_path / "peers.svg").read_text("utf-8").startswith("<?xml")


def test_peers_ladder_quick_run_writes_every_step(embedded_config: DatabaseConfig, tmp_path: Path, peers: None) -> None:
    from peers.schema import STEPS

    _run(embedded_config, tmp_path, "ladder")
    page = (tmp_path / "ladder.md").read_text("utf-8")
    assert "Skipped" not in page
    for step in STEPS:
        assert f"| {step}" in page


async def test_interleave_failing_case_is_out_with_its_reason(peers: None) -> None:
    from peers.measure import Sample, interleave

    times = iter((2.0, 4.0, 6.0, 1.0, 2.0, 2.0))

    async def steady() -> Sample:
        return Sample(next(times), 0.5)

    async def failing() -> Sample:
        raise OSError("no such server")

    rounds = await interleave({"a": steady, "b": steady, "broken": failing}, 3, n_rows=10)
    assert rounds.skipped == {"broken": "OSError: no such server"}
    # Rounds begin with another case each: (a 2, b 4), (b 6, a 1), (a 2, b 2).
    assert [sample.seconds for sample in rounds.samples["a"]] == [2.0, 1.0, 2.0]
    assert rounds.speed("a", "b") == 2.0
    assert rounds.rows_per_s("b") == 2.5
    assert rounds.noise("a") == 0.5
    assert rounds.cpu_us("a") == 50_000


def test_batch_forms_hold_the_same_values(peers: None) -> None:
    from peers.data import COLUMNS, make_batches

    batches = make_batches(250, 100, 10)
    assert list(map(len, batches)) == [100, 100, 50]
    batch = batches[2]
    assert batch.encoded.n_rows == 50
    assert not batch.encoded.errors
    for struct, floats, decimals in zip(batch.structs, batch.floats, batch.decimals, strict=True):
        assert floats == tuple(getattr(struct, name) for name in COLUMNS)
        assert [float(value) for value in decimals[2:6]] == list(floats[2:6])
    keys = {(row.timestamp, row.symbol_id) for each in batches for row in each.structs}
    assert len(keys) == 250  # what the guide's key asks for
