-- What the roles of the CFO sync may do with the CFO's table (docs/database-roles.md). Run it in the database that the
-- table is in, as its owner (with CREATEROLE) or as superuser, after invoice_database.sql if that is the same database:
--     psql -X -v ON_ERROR_STOP=1 -f cfo_database.sql "$OWNER_DSN"
-- It may run again at any time. What these roles were granted beyond this file is taken from them: on this table, and
-- if the invoices are in another database, on everything here.
-- Written for the guide's table, as consumer/mapping.toml names it. For another one change the names below, here and in
-- the second line of invoice_database.sql's first block; `cfo-sync check --api` says what is missing then.

BEGIN;

DO $$
DECLARE
    ours CONSTANT text[] := ARRAY['cfo_sync_consumer', 'cfo_sync_api', 'cfo_sync_reporting'];
    ledger CONSTANT oid := 'transactions'::regclass;
    with_invoices CONSTANT boolean := to_regclass('crypto_invoice_cfo_sync') IS NOT NULL;
    name text;
    found record;
BEGIN
    PERFORM pg_advisory_xact_lock(x'0cf0'::int, 4);
    FOREACH name IN ARRAY ours LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', name);
        END IF;
    END LOOP;
    FOR found IN
        WITH granted (kind, object, grantee) AS (
            SELECT 'TABLE', c.oid::regclass::text, a.grantee
            FROM pg_class AS c
            CROSS JOIN LATERAL (
                SELECT (aclexplode(c.relacl)).grantee
                UNION
                SELECT (aclexplode(attacl)).grantee FROM pg_attribute WHERE attrelid = c.oid
            ) AS a
            WHERE NOT with_invoices OR c.oid = ledger OR EXISTS (
                SELECT FROM pg_depend AS d
                WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refobjid = ledger
            )
            UNION ALL
            SELECT 'ROUTINE', oid::regprocedure::text, (aclexplode(proacl)).grantee FROM pg_proc
            WHERE NOT with_invoices
            UNION ALL
            SELECT 'SCHEMA', oid::regnamespace::text, (aclexplode(nspacl)).grantee FROM pg_namespace
            WHERE NOT with_invoices
            UNION ALL
            SELECT 'DATABASE', quote_ident(datname), (aclexplode(datacl)).grantee FROM pg_database
            WHERE NOT with_invoices AND datname = current_database()
        )
        SELECT DISTINCT kind, object, grantee::regrole AS grantee FROM granted
        WHERE grantee <> 0 AND pg_get_userbyid(grantee) = ANY (ours || 'cfo_sync_debezium'::text)
    LOOP
        EXECUTE format('REVOKE ALL ON %s %s FROM %s', found.kind, found.object, found.grantee);
    END LOOP;

    EXECUTE format('GRANT CONNECT ON DATABASE %I TO %s', current_database(), array_to_string(ours, ', '));
    EXECUTE format('GRANT USAGE ON SCHEMA %s TO %s',
        (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = ledger), array_to_string(ours, ', '));
END
$$;

-- Book, and bring the facts of what was booked up to date.
GRANT
    SELECT (id, identifier, source_file, classified_entity, date, description, amount, currency),
    INSERT (
        date, description, amount, classified_entity, business_unit, source_file, transaction_type, confidence,
        classification_reason, origin, destination, identifier, currency
    ),
    UPDATE (date, description, amount, currency)
    ON transactions TO cfo_sync_consumer, cfo_sync_api;
GRANT USAGE ON SEQUENCE transactions_id_seq TO cfo_sync_consumer, cfo_sync_api;

-- `remap`: what a person says about entity and business unit.
GRANT SELECT (business_unit), UPDATE (classified_entity, business_unit) ON transactions TO cfo_sync_api;

GRANT SELECT ON transactions TO cfo_sync_reporting;

COMMIT;
