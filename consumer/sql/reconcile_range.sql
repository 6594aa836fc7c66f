-- The first and the last key that an invoice can have: another hand's transaction outside of it belongs to none.
SELECT min(key COLLATE "C"), max(key COLLATE "C")
FROM (
    SELECT invoice_number::text AS key FROM crypto_invoices
    UNION ALL
    SELECT cfo_identifier::text FROM crypto_invoice_cfo_sync
) AS q
