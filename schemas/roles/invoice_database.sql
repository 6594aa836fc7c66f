-- The roles of the CFO sync, and what each may do in the invoice database (docs/database-roles.md).
-- Run it after every `cfo-sync migrate`, as the owner of the tables (who needs CREATEROLE and REPLICATION) or as superuser:
--     psql -X -v ON_ERROR_STOP=1 -f invoice_database.sql "$OWNER_DSN"
-- It may run again at any time, also while the sync works: the privileges change at once. What these roles were granted
-- beyond this file is taken from them; the ledger's table is left to cfo_database.sql. There are no passwords in it:
-- nobody can log in as one of these roles until one is set, or pg_hba.conf lets them in by certificate.

BEGIN;

DO $$
DECLARE
    ours CONSTANT text[] := ARRAY['cfo_sync_consumer', 'cfo_sync_api', 'cfo_sync_debezium', 'cfo_sync_reporting'];
    ledger CONSTANT oid := to_regclass('transactions');  -- the CFO's table, if it is in this database
    -- A superuser's grant, for SILENCE_ECHO (docs/connector.md): the owner could not take it back.
    marking CONSTANT text[] := ARRAY['pg_replication_origin_oid', 'pg_replication_origin_create',
        'pg_replication_origin_session_setup', 'pg_replication_origin_xact_setup'];
    name text;
    found record;
BEGIN
    -- One run at a time in a database.
    PERFORM pg_advisory_xact_lock(x'0cf0'::int, 4);
    FOREACH name IN ARRAY ours LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN %s', name,
                CASE WHEN name = 'cfo_sync_debezium' THEN 'REPLICATION' ELSE '' END);
        END IF;
    END LOOP;
    -- What a role may do by what it is, or by what it is a member of.
    FOR found IN
        SELECT rolname, attribute
        FROM pg_roles
        CROSS JOIN LATERAL (VALUES
            (rolsuper, 'NOSUPERUSER'),
            (rolcreaterole, 'NOCREATEROLE'),
            (rolcreatedb, 'NOCREATEDB'),
            (rolbypassrls, 'NOBYPASSRLS'),
            (rolreplication AND rolname <> 'cfo_sync_debezium', 'NOREPLICATION'),
            (NOT rolreplication AND rolname = 'cfo_sync_debezium', 'REPLICATION')
        ) AS a (is_wrong, attribute)
        WHERE rolname = ANY (ours) AND is_wrong
    LOOP
        EXECUTE format('ALTER ROLE %I %s', found.rolname, found.attribute);
    END LOOP;
    FOR found IN
        SELECT roleid::regrole AS granted, member::regrole AS holder FROM pg_auth_members
        WHERE pg_get_userbyid(member) = ANY (ours)
    LOOP
        EXECUTE format('REVOKE %s FROM %s', found.granted, found.holder);
    END LOOP;
    -- What a role may do with the things in this database.
    FOR found IN
        WITH granted (kind, object, grantee) AS (
            SELECT 'TABLE', c.oid::regclass::text, a.grantee
            FROM pg_class AS c
            CROSS JOIN LATERAL (
                SELECT (aclexplode(c.relacl)).grantee
                UNION
                SELECT (aclexplode(attacl)).grantee FROM pg_attribute WHERE attrelid = c.oid
            ) AS a
            WHERE c.oid IS DISTINCT FROM ledger AND NOT EXISTS (
                SELECT FROM pg_depend AS d
                WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refobjid = ledger
            )
            UNION ALL
            SELECT 'ROUTINE', oid::regprocedure::text, (aclexplode(proacl)).grantee FROM pg_proc
            WHERE proname <> ALL (marking)
            UNION ALL
            SELECT 'SCHEMA', oid::regnamespace::text, (aclexplode(nspacl)).grantee FROM pg_namespace
            UNION ALL
            SELECT 'DATABASE', quote_ident(datname), (aclexplode(datacl)).grantee FROM pg_database
            WHERE datname = current_database()
        )
        SELECT DISTINCT kind, object, grantee::regrole AS grantee FROM granted
        WHERE grantee <> 0 AND pg_get_userbyid(grantee) = ANY (ours)
    LOOP
        EXECUTE format('REVOKE ALL ON %s %s FROM %s', found.kind, found.object, found.grantee);
    END LOOP;

    EXECUTE format('GRANT CONNECT ON DATABASE %I TO %s', current_database(), array_to_string(ours, ', '));
    EXECUTE format('GRANT USAGE ON SCHEMA %s TO %s',
        (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'crypto_invoices'::regclass),
        array_to_string(ours, ', '));
END
$$;

