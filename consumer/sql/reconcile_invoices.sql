-- Every invoice that a transaction is owed for, or that our mapping knows, in the order of its key: the Identifier that
-- its transaction bears, or will bear. Mapping rows whose invoice is gone come too. All as text; columns as in
-- comparison.InvoiceRow. Payments are read only where they date an invoice or give it its currency, in one scan.
SELECT *
FROM (
    SELECT
        coalesce(
            CASE WHEN s.cfo_transaction_id IS NOT NULL OR s.sync_timestamp IS NOT NULL THEN s.cfo_identifier END,
            CASE WHEN btrim(i.invoice_number::text) <> '' THEN i.invoice_number::text END
        ) AS key,
        coalesce(i.id, s.invoice_id)::text AS id,
        :columns
    FROM crypto_invoices i
    FULL JOIN crypto_invoice_cfo_sync s ON s.invoice_id = i.id
    LEFT JOIN crypto_clients c ON c.id = i.client_id
    LEFT JOIN (
        SELECT
            t.invoice_id,
            max(coalesce(t.confirmed_at, t.detected_at)) AS last_confirmed_at,
            (array_agg(t.currency ORDER BY coalesce(t.confirmed_at, t.detected_at) DESC NULLS LAST, t.id DESC))[1] AS currency
        FROM crypto_payment_transactions t
        JOIN crypto_invoices n ON n.id = t.invoice_id
        WHERE lower(t.status::text) = 'confirmed'
            AND (n.paid_at IS NULL OR n.crypto_currency IS NULL OR n.crypto_currency::text = '')
        GROUP BY t.invoice_id
    ) p ON p.invoice_id = i.id
    WHERE (lower(i.status::text) IN ('paid', 'complete') OR s.invoice_id IS NOT NULL)
        AND (
            %(since)s::timestamp IS NULL
            OR coalesce(i.paid_at, p.last_confirmed_at) IS NULL
            OR coalesce(i.paid_at, p.last_confirmed_at) >= %(since)s::timestamp
        )
) AS q
ORDER BY key COLLATE "C" NULLS LAST, id
