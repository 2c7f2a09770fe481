"""Migration 006: functions that make and drop partitions for roles that do not own the tables.

They run with their owner's rights, on registered tables only. So that nothing of the caller's has a part in it, the
search path is pinned to pg_catalog and pgtick's schema is written into the bodies when they are made, as in the
scripts of extensions (@schema@); time zone and date style are pinned since bounds are handed out as text.
"""

from __future__ import annotations

from typing import Any

from pgtick.connection import get_db_manager

SQL = """
DO $do$
DECLARE
    head constant text := 'LANGUAGE plpgsql STRICT SECURITY DEFINER '
        'SET search_path = pg_catalog, pg_temp SET timezone = ''UTC'' SET datestyle = ''ISO, YMD'' AS ';
    make constant text := $make$
DECLARE
    home constant text := @schema_text@;
    partition constant text := series || to_char(day::timestamp, '"_p"YYYYMMDD');
    place constant text := format(' ON %I.%I REFERENCING ', home, series);
    parent record;
    definition text;
    allowed record;
BEGIN
    SELECT c.oid, c.relacl, c.relowner INTO parent
    FROM @schema@.pgtick_time_series s JOIN pg_class c ON c.relname = s.table_name AND c.relkind = 'p'
    JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = home
    WHERE s.table_name = series;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no partition is made of %: it is not a partitioned table of pgtick_time_series', series
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    -- Two processes that make the same day wait for each other here, not in a deadlock or a refusal.
    PERFORM pg_advisory_xact_lock(hashtext('pgtick partition ' || series));
    PERFORM FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = parent.oid AND c.relname = partition AND NOT i.inhdetachpending;
    IF FOUND THEN
        RETURN partition;  -- the other one was first
    END IF;
    -- Attached, not made as PARTITION OF: that would wait for every reader of the table, and everybody behind it.
    EXECUTE format('CREATE TABLE %1$I.%2$I (LIKE %1$I.%3$I INCLUDING ALL EXCLUDING IDENTITY)', home, partition, series);
    -- Large batches are copied straight into the partition, where the parent's triggers and rights are not asked for.
    FOR definition IN SELECT pg_get_triggerdef(t.oid) FROM pg_trigger t WHERE t.tgrelid = parent.oid
        AND t.tgname IN ('check_references_insert', 'check_references_update')
    LOOP
        EXECUTE overlay(definition PLACING format(' ON %I.%I REFERENCING ', home, partition)
                        FROM position(place IN definition) FOR length(place));
    END LOOP;
    FOR allowed IN SELECT a.privilege_type AS privilege,
        CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS role
        FROM aclexplode(parent.relacl) a WHERE a.grantee <> parent.relowner
    LOOP
        EXECUTE format('GRANT %s ON %I.%I TO %s', allowed.privilege, home, partition, allowed.role);
    END LOOP;
    EXECUTE format('ALTER TABLE %1$I.%2$I ATTACH PARTITION %1$I.%3$I FOR VALUES FROM (%4$L) TO (%5$L)',
                   home, series, partition, day || ' 00:00+00', (day + 1) || ' 00:00+00');
    RETURN partition;
END $make$;
    remove constant text := $remove$
DECLARE
    found_one record;
BEGIN
    SELECT n.nspname, c.relname, s.table_name, s.retention,
           substring(pg_get_expr(c.relpartbound, c.oid) FROM ' TO [(]''([^'']+)''[)]$')::timestamptz AS stop
    INTO found_one
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_inherits i ON i.inhrelid = c.oid AND NOT i.inhdetachpending
    JOIN pg_class p ON p.oid = i.inhparent AND p.relkind = 'p'
    JOIN pg_namespace home ON home.oid = p.relnamespace AND home.nspname = @schema_text@
    JOIN @schema@.pgtick_time_series s ON s.table_name = p.relname
    WHERE c.oid = partition;
    IF NOT FOUND THEN
        PERFORM FROM pg_class WHERE oid = partition;
        IF NOT FOUND THEN
            RETURN false;  -- another process was first
        END IF;
        RAISE EXCEPTION '% is not dropped: it is not a partition of a table of pgtick_time_series', partition
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF found_one.stop IS NULL OR found_one.stop > now() - found_one.retention THEN
        RAISE EXCEPTION 'partition % is not dropped: it ends at %, and % keeps its rows for %', partition,
            coalesce(found_one.stop::text, 'no instant'), found_one.table_name, found_one.retention
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    EXECUTE format('DROP TABLE IF EXISTS %I.%I', found_one.nspname, found_one.relname);
    RETURN true;
END $remove$;
    signature text;
    body text;
BEGIN
    FOR signature, body IN VALUES
        ('pgtick_make_partition(series text, day date) RETURNS text', make),
        ('pgtick_drop_partition(partition regclass) RETURNS bool', remove)
    LOOP
        body := replace(body, '@schema@', quote_ident(current_schema()));
        body := replace(body, '@schema_text@', quote_literal(current_schema()));
        EXECUTE format('CREATE FUNCTION %I.%s %s %L', current_schema(), signature, head, body);
    END LOOP;
END $do$;
REVOKE EXECUTE ON FUNCTION pgtick_make_partition(text, date), pgtick_drop_partition(regclass) FROM PUBLIC;
COMMENT ON FUNCTION pgtick_make_partition(text, date) IS
    'makes the partition of the day (UTC) of a table of pgtick_time_series, with its owner''s rights';
COMMENT ON FUNCTION pgtick_drop_partition(regclass) IS
    'drops a partition that is wholly older than the retention in pgtick_time_series, with its owner''s rights';
"""


async def migrate_up() -> dict[str, Any]:
    """Create the functions."""
    await get_db_manager().execute(SQL)
    return {"success": True, "functions_created": ["pgtick_make_partition", "pgtick_drop_partition"]}


async def migrate_down() -> dict[str, Any]:
    """Drop the functions."""
    await get_db_manager().execute(
        "DROP FUNCTION pgtick_make_partition(text, date); DROP FUNCTION pgtick_drop_partition(regclass)"
    )
    return {"success": True, "functions_dropped": ["pgtick_make_partition", "pgtick_drop_partition"]}


async def get_migration_info() -> dict[str, Any]:
    """Describe the migration."""
    return {
        "id": "006",
        "name": "partition_functions",
        "dependencies": ["pgtick_time_series"],
    }
