-- Paid invoices that no event brought in: older than the grace period, not failed (people, or a new event, must act),
-- not waiting in a retry topic unless overdue there. Oldest id first, from `after` on.
SELECT i.id::bigint
FROM crypto_invoices i
LEFT JOIN crypto_invoice_cfo_sync s ON s.invoice_id = i.id
WHERE lower(i.status::text) = 'paid'
    AND i.id > %(after)s
    AND coalesce(i.paid_at, i.updated_at, i.created_at, '-infinity') < now() AT TIME ZONE 'UTC' - %(grace)s::interval
    AND (
        s.invoice_id IS NULL
        OR s.sync_status IN ('pending', 'synced')
        OR s.sync_status = 'retry'
            AND coalesce(s.last_retry_at, '-infinity')
                < now() AT TIME ZONE 'UTC' - %(grace)s::interval - (%(delays)s::interval[])[least(greatest(s.retry_count, 1), 3)]
    )
ORDER BY i.id
LIMIT %(limit)s
