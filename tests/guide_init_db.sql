-- A database as the guide's docker/init-db.sql makes it: what pgtick adopts (docs/adopting.md). Test data.
-- Lines that end in "-- timescale" are left out where there is no TimescaleDB.

CREATE EXTENSION IF NOT EXISTS timescaledb;  -- timescale

-- Foundation tables (reference data)
CREATE TABLE IF NOT EXISTS exchanges (
    id SERIAL PRIMARY KEY,
    enum_value VARCHAR(50) NOT NULL UNIQUE,
    exchange_name VARCHAR(50) NOT NULL,
    market_type VARCHAR(20) NOT NULL,
    is_active BOOLEAN DEFAULT TRUE,
    created_at TIMESTAMPTZ DEFAULT NOW(),
    updated_at TIMESTAMPTZ DEFAULT NOW(),
    CONSTRAINT chk_enum_format CHECK (enum_value ~ '^[A-Z]+_(SPOT|FUTURES|OPTIONS)$'),
    CONSTRAINT chk_market_type CHECK (market_type IN ('SPOT', 'FUTURES', 'OPTIONS'))
);

CREATE TABLE IF NOT EXISTS symbols (
    id SERIAL PRIMARY KEY,
    exchange_id INTEGER NOT NULL REFERENCES exchanges(id) ON DELETE CASCADE,
    symbol_base VARCHAR(20) NOT NULL,
    symbol_quote VARCHAR(20) NOT NULL,
    exchange_symbol VARCHAR(50) NOT NULL,
    is_active BOOLEAN DEFAULT TRUE,
    created_at TIMESTAMPTZ DEFAULT NOW(),
    updated_at TIMESTAMPTZ DEFAULT NOW(),
    CONSTRAINT chk_base_format CHECK (symbol_base ~ '^[A-Z0-9]+$'),
    CONSTRAINT chk_quote_format CHECK (symbol_quote ~ '^[A-Z0-9]+$'),
    UNIQUE (exchange_id, symbol_base, symbol_quote)
);

-- Time-series tables
CREATE TABLE IF NOT EXISTS book_ticker_snapshots (
    id BIGSERIAL,
    timestamp TIMESTAMPTZ NOT NULL,
    symbol_id INTEGER NOT NULL REFERENCES symbols(id),
    bid_price NUMERIC(20,8) NOT NULL,
    bid_qty NUMERIC(20,8) NOT NULL,
    ask_price NUMERIC(20,8) NOT NULL,
    ask_qty NUMERIC(20,8) NOT NULL,
    sequence_number BIGINT,
    update_type VARCHAR(20) DEFAULT 'snapshot',
    created_at TIMESTAMPTZ DEFAULT NOW(),
    CONSTRAINT chk_positive_prices CHECK (bid_price > 0 AND ask_price > 0),
    CONSTRAINT chk_positive_quantities CHECK (bid_qty >= 0 AND ask_qty >= 0),
    PRIMARY KEY (timestamp, symbol_id)
);

CREATE TABLE IF NOT EXISTS funding_rate_snapshots (
    id BIGSERIAL,
    timestamp TIMESTAMPTZ NOT NULL,
    symbol_id INTEGER NOT NULL REFERENCES symbols(id),
    funding_rate NUMERIC(12,8) NOT NULL,
    funding_time BIGINT NOT NULL,       -- epoch, milliseconds
    next_funding_time BIGINT,           -- epoch, milliseconds
    created_at TIMESTAMPTZ DEFAULT NOW(),
    CONSTRAINT chk_funding_rate_bounds CHECK (funding_rate BETWEEN -1 AND 1),
    PRIMARY KEY (timestamp, symbol_id)
);

CREATE TABLE IF NOT EXISTS balance_snapshots (
    id BIGSERIAL,
    timestamp TIMESTAMPTZ NOT NULL,
    exchange_id INTEGER NOT NULL REFERENCES exchanges(id),
    asset_name VARCHAR(20) NOT NULL,
    available_balance REAL NOT NULL DEFAULT 0,
    locked_balance REAL NOT NULL DEFAULT 0,
    frozen_balance REAL DEFAULT 0,
    borrowing_balance REAL,
    interest_balance REAL,
    total_balance REAL GENERATED ALWAYS AS (available_balance + locked_balance + COALESCE(frozen_balance, 0)) STORED,
    created_at TIMESTAMPTZ DEFAULT NOW(),
    CONSTRAINT chk_positive_balances CHECK (available_balance >= 0 AND locked_balance >= 0),
    PRIMARY KEY (timestamp, exchange_id, asset_name)
);

CREATE TABLE IF NOT EXISTS trade_snapshots (
    id BIGSERIAL,
    timestamp TIMESTAMPTZ NOT NULL,
    symbol_id INTEGER NOT NULL REFERENCES symbols(id),
    price NUMERIC(20,8) NOT NULL,
    quantity NUMERIC(20,8) NOT NULL,
    side VARCHAR(4) NOT NULL,
    trade_id VARCHAR(100),
    quote_quantity NUMERIC(20,8),
    is_buyer BOOLEAN,
    is_maker BOOLEAN,
    created_at TIMESTAMPTZ DEFAULT NOW(),
    CONSTRAINT chk_positive_trade CHECK (price > 0 AND quantity >= 0),
    CONSTRAINT chk_trade_side CHECK (side IN ('buy', 'sell')),
    PRIMARY KEY (timestamp, symbol_id)
);

