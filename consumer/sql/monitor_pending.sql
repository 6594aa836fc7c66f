-- What waits. The count is the guide's "Pending Syncs". Ages are of paid invoices only: one that was given up and then
-- cancelled is for people to look at, not revenue that is missing. The casts turn any kind of timestamp into UTC.
SELECT
    count(*) AS pending,
    count(*) FILTER (WHERE sync_status = 'failed' AND retry_count >= 3) AS used_up,
    count(*) FILTER (WHERE sync_status = 'failed' AND retry_count < 3) AS retries_left,
    extract(epoch FROM now() AT TIME ZONE 'UTC' - min(since) FILTER (WHERE sync_status = 'pending'))::float8,
    extract(epoch FROM now() AT TIME ZONE 'UTC' - min(since) FILTER (WHERE sync_status = 'retry'))::float8,
    extract(epoch FROM now() AT TIME ZONE 'UTC' - min(since) FILTER (WHERE sync_status = 'failed'))::float8
FROM (
    SELECT
        sync_status,
        retry_count,
        CASE
            WHEN lower(invoice_status) = 'paid' AND isfinite(coalesce(paid_at::timestamp, confirmed_at::timestamp))
                THEN coalesce(paid_at::timestamp, confirmed_at::timestamp)
        END AS since
    FROM v_crypto_invoices_pending_sync
) AS waiting
