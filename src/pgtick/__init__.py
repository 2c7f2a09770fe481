"""pgtick: the storage layer between crypto exchange feeds and PostgreSQL."""

from pgtick.cache_operations import (
    cached_get_symbol,
    cached_get_symbol_by_exchange_symbol,
    cached_get_symbol_by_id,
    get_cache_stats,
    get_cached_symbol,
    get_cached_symbol_by_exchange_symbol,
    get_cached_symbol_by_id,
    refresh_cache,
    symbol_cache,
)
from pgtick.config import DatabaseConfig, HftConfig
from pgtick.connection import DatabaseManager, get_db_manager, initialize_database
from pgtick.errors import (
    BatchError,
    ConfigError,
    MigrationError,
    ParallelError,
    PgtickError,
    RowError,
    SchemaDriftError,
    ValidationError,
)
from pgtick.migrator import (
    get_available_migrations,
    rollback_migration,
    run_migration,
    run_pending_migrations,
)
from pgtick.models import (
    ArbitrageOpportunity,
    BalanceSnapshot,
    BookTickerSnapshot,
    CachedSymbol,
    Exchange,
    FundingRateSnapshot,
    OrderFlowMetrics,
    Symbol,
    TradeSnapshot,
)
from pgtick.tables import Column, Table
from pgtick.verify import Drift, verify_schema
from pgtick.writer import ParallelResult, StoreResult, Writer, copy_parallel, store_columns, store_rows

__all__ = [
    "ArbitrageOpportunity",
    "BalanceSnapshot",
    "BatchError",
    "BookTickerSnapshot",
    "CachedSymbol",
    "Column",
    "ConfigError",
    "DatabaseConfig",
    "DatabaseManager",
    "Drift",
    "Exchange",
    "FundingRateSnapshot",
    "HftConfig",
    "MigrationError",
    "OrderFlowMetrics",
    "ParallelError",
    "ParallelResult",
    "PgtickError",
    "RowError",
    "SchemaDriftError",
    "StoreResult",
    "Symbol",
    "Table",
    "TradeSnapshot",
    "ValidationError",
    "Writer",
    "cached_get_symbol",
    "cached_get_symbol_by_exchange_symbol",
    "cached_get_symbol_by_id",
    "copy_parallel",
    "get_available_migrations",
    "get_cache_stats",
    "get_cached_symbol",
    "get_cached_symbol_by_exchange_symbol",
    "get_cached_symbol_by_id",
    "get_db_manager",
    "initialize_database",
    "refresh_cache",
    "rollback_migration",
    "run_migration",
    "run_pending_migrations",
    "store_columns",
    "store_rows",
    "symbol_cache",
    "verify_schema",
]
