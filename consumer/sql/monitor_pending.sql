-- What waits. The count is the guide's "Pending Syncs". Ages are of paid invoices only: one that was given up and then
-- cancelled is for people to look at, not revenue that is missing. One that nothing dates is as old as its last change.
-- The casts turn any kind of timestamp into UTC.
SELECT
    count(*) AS pending,
    count(*) FILTER (WHERE sync_status = 'failed' AND retry_count >= 3) AS used_up,
    count(*) FILTER (WHERE sync_status = 'failed' AND retry_count < 3) AS retries_left,
    extract(epoch FROM now() AT TIME ZONE 'UTC' - min(since) FILTER (WHERE sync_status = 'pending'))::float8,
    extract(epoch FROM now() AT TIME ZONE 'UTC' - min(since) FILTER (WHERE sync_status = 'retry'))::float8,
    extract(epoch FROM now() AT TIME ZONE 'UTC' - min(since) FILTER (WHERE sync_status = 'failed'))::float8
FROM (
    SELECT
        v.sync_status,
        v.retry_count,
        CASE
            WHEN lower(v.invoice_status) = 'paid' AND isfinite(d.since) THEN d.since
        END AS since
    FROM v_crypto_invoices_pending_sync AS v
    JOIN crypto_invoices AS i ON i.id = v.invoice_id
    CROSS JOIN LATERAL (
        SELECT coalesce(v.paid_at::timestamp, v.confirmed_at::timestamp, i.updated_at, i.created_at) AS since
    ) AS d
) AS waiting
