-- The mapping and log tables, the two views and the function of the CFO sync, in the invoice database.
--
-- One file, so one transaction: an installation that already has the first version of these objects is brought up
-- to date in one step, and a run that is killed leaves nothing half done. Every statement may run again.
-- Timestamps without zone hold UTC.
-- depends:

-- The views read the tables' columns and must be gone before a column changes its type.
DROP FUNCTION IF EXISTS get_invoices_ready_for_sync();

DROP VIEW IF EXISTS v_crypto_invoices_pending_sync;

DROP VIEW IF EXISTS v_crypto_invoices_synced;

-- No foreign key on invoice_id, on purpose: the mapping outlives a deleted invoice, so that a reused number books
-- nothing twice, and it never blocks a delete in the invoice system.
CREATE TABLE IF NOT EXISTS crypto_invoice_cfo_sync (
    id SERIAL PRIMARY KEY,
    invoice_id INTEGER NOT NULL,
    cfo_transaction_id BIGINT,
    cfo_identifier TEXT,
    adopted BOOLEAN NOT NULL DEFAULT false,
    sync_status VARCHAR(20) NOT NULL DEFAULT 'pending',
    sync_timestamp TIMESTAMP,
    entity_mapped VARCHAR(255),
    category_mapped VARCHAR(100),
    confidence_score DECIMAL,
    sync_error TEXT,
    retry_count INTEGER NOT NULL DEFAULT 0,
    last_retry_at TIMESTAMP,
    created_at TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'),
    updated_at TIMESTAMP NOT NULL DEFAULT (clock_timestamp() AT TIME ZONE 'UTC')
);

-- SERIAL as the guide has it: 2,147,483,647 attempts, some 35 years at 2 per second.
CREATE TABLE IF NOT EXISTS crypto_cfo_sync_log (
    id SERIAL PRIMARY KEY,
    invoice_id INTEGER NOT NULL,
    sync_attempt_timestamp TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'),
    sync_status VARCHAR(20) NOT NULL,
    cfo_transaction_id BIGINT,
    error_message TEXT,
    request_payload JSONB,
    response_data JSONB
);

-- From here on: tables that were there already, made from the guide. Their rows stay.

-- A foreign key would block the other systems' deletes, or with ON DELETE CASCADE forget what was booked.
DO $$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT conrelid::regclass AS table_name, conname
        FROM pg_constraint
        WHERE contype = 'f'
          AND conrelid IN ('crypto_invoice_cfo_sync'::regclass, 'crypto_cfo_sync_log'::regclass)
    LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', found.table_name, found.conname);
    END LOOP;
END
$$;

ALTER TABLE crypto_invoice_cfo_sync
    ADD COLUMN IF NOT EXISTS cfo_identifier TEXT,
    ADD COLUMN IF NOT EXISTS adopted BOOLEAN NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS last_retry_at TIMESTAMP,
    ADD COLUMN IF NOT EXISTS created_at TIMESTAMP,
    ADD COLUMN IF NOT EXISTS updated_at TIMESTAMP;

ALTER TABLE crypto_cfo_sync_log ADD COLUMN IF NOT EXISTS cfo_transaction_id BIGINT;

-- Changed only where it is not BIGINT yet, so that a second run takes no long lock and needs no rewrite.
DO $$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT attrelid::regclass AS table_name
        FROM pg_attribute
        WHERE attname = 'cfo_transaction_id'
          AND atttypid <> 'bigint'::regtype
          AND attrelid IN ('crypto_invoice_cfo_sync'::regclass, 'crypto_cfo_sync_log'::regclass)
    LOOP
        EXECUTE format('ALTER TABLE %s ALTER COLUMN cfo_transaction_id TYPE BIGINT', found.table_name);
    END LOOP;
END
$$;

-- What people must decide is refused, with nothing changed: one invoice with two mappings may be booked twice.
DO $$
DECLARE
    culprits text;
