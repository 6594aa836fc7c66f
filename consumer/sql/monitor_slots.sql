-- Replication slots of this database that a Debezium connector with pgoutput may read. Anybody may look at them.
-- A lost slot has no restart_lsn: the server has thrown away what it was to read.
SELECT
    slot_name::text,
    active,
    pg_wal_lsn_diff(here.lsn, confirmed_flush_lsn)::float8 AS lag,
    pg_wal_lsn_diff(here.lsn, restart_lsn)::float8 AS retained
FROM
    pg_replication_slots,
    (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS lsn) AS here
WHERE database = current_database() AND plugin = 'pgoutput' AND NOT temporary
ORDER BY slot_name
LIMIT 20
