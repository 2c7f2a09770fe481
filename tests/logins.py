"""The four roles and logins that are members of one, for the tests that run as them."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from no_secrets import SENTINEL

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, open_manager
from pgtick.tables import quote_identifier

__all__ = ["KINDS", "Roles", "roles_of"]

KINDS = ("owner", "writer", "reader", "monitor")
PASSWORD = f"{SENTINEL}: of a role of these tests"
_numbers = itertools.count()


class Roles:
    """The roles of one test on one database; ``admin`` is whom the servers of the tests are reached as."""

    def __init__(self, config: DatabaseConfig, admin: DatabaseManager, prefix: str) -> None:
        self.config = config
        self.admin = admin
        self.prefix = prefix

    def name(self, kind: str) -> str:
        return quote_identifier(f"{self.prefix}_{kind}")

    async def login(self, kind: str, options: str = "") -> DatabaseConfig:
        """Make a login that is a member of one of the roles; return its configuration."""
        user = f"{self.prefix}_{kind}_login"
        await self.admin.execute(f"CREATE ROLE {quote_identifier(user)} LOGIN PASSWORD '{PASSWORD}' {options}")
        if kind in KINDS:
            await self.admin.execute(f"GRANT {self.name(kind)} TO {quote_identifier(user)}")
        return msgspec.structs.replace(self.config, user=user, password=PASSWORD, maintenance_interval_s=0.0)

    @asynccontextmanager
    async def opened(self, kind: str) -> AsyncIterator[DatabaseManager]:
        """A manager without any start step, for a login of the kind."""
        manager = await open_manager(await self.login(kind))
        try:
            yield manager
        finally:
            await manager.close()

    async def remove(self) -> None:
        await self.admin.execute(f"ALTER DATABASE {self.config.database} OWNER TO CURRENT_USER")
        query = (
            "SELECT pg_catalog.quote_ident(rolname) FROM pg_roles WHERE rolname ^@ $1 "
            "ORDER BY rolname LIKE '%login', rolname"
        )
        for (name,) in await self.admin.fetch(query, self.prefix + "_"):
            await self.admin.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


@asynccontextmanager
async def roles_of(config: DatabaseConfig) -> AsyncIterator[Roles]:
    admin = await open_manager(config)
    roles = Roles(config, admin, f"pgtick_test_{os.getpid()}_Róle \"';%s{next(_numbers)}")
    try:
        yield roles
    finally:
        await roles.remove()
        await admin.close()