BEGIN
    SELECT string_agg(invoice_id::text, ', ' ORDER BY invoice_id) INTO culprits
    FROM (SELECT invoice_id FROM crypto_invoice_cfo_sync WHERE invoice_id IS NOT NULL
          GROUP BY invoice_id HAVING count(*) > 1 ORDER BY invoice_id LIMIT 20) AS repeated;
    IF culprits IS NOT NULL THEN
        RAISE EXCEPTION 'crypto_invoice_cfo_sync has more than one row for invoice(s) %', culprits
            USING ERRCODE = 'unique_violation',
                  HINT = 'Keep the row whose cfo_transaction_id stands in the ledger, delete the others, migrate again.';
    END IF;
    SELECT string_agg(cfo_transaction_id::text, ', ' ORDER BY cfo_transaction_id) INTO culprits
    FROM (SELECT cfo_transaction_id FROM crypto_invoice_cfo_sync WHERE cfo_transaction_id IS NOT NULL
          GROUP BY cfo_transaction_id HAVING count(*) > 1 ORDER BY cfo_transaction_id LIMIT 20) AS repeated;
    IF culprits IS NOT NULL THEN
        RAISE EXCEPTION 'crypto_invoice_cfo_sync maps more than one invoice to CFO transaction(s) %', culprits
            USING ERRCODE = 'unique_violation',
                  HINT = 'Leave each transaction to its own invoice, set cfo_transaction_id of the others to NULL, migrate again.';
    END IF;
    SELECT string_agg(quote_literal(sync_status), ', ') INTO culprits
    FROM (SELECT DISTINCT sync_status FROM crypto_invoice_cfo_sync
          WHERE lower(sync_status) NOT IN ('pending', 'synced', 'failed', 'retry') LIMIT 20) AS unknown;
    IF culprits IS NOT NULL THEN
        RAISE EXCEPTION 'crypto_invoice_cfo_sync has unknown sync_status values: %', culprits
            USING ERRCODE = 'check_violation',
                  HINT = 'Set them to pending, synced, failed or retry, then migrate again.';
    END IF;
    IF EXISTS (SELECT FROM crypto_invoice_cfo_sync WHERE invoice_id IS NULL)
       OR EXISTS (SELECT FROM crypto_cfo_sync_log WHERE invoice_id IS NULL OR sync_status IS NULL) THEN
        RAISE EXCEPTION 'crypto_invoice_cfo_sync or crypto_cfo_sync_log has rows without invoice_id or sync_status'
            USING ERRCODE = 'not_null_violation', HINT = 'Complete or delete those rows, then migrate again.';
    END IF;
END
$$;

-- A row that was booked before this migration was made when it was booked, not now: the guide's success rate counts
-- by created_at.
UPDATE crypto_invoice_cfo_sync
SET sync_status = lower(COALESCE(sync_status, 'pending')),
    retry_count = COALESCE(retry_count, 0),
    created_at = COALESCE(created_at, sync_timestamp, now() AT TIME ZONE 'UTC'),
    updated_at = COALESCE(updated_at, sync_timestamp, clock_timestamp() AT TIME ZONE 'UTC')
WHERE sync_status IS NULL
   OR sync_status <> lower(sync_status)
   OR retry_count IS NULL
   OR created_at IS NULL
   OR updated_at IS NULL;

UPDATE crypto_cfo_sync_log
SET sync_attempt_timestamp = now() AT TIME ZONE 'UTC'
WHERE sync_attempt_timestamp IS NULL;

ALTER TABLE crypto_invoice_cfo_sync
    ALTER COLUMN invoice_id SET NOT NULL,
    ALTER COLUMN cfo_transaction_id DROP NOT NULL,
    ALTER COLUMN sync_status SET NOT NULL,
    ALTER COLUMN sync_status SET DEFAULT 'pending',
    ALTER COLUMN retry_count SET NOT NULL,
    ALTER COLUMN retry_count SET DEFAULT 0,
    ALTER COLUMN created_at SET NOT NULL,
    ALTER COLUMN created_at SET DEFAULT (now() AT TIME ZONE 'UTC'),
    ALTER COLUMN updated_at SET NOT NULL,
    ALTER COLUMN updated_at SET DEFAULT (clock_timestamp() AT TIME ZONE 'UTC'),
    DROP CONSTRAINT IF EXISTS crypto_invoice_cfo_sync_sync_status_check,
    ADD CONSTRAINT crypto_invoice_cfo_sync_sync_status_check
        CHECK (sync_status IN ('pending', 'synced', 'failed', 'retry'));

ALTER TABLE crypto_cfo_sync_log
    ALTER COLUMN invoice_id SET NOT NULL,
    ALTER COLUMN sync_status SET NOT NULL,
    ALTER COLUMN sync_attempt_timestamp SET NOT NULL,
    ALTER COLUMN sync_attempt_timestamp SET DEFAULT (now() AT TIME ZONE 'UTC');

-- Unique as indexes and not as constraints: an index can be asked for with IF NOT EXISTS, and ON CONFLICT takes both.
CREATE UNIQUE INDEX IF NOT EXISTS crypto_invoice_cfo_sync_invoice_id_key
    ON crypto_invoice_cfo_sync (invoice_id);

-- One row of the ledger belongs to one invoice.
CREATE UNIQUE INDEX IF NOT EXISTS crypto_invoice_cfo_sync_cfo_transaction_id_key
    ON crypto_invoice_cfo_sync (cfo_transaction_id) WHERE cfo_transaction_id IS NOT NULL;

