-- What both readings of invoices say of one, from its state on; columns as in comparison.InvoiceRow.
CASE WHEN i.id IS NOT NULL THEN coalesce(lower(i.status::text), '') END AS state,
i.invoice_number::text,
c.name::text,
i.amount_usd::text,
i.paid_at::text,
i.crypto_currency::text,
p.last_confirmed_at::text,
p.currency::text,
CASE
    WHEN coalesce(i.paid_at, i.updated_at, i.created_at, '-infinity')
        >= now() AT TIME ZONE 'UTC' - %(grace)s::interval
    THEN 'y'
END AS young,
s.sync_status::text,
s.cfo_transaction_id::text,
s.cfo_identifier::text,
CASE WHEN s.cfo_transaction_id IS NOT NULL OR s.sync_timestamp IS NOT NULL THEN 'y' END AS recorded,
CASE WHEN s.adopted THEN 'y' END AS adopted,
s.updated_at::text
