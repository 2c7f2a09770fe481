"""What the doctor's tests share: a database as a least-privileged monitor sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, open_manager
from pgtick.doctor import Finding, Report

EXCHANGE_AND_SYMBOL = (
    "INSERT INTO exchanges (enum_value, exchange_name, market_type) VALUES ('A_SPOT', 'A', 'SPOT');"
    "INSERT INTO symbols (exchange_id, symbol_base, symbol_quote, exchange_symbol) VALUES (1, 'B', 'C', 'BC')"
)
ADD_TRADE = (
    "INSERT INTO trade_snapshots (timestamp, symbol_id, price, quantity, side, trade_id) "
    "VALUES (now() - $1::interval, 1, 1, 1, 'buy', '1')"
)


@asynccontextmanager
async def as_role(config: DatabaseConfig, role: str, *grants: str) -> AsyncIterator[DatabaseManager]:
    """Yield a manager whose sessions are of a role without rights but these, made for it and dropped again.

    The database gives every session the role, so that no server needs to let another user in (but Citus's own).
    """
    owner = await open_manager(config)
    try:
        await owner.execute(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA public TO {role}")
        try:
            for grant in grants:
                await owner.execute(f"{grant} TO {role}")
            await owner.execute(f"ALTER DATABASE {config.database} SET role = {role}")
            db = await open_manager(msgspec.structs.replace(config, max_connections=1))
            try:
                assert await db.fetchval("SELECT current_user::text") == role
                yield db
            finally:
                await db.close()
        finally:
            await owner.execute(f"ALTER DATABASE {config.database} RESET role")
            await owner.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    finally:
        await owner.close()


MONITOR = (
    "GRANT SELECT ON ALL TABLES IN SCHEMA public",
    "GRANT SELECT ON ALL SEQUENCES IN SCHEMA public",
    "GRANT pg_monitor",
)


def only(report: Report, subject: str) -> Finding:
    """Return the one finding whose subject begins so."""
    (found,) = [finding for finding in report.findings if finding.subject.startswith(subject)]
    return found
