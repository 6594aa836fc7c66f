-- Mirror failed attempts in the mapping. It never lands on a booking made meanwhile: a synced row is overwritten only
-- if it is still the one that the failed attempt saw, and its invoice is paid again (a repair that fails leaves a
-- booked invoice booked). A NULL status leaves the mapping alone.
INSERT INTO crypto_invoice_cfo_sync AS s (invoice_id, sync_status, sync_error, retry_count, last_retry_at, updated_at)
SELECT
    v.invoice_id, v.sync_status, v.error, v.retry_count, clock_timestamp() AT TIME ZONE 'UTC',
    clock_timestamp() AT TIME ZONE 'UTC'
FROM unnest(
    %(invoice_ids)s::integer[], %(statuses)s::text[], %(errors)s::text[], %(retry_counts)s::integer[]
) AS v (invoice_id, sync_status, error, retry_count)
WHERE v.sync_status IS NOT NULL
ON CONFLICT (invoice_id) DO UPDATE SET
    sync_status = excluded.sync_status,
    sync_error = excluded.sync_error,
    retry_count = excluded.retry_count,
    last_retry_at = excluded.last_retry_at,
    updated_at = excluded.updated_at
WHERE s.sync_status <> 'synced'
    OR EXISTS (
        SELECT FROM unnest(%(invoice_ids)s::integer[], %(seen)s::text[]) AS w (invoice_id, version)
        JOIN crypto_invoices i ON i.id = w.invoice_id AND lower(i.status::text) <> 'complete'
        WHERE w.invoice_id = s.invoice_id AND w.version = s.updated_at::text
    )
