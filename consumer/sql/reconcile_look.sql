-- The same columns as reconcile_invoices.sql for a few invoices as they stand now, whatever their status: those with
-- these ids, that bear one of these keys as number or Identifier, or that one of these transactions is mapped to. Of many
-- invoices with one number those come that its transactions may belong to.
WITH wanted AS (
    SELECT unnest(%(ids)s::bigint[]) AS id
    UNION
    SELECT id::bigint
    FROM (
        SELECT
            id,
            row_number() OVER (
                PARTITION BY invoice_number ORDER BY lower(status::text) IN ('paid', 'complete') DESC NULLS LAST, id
            ) AS place
        FROM crypto_invoices
        WHERE invoice_number = ANY(%(keys)s::text[])
    ) AS n
    WHERE place <= 20
    UNION
    SELECT invoice_id::bigint FROM crypto_invoice_cfo_sync WHERE cfo_identifier = ANY(%(keys)s::text[])
    UNION
    SELECT invoice_id::bigint FROM crypto_invoice_cfo_sync WHERE cfo_transaction_id = ANY(%(transactions)s::bigint[])
)
SELECT
    coalesce(
        CASE WHEN s.cfo_transaction_id IS NOT NULL OR s.sync_timestamp IS NOT NULL THEN s.cfo_identifier END,
        CASE WHEN btrim(i.invoice_number::text) <> '' THEN i.invoice_number::text END
    ) AS key,
    w.id::text,
    :columns
FROM wanted w
LEFT JOIN crypto_invoices i ON i.id = w.id
LEFT JOIN crypto_invoice_cfo_sync s ON s.invoice_id = w.id
LEFT JOIN crypto_clients c ON c.id = i.client_id
LEFT JOIN (
    SELECT
        t.invoice_id,
        max(coalesce(t.confirmed_at, t.detected_at)) AS last_confirmed_at,
        (array_agg(t.currency ORDER BY coalesce(t.confirmed_at, t.detected_at) DESC NULLS LAST, t.id DESC))[1] AS currency
    FROM crypto_payment_transactions t
    WHERE t.invoice_id IN (SELECT id FROM wanted) AND lower(t.status::text) = 'confirmed'
    GROUP BY t.invoice_id
) p ON p.invoice_id = i.id
WHERE i.id IS NOT NULL OR s.invoice_id IS NOT NULL
