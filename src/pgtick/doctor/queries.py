"""The doctor's questions to the server; docs/troubleshooting.md quotes them, and a test compares.

They run on PostgreSQL 15 to 18, and as a role without any right: what it may not see is NULL.
"""

from __future__ import annotations

__all__ = [
    "CONNECTIONS",
    "DATABASE_SIZE",
    "EXTENSIONS",
    "FAILED_JOBS",
    "IDLE_IN_TRANSACTION",
    "INVALID_INDEXES",
    "ROLE",
    "SEQUENCES",
    "SERVER",
    "TLS",
    "TRANSACTION_IDS",
    "VACUUM_HELD_BACK",
    "WAITING_LOCKS",
]

SERVER = """
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int AS version_number,
       pg_postmaster_start_time() AS started_at, pg_is_in_recovery() AS is_replica, clock_timestamp() AS now,
       current_database()::text AS database
"""

EXTENSIONS = """
SELECT e.extname::text AS name, e.extversion AS version, a.default_version AS available
FROM pg_extension e LEFT JOIN pg_available_extensions a ON a.name = e.extname
ORDER BY 1
"""

TLS = """
SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl
"""

ROLE = """
SELECT rolname::text AS name, rolsuper AS is_superuser,
       pg_has_role(oid, 'pg_read_all_stats', 'USAGE') AS sees_sessions,
       EXISTS (SELECT FROM pg_class WHERE relowner = r.oid AND relkind IN ('r', 'p')
                   AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
                   AND NOT relispartition) AS owns_tables
FROM pg_roles r WHERE rolname = current_user
"""

CONNECTIONS = """
SELECT current_setting('max_connections')::int AS n_max,
       current_setting('superuser_reserved_connections')::int
           + coalesce(current_setting('reserved_connections', true), '0')::int AS n_reserved,
       regexp_replace(application_name, ' gpid=.*', '') AS application, count(*) AS n_sessions
FROM pg_stat_activity WHERE coalesce(backend_type = 'client backend', usesysid IS NOT NULL)
GROUP BY application ORDER BY n_sessions DESC, application
"""

IDLE_IN_TRANSACTION = """
SELECT pid, usename::text AS role, application_name AS application, clock_timestamp() - state_change AS idle_for
FROM pg_stat_activity
WHERE datname = current_database() AND state LIKE 'idle in transaction%'
    AND clock_timestamp() - state_change > interval '1 minute'
ORDER BY state_change
"""

VACUUM_HELD_BACK = """
SELECT format('session %s of %s, %s', pid, usename, coalesce(nullif(application_name, ''), '?')) AS holder,
       clock_timestamp() - xact_start AS open_for, format('SELECT pg_terminate_backend(%s)', pid) AS do
FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
    AND coalesce(backend_xmin, backend_xid) IS NOT NULL AND clock_timestamp() - xact_start > interval '10 minutes'
UNION ALL
SELECT format('prepared transaction %s', gid), clock_timestamp() - prepared, format('ROLLBACK PREPARED %L', gid)
FROM pg_prepared_xacts
WHERE database = current_database() AND clock_timestamp() - prepared > interval '10 minutes'
UNION ALL
SELECT format('replication slot %s, which nobody reads', slot_name), NULL,
       format('SELECT pg_drop_replication_slot(%L)', slot_name)
FROM pg_replication_slots
WHERE NOT active AND NOT temporary AND coalesce(database, current_database()) = current_database()
    AND (xmin IS NOT NULL OR catalog_xmin IS NOT NULL OR restart_lsn IS NOT NULL)
ORDER BY open_for DESC NULLS LAST
"""

WAITING_LOCKS = """
SELECT l.pid, coalesce(l.relation::regclass::text, l.locktype) AS target, l.mode,
       clock_timestamp() - l.waitstart AS waits_for,
       array_to_string(pg_blocking_pids(l.pid), ', ') AS blocked_by
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE a.datname = current_database() AND NOT l.granted AND clock_timestamp() - l.waitstart > interval '10 seconds'
ORDER BY l.waitstart
"""

INVALID_INDEXES = """
SELECT i.indexrelid::regclass::text AS index, i.indrelid::regclass::text AS "table", c.relkind = 'I' AS is_partitioned
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE NOT i.indisvalid
    AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid)
ORDER BY 1
"""

SEQUENCES = """
SELECT c.oid::regclass::text AS sequence, d.refobjid::regclass::text AS "table", quote_ident(a.attname) AS column,
       format_type(s.seqtypid, NULL) AS type, s.seqmax AS max_value,
       CASE WHEN is_visible THEN pg_sequence_last_value(c.oid) END AS last_value, is_visible
FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid
CROSS JOIN LATERAL (SELECT has_sequence_privilege(c.oid, 'USAGE, SELECT') AS is_visible) v
LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0
    AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
LEFT JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE s.seqincrement > 0 AND NOT s.seqcycle
    AND c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
ORDER BY 1
"""

TRANSACTION_IDS = """
SELECT datname::text AS database, age(datfrozenxid) AS n_transactions, mxid_age(datminmxid) AS n_multixacts,
       current_setting('autovacuum_freeze_max_age')::int AS n_transactions_forced,
       current_setting('autovacuum_multixact_freeze_max_age')::int AS n_multixacts_forced
FROM pg_database
WHERE datallowconn OR datname = current_database()
ORDER BY greatest(age(datfrozenxid), mxid_age(datminmxid)) DESC
"""

DATABASE_SIZE = """
SELECT pg_database_size(current_database()) AS n_bytes
"""

FAILED_JOBS = """
SELECT job_id, proc_name::text AS job, hypertable_name::text AS "table", total_failures AS n_failures,
       last_run_started_at
FROM timescaledb_information.jobs JOIN timescaledb_information.job_stats USING (job_id, hypertable_name)
WHERE last_run_status = 'Failed'
ORDER BY job_id
"""
