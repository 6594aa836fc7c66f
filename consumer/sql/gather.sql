-- Every wanted invoice that exists, with its client, its confirmed payments and our mapping row; NULLs where those are
-- not there. All as text: a value that Python cannot hold must be one invoice's fault, not the batch's. Payments are
-- grouped once for the set, so that a missing index on invoice_id costs one scan and not one per invoice.
SELECT
    i.id::bigint,
    i.status::text,
    i.invoice_number::text,
    i.client_id::text,
    c.name::text,
    i.amount_usd::text,
    i.paid_at::text,
    i.billing_period::text,
    i.description::text,
    i.crypto_currency::text,
    i.crypto_amount::text,
    i.crypto_network::text,
    p.last_confirmed_at::text,
    p.transaction_hash::text,
    p.currency::text,
    p.amount_received::text,
    s.sync_status::text,
    s.cfo_transaction_id::bigint,
    CASE WHEN s.cfo_transaction_id IS NOT NULL OR s.sync_timestamp IS NOT NULL THEN s.cfo_identifier END,
    s.adopted,
    s.retry_count,
    s.updated_at::text,
    CASE WHEN s.cfo_transaction_id IS NULL AND s.sync_timestamp IS NULL THEN s.cfo_identifier END
FROM crypto_invoices i
LEFT JOIN crypto_clients c ON c.id = i.client_id
LEFT JOIN (
    SELECT
        invoice_id,
        max(coalesce(confirmed_at, detected_at)) AS last_confirmed_at,
        (array_agg(transaction_hash ORDER BY coalesce(confirmed_at, detected_at) DESC NULLS LAST, id DESC))[1] AS transaction_hash,
        (array_agg(currency ORDER BY coalesce(confirmed_at, detected_at) DESC NULLS LAST, id DESC))[1] AS currency,
        sum(amount_received) AS amount_received
    FROM crypto_payment_transactions
    WHERE invoice_id = ANY(%(ids)s::bigint[]) AND lower(status::text) = 'confirmed'
    GROUP BY invoice_id
) p ON p.invoice_id = i.id
LEFT JOIN crypto_invoice_cfo_sync s ON s.invoice_id = i.id
WHERE i.id = ANY(%(ids)s::bigint[])