-- An Identifier stays with the invoice that was booked under it, even after a renumbering or a deletion.
CREATE UNIQUE INDEX IF NOT EXISTS crypto_invoice_cfo_sync_cfo_identifier_key
    ON crypto_invoice_cfo_sync (cfo_identifier);

-- Stays small: nearly every row is synced.
CREATE INDEX IF NOT EXISTS crypto_invoice_cfo_sync_unsettled_idx
    ON crypto_invoice_cfo_sync (sync_status, invoice_id) WHERE sync_status <> 'synced';

CREATE INDEX IF NOT EXISTS crypto_cfo_sync_log_invoice_id_id_idx
    ON crypto_cfo_sync_log (invoice_id, id);

COMMENT ON TABLE crypto_invoice_cfo_sync IS
    'CFO sync: which invoice stands in the CFO ledger as which transaction. Times are UTC. No foreign key, on purpose: rows outlive deleted invoices.';

COMMENT ON COLUMN crypto_invoice_cfo_sync.cfo_transaction_id IS
    'Key of the ledger row; NULL when not booked yet or when the ledger''s key is not a number (see cfo_identifier).';

COMMENT ON COLUMN crypto_invoice_cfo_sync.cfo_identifier IS
    'Identifier of the ledger row; kept for ever, so that a renumbered invoice or a reused number books nothing twice.';

COMMENT ON COLUMN crypto_invoice_cfo_sync.adopted IS
    'The ledger row was there already, made by another hand: it is mapped, and never changed by the sync.';

COMMENT ON COLUMN crypto_invoice_cfo_sync.retry_count IS
    'Number of the retry that the invoice waits for or has had (1 to 3); 0 if none.';

COMMENT ON TABLE crypto_cfo_sync_log IS
    'CFO sync: every attempt that changed something or failed. Times are UTC.';

-- One row per invoice that still has to be booked, or that people must look at:
--   paid, never tried                             pending (COALESCE)
--   paid again although it was booked (reopened)  pending, retry_count 0; cfo_transaction_id is the row it has
--   waiting in a retry topic                      retry
--   given up                                      failed, whatever the invoice's status is now
-- An invoice with several payments is one row: amount_received and payment_count are over its confirmed payments,
-- the other payment columns are of the latest confirmed one (by confirmed_at, else detected_at).
-- Two branches, so that both can use a partial index: nearly all invoices are neither paid nor failed.
CREATE VIEW v_crypto_invoices_pending_sync AS
SELECT
    q.invoice_id,
    q.invoice_number,
    c.name AS client_name,
    q.amount_usd,
    q.paid_at,
    CASE WHEN q.mapping_status IN ('failed', 'retry') THEN q.mapping_status ELSE 'pending' END::text AS sync_status,
    CASE WHEN q.mapping_status = 'synced' THEN 0 ELSE COALESCE(q.retry_count, 0) END AS retry_count,
    CASE WHEN q.mapping_status <> 'synced' THEN q.sync_error END AS sync_error,
    CASE WHEN q.mapping_status <> 'synced' THEN q.last_retry_at END AS last_retry_at,
    q.invoice_status,
    q.client_id,
    q.billing_period,
    q.description,
    q.crypto_currency,
    q.cfo_transaction_id,
    COALESCE(q.mapping_status = 'synced', false) AS reopened,
    p.transaction_hash,
    p.payment_currency,
    p.payment_network,
    p.amount_received,
    p.payment_count,
    p.confirmed_at
FROM (
    SELECT
        i.id AS invoice_id, i.invoice_number, i.client_id, i.status::text AS invoice_status, i.amount_usd, i.paid_at,
        i.billing_period, i.description, i.crypto_currency,
        s.sync_status AS mapping_status, s.retry_count, s.sync_error, s.last_retry_at, s.cfo_transaction_id
    FROM crypto_invoices AS i
    LEFT JOIN crypto_invoice_cfo_sync AS s ON s.invoice_id = i.id
    WHERE lower(i.status::text) = 'paid'
    UNION ALL
    SELECT
        i.id, i.invoice_number, i.client_id, i.status::text, i.amount_usd, i.paid_at,
        i.billing_period, i.description, i.crypto_currency,
        s.sync_status, s.retry_count, s.sync_error, s.last_retry_at, s.cfo_transaction_id
    FROM crypto_invoice_cfo_sync AS s
    JOIN crypto_invoices AS i ON i.id = s.invoice_id
    WHERE s.sync_status IN ('failed', 'retry') AND lower(i.status::text) IS DISTINCT FROM 'paid'
) AS q
LEFT JOIN crypto_clients AS c ON c.id = q.client_id
LEFT JOIN LATERAL (
    SELECT
        sum(t.amount_received) AS amount_received,
        count(*) AS payment_count,
        max(t.seen_at) AS confirmed_at,
        (array_agg(t.transaction_hash ORDER BY t.seen_at DESC NULLS LAST, t.id DESC))[1] AS transaction_hash,
        (array_agg(t.currency ORDER BY t.seen_at DESC NULLS LAST, t.id DESC))[1] AS payment_currency,
        (array_agg(t.network ORDER BY t.seen_at DESC NULLS LAST, t.id DESC))[1] AS payment_network
    FROM (
        SELECT
            id, transaction_hash, currency, network, amount_received,
            COALESCE(confirmed_at, detected_at) AS seen_at
        FROM crypto_payment_transactions
        WHERE invoice_id = q.invoice_id AND lower(status::text) = 'confirmed'
    ) AS t
) AS p ON true;

