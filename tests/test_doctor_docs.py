"""docs/troubleshooting.md: every query runs, and those that are the doctor's are the doctor's."""

from __future__ import annotations

import re
from pathlib import Path

from looked_at import MONITOR, as_role

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager
from pgtick.doctor import queries

PAGE = (Path(__file__).parents[1] / "docs" / "troubleshooting.md").read_text("utf-8")
BLOCKS = [match.strip() for match in re.findall(r"^```sql\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)]


def needed(block: str) -> str | None:
    found = re.match(r"-- needs: (\w+)\n", block)
    return found[1] if found else None


def test_page_quotes_every_query_of_the_doctor_word_for_word() -> None:
    quoted = {}
    for block in BLOCKS:
        if found := re.search(r"-- doctor: (\w+)\n(.*);$", block, re.DOTALL):
            quoted[found[1]] = found[2]
    assert quoted == {name: getattr(queries, name).strip() for name in queries.__all__}


def test_page_has_the_guide_s_questions_without_what_postgresql_does_not_know() -> None:
    assert len(BLOCKS) > 25
    for wrong in ("referenced_table_name", "indexname", "hypertables\n", "tablename"):
        assert not any(wrong in block for block in BLOCKS), wrong


async def test_queries_of_the_page_run(db: DatabaseManager) -> None:
    extensions = {record["extname"] for record in await db.fetch("SELECT extname::text FROM pg_extension")}
    n_run = 0
    for block in BLOCKS:
        if needed(block) in (None, *extensions):
            await db.fetch(block.rstrip(";"))
            n_run += 1
    assert n_run >= sum(needed(block) is None for block in BLOCKS) + len(extensions & {"timescaledb", "citus"})


async def test_queries_of_the_doctor_run_as_a_role_without_rights(db: DatabaseManager, config: DatabaseConfig) -> None:
    async with as_role(config, f"{config.database}_nobody") as nobody:
        for name in queries.__all__:
            if name != "FAILED_JOBS":
                await nobody.fetch(getattr(queries, name))
    async with as_role(config, f"{config.database}_monitor", *MONITOR) as monitor:
        for block in BLOCKS:
            if needed(block) is None:
                await monitor.fetch(block.rstrip(";"))