-- The invoice system's tables: the columns that are read, and the status. Clients' addresses, wallets and notes are not
-- among them. The update is also what PostgreSQL asks for before it lets anybody lock a row.
GRANT
    SELECT (
        id, invoice_number, client_id, status, amount_usd, paid_at, billing_period, description, crypto_currency,
        crypto_amount, crypto_network, created_at, updated_at
    ),
    UPDATE (status)
    ON crypto_invoices TO cfo_sync_consumer, cfo_sync_api;
GRANT SELECT (id, name) ON crypto_clients TO cfo_sync_consumer, cfo_sync_api;
GRANT SELECT (id, invoice_id, transaction_hash, amount_received, currency, status, detected_at, confirmed_at)
    ON crypto_payment_transactions TO cfo_sync_consumer, cfo_sync_api;

-- Mapping and log. Of the log the consumer reads what it last sent, to tell what a killed attempt did not. An invoice's mapping is never given to another one, and nothing is deleted.
GRANT
    SELECT,
    INSERT,
    UPDATE (
        cfo_transaction_id, cfo_identifier, adopted, sync_status, sync_timestamp, entity_mapped, category_mapped,
        confidence_score, sync_error, retry_count, last_retry_at, updated_at
    )
    ON crypto_invoice_cfo_sync TO cfo_sync_consumer, cfo_sync_api;
GRANT SELECT (id, invoice_id, sync_status, request_payload), INSERT ON crypto_cfo_sync_log TO cfo_sync_consumer;
GRANT SELECT, INSERT ON crypto_cfo_sync_log TO cfo_sync_api;
GRANT USAGE ON SEQUENCE crypto_invoice_cfo_sync_id_seq, crypto_cfo_sync_log_id_seq TO cfo_sync_consumer, cfo_sync_api;
GRANT SELECT ON v_crypto_invoices_pending_sync TO cfo_sync_api;

-- Dead letters, and what people did: the consumer notes that a replayed one was booked, and follows remaps.
GRANT SELECT (invoice_id, state), UPDATE (state, outcome, updated_at) ON cfo_sync_dlq TO cfo_sync_consumer;
GRANT SELECT (id, action, invoice_id, details) ON cfo_sync_actions TO cfo_sync_consumer;
GRANT
    SELECT,
    INSERT,
    UPDATE (
        state, invoice_id, error_code, dlq_partition, dlq_offset, replay_count, replay_id, changed_by, reason, outcome,
        updated_at
    )
    ON cfo_sync_dlq TO cfo_sync_api;
GRANT SELECT, INSERT ON cfo_sync_actions TO cfo_sync_api;
GRANT SELECT, INSERT, DELETE ON cfo_sync_reconciliations TO cfo_sync_api;
GRANT SELECT, INSERT, UPDATE (reason, acknowledged_by, acknowledged_at) ON cfo_sync_acknowledgements TO cfo_sync_api;

-- Debezium: the columns that it sends, and a publication that is there already, because only an owner can make one.
GRANT SELECT (id, invoice_number, status, paid_at, updated_at) ON crypto_invoices TO cfo_sync_debezium;

DO $$
DECLARE
    columns text := '(id, invoice_number, status, paid_at, updated_at)';
BEGIN
    IF EXISTS (SELECT FROM pg_publication WHERE pubname = 'cfo_sync_publication') THEN
        RETURN;
    END IF;
    -- PostgreSQL 14 knows no column lists; with a replica identity of all columns one would stop the invoice system.
    IF current_setting('server_version_num')::int < 150000
        OR (SELECT relreplident = 'f' FROM pg_class WHERE oid = 'crypto_invoices'::regclass)
    THEN
        columns := '';
    END IF;
    EXECUTE format(
        'CREATE PUBLICATION cfo_sync_publication FOR TABLE crypto_invoices %s WITH (publish = ''insert, update, delete'')',
        columns
    );
END
$$;

-- Reports: everything of ours, and what the guide's queries want of the invoices.
GRANT SELECT
    ON v_crypto_invoices_pending_sync, v_crypto_invoices_synced, crypto_invoice_cfo_sync, crypto_cfo_sync_log,
    cfo_sync_dlq, cfo_sync_actions, cfo_sync_reconciliations, cfo_sync_acknowledgements
    TO cfo_sync_reporting;
GRANT SELECT (id, invoice_number, client_id, status, amount_usd, paid_at) ON crypto_invoices TO cfo_sync_reporting;
REVOKE ALL ON FUNCTION get_invoices_ready_for_sync() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION get_invoices_ready_for_sync() TO cfo_sync_reporting;

COMMIT;
