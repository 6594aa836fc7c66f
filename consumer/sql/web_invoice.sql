-- One invoice with its client and its mapping row.
SELECT
    i.id::bigint AS invoice_id,
    i.invoice_number::text,
    i.status::text AS invoice_status,
    i.amount_usd::text,
    i.paid_at::text,
    i.billing_period::text,
    i.description::text,
    i.crypto_currency::text,
    i.crypto_amount::text,
    i.crypto_network::text,
    i.created_at::text,
    i.updated_at::text,
    i.client_id::text,
    c.name::text AS client_name,
    s.sync_status::text,
    s.cfo_transaction_id,
    s.cfo_identifier,
    s.sync_timestamp,
    s.entity_mapped::text,
    s.category_mapped::text,
    s.sync_error,
    coalesce(s.retry_count, 0) AS retry_count,
    s.last_retry_at,
    coalesce(s.adopted, false) AS adopted
FROM crypto_invoices AS i
LEFT JOIN crypto_clients AS c ON c.id = i.client_id
LEFT JOIN crypto_invoice_cfo_sync AS s ON s.invoice_id = i.id
WHERE i.id = %(id)s
