-- One invoice beside its mapping row. NULL sync_status: nothing was tried yet.
SELECT
    i.id::bigint AS invoice_id,
    i.invoice_number::text,
    i.status::text AS invoice_status,
    s.sync_status::text,
    s.cfo_transaction_id,
    s.cfo_identifier,
    s.sync_timestamp,
    s.entity_mapped::text,
    s.category_mapped::text,
    s.sync_error,
    s.retry_count,
    s.adopted
FROM crypto_invoices i
LEFT JOIN crypto_invoice_cfo_sync s ON s.invoice_id = i.id
WHERE i.id = %(id)s