COMMENT ON VIEW v_crypto_invoices_pending_sync IS
    'CFO sync: one row per invoice that still has to be booked (pending, retry) or that people must look at (failed).';

-- What is booked, as the mapping knows it; the CFO's own table may live in another database and is not joined.
-- An invoice deleted since keeps its row (invoice columns NULL): the ledger still has it. A reopened invoice is in
-- both views until it is booked again: the ledger has it, and it has to be brought up to date.
CREATE VIEW v_crypto_invoices_synced AS
SELECT
    s.invoice_id,
    i.invoice_number,
    c.name AS client_name,
    i.amount_usd,
    i.paid_at,
    s.sync_status::text AS sync_status,
    s.sync_timestamp,
    s.cfo_transaction_id,
    s.cfo_identifier,
    s.adopted,
    s.entity_mapped,
    s.category_mapped,
    s.confidence_score,
    s.retry_count,
    s.created_at,
    s.updated_at,
    i.status::text AS invoice_status,
    i.client_id,
    i.billing_period,
    i.description,
    i.crypto_currency
FROM crypto_invoice_cfo_sync AS s
LEFT JOIN crypto_invoices AS i ON i.id = s.invoice_id
LEFT JOIN crypto_clients AS c ON c.id = i.client_id
WHERE s.sync_status = 'synced';

COMMENT ON VIEW v_crypto_invoices_synced IS
    'CFO sync: what is booked. Invoice columns are NULL when the invoice was deleted afterwards.';

-- The guide: status paid, sync status NULL or failed, fewer than 3 retries, oldest first. A row that says pending
-- means the same as none, and a reopened invoice is to be booked again, so both are ready. A row in retry is not:
-- it waits in a retry topic. The casts fit invoice tables with other column types; with TimeZone at UTC they turn
-- paid_at into UTC whether it has a zone or not.
CREATE FUNCTION get_invoices_ready_for_sync()
RETURNS TABLE (
    invoice_id INTEGER,
    invoice_number TEXT,
    client_name TEXT,
    amount_usd NUMERIC,
    paid_at TIMESTAMP,
    sync_status TEXT,
    retry_count INTEGER,
    sync_error TEXT,
    last_retry_at TIMESTAMP,
    invoice_status TEXT,
    billing_period TEXT,
    description TEXT,
    crypto_currency TEXT,
    cfo_transaction_id BIGINT,
    reopened BOOLEAN,
    transaction_hash TEXT,
    payment_currency TEXT,
    payment_network TEXT,
    amount_received NUMERIC,
    payment_count BIGINT,
    confirmed_at TIMESTAMP
)
LANGUAGE sql STABLE
SET TimeZone = 'UTC'
AS $$
    SELECT
        v.invoice_id::integer,
        v.invoice_number::text,
        v.client_name::text,
        v.amount_usd::numeric,
        v.paid_at::timestamp,
        v.sync_status,
        v.retry_count,
        v.sync_error,
        v.last_retry_at,
        v.invoice_status,
        v.billing_period::text,
        v.description::text,
        v.crypto_currency::text,
        v.cfo_transaction_id,
        v.reopened,
        v.transaction_hash::text,
        v.payment_currency::text,
        v.payment_network::text,
        v.amount_received::numeric,
        v.payment_count,
        v.confirmed_at::timestamp
    FROM v_crypto_invoices_pending_sync AS v
    WHERE lower(v.invoice_status) = 'paid'
      AND v.sync_status IN ('pending', 'failed')
      AND v.retry_count < 3
    ORDER BY v.paid_at ASC NULLS LAST, v.invoice_id ASC
$$;

COMMENT ON FUNCTION get_invoices_ready_for_sync() IS
    'CFO sync: paid invoices that are not booked, not waiting in a retry and have had fewer than 3 retries, oldest first.';