-- Analytics tables
CREATE TABLE IF NOT EXISTS arbitrage_opportunities (
    id BIGSERIAL,
    timestamp TIMESTAMPTZ NOT NULL,
    symbol_id INTEGER NOT NULL REFERENCES symbols(id),
    buy_exchange_id INTEGER NOT NULL REFERENCES exchanges(id),
    sell_exchange_id INTEGER NOT NULL REFERENCES exchanges(id),
    buy_price NUMERIC(20,8) NOT NULL,
    sell_price NUMERIC(20,8) NOT NULL,
    spread_bps NUMERIC(10,4) NOT NULL,
    max_volume_quote NUMERIC(20,8),
    detected_at TIMESTAMPTZ DEFAULT NOW(),
    executed BOOLEAN DEFAULT FALSE,
    created_at TIMESTAMPTZ DEFAULT NOW(),
    PRIMARY KEY (timestamp, symbol_id)
);

CREATE TABLE IF NOT EXISTS order_flow_metrics (
    timestamp TIMESTAMPTZ NOT NULL,
    symbol_id INTEGER NOT NULL REFERENCES symbols(id),
    ofi_score NUMERIC(12,6) NOT NULL,
    microprice NUMERIC(20,8) NOT NULL,
    mid_price NUMERIC(20,8) NOT NULL,
    spread_bps REAL NOT NULL,
    volume_imbalance NUMERIC(8,6) NOT NULL,
    created_at TIMESTAMPTZ DEFAULT NOW(),
    PRIMARY KEY (timestamp, symbol_id)
);

-- Hypertables
SELECT create_hypertable('book_ticker_snapshots', 'timestamp', chunk_time_interval => INTERVAL '30 minutes', if_not_exists => TRUE);  -- timescale
SELECT create_hypertable('funding_rate_snapshots', 'timestamp', chunk_time_interval => INTERVAL '1 hour', if_not_exists => TRUE);  -- timescale
SELECT create_hypertable('balance_snapshots', 'timestamp', chunk_time_interval => INTERVAL '6 hours', if_not_exists => TRUE);  -- timescale
SELECT create_hypertable('trade_snapshots', 'timestamp', chunk_time_interval => INTERVAL '30 minutes', if_not_exists => TRUE);  -- timescale
SELECT create_hypertable('arbitrage_opportunities', 'timestamp', chunk_time_interval => INTERVAL '1 hour', if_not_exists => TRUE);  -- timescale
SELECT create_hypertable('order_flow_metrics', 'timestamp', chunk_time_interval => INTERVAL '1 hour', if_not_exists => TRUE);  -- timescale

-- HFT-optimized indexes
CREATE INDEX IF NOT EXISTS idx_symbols_exchange ON symbols(exchange_id);
CREATE INDEX IF NOT EXISTS idx_symbols_base_quote ON symbols(symbol_base, symbol_quote);
CREATE INDEX IF NOT EXISTS idx_book_ticker_symbol_time ON book_ticker_snapshots(symbol_id, timestamp DESC);
CREATE INDEX IF NOT EXISTS idx_funding_rate_symbol_time ON funding_rate_snapshots(symbol_id, timestamp DESC);
CREATE INDEX IF NOT EXISTS idx_balance_exchange_time ON balance_snapshots(exchange_id, timestamp DESC);
CREATE INDEX IF NOT EXISTS idx_trade_symbol_time ON trade_snapshots(symbol_id, timestamp DESC);
CREATE INDEX IF NOT EXISTS idx_arbitrage_spread ON arbitrage_opportunities(spread_bps DESC) WHERE spread_bps > 10;

-- Retention policies
SELECT add_retention_policy('book_ticker_snapshots', INTERVAL '3 days', if_not_exists => TRUE);  -- timescale
SELECT add_retention_policy('funding_rate_snapshots', INTERVAL '7 days', if_not_exists => TRUE);  -- timescale
SELECT add_retention_policy('balance_snapshots', INTERVAL '14 days', if_not_exists => TRUE);  -- timescale
SELECT add_retention_policy('trade_snapshots', INTERVAL '3 days', if_not_exists => TRUE);  -- timescale
SELECT add_retention_policy('arbitrage_opportunities', INTERVAL '14 days', if_not_exists => TRUE);  -- timescale
SELECT add_retention_policy('order_flow_metrics', INTERVAL '7 days', if_not_exists => TRUE);  -- timescale

-- A helper and a view that people's own scripts use
CREATE OR REPLACE FUNCTION get_symbol_id(wanted VARCHAR, base VARCHAR, quote VARCHAR) RETURNS INTEGER LANGUAGE sql AS $$
    SELECT s.id FROM symbols s JOIN exchanges e ON e.id = s.exchange_id
    WHERE e.enum_value = wanted AND s.symbol_base = base AND s.symbol_quote = quote
$$;
CREATE OR REPLACE VIEW latest_book_tickers AS
    SELECT DISTINCT ON (symbol_id) symbol_id, timestamp, bid_price, ask_price
    FROM book_ticker_snapshots ORDER BY symbol_id, timestamp DESC;

COMMENT ON TABLE book_ticker_snapshots IS 'Best bid and ask of all symbols - NORMALIZED SCHEMA';

INSERT INTO exchanges (enum_value, exchange_name, market_type) VALUES
    ('MEXC_SPOT', 'MEXC', 'SPOT'),
    ('GATEIO_SPOT', 'GATEIO', 'SPOT'),
    ('GATEIO_FUTURES', 'GATEIO', 'FUTURES')
ON CONFLICT (enum_value) DO NOTHING;
