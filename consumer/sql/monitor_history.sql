-- The guide's "Sync Lag", seconds; the lag within which 95 % of the last 15 minutes' bookings were; the guide's "Sync
-- Success Rate" as a ratio. NULL when there is nothing to take it of.
SELECT
    lags.average,
    lags.recent,
    (
        SELECT count(*) FILTER (WHERE sync_status = 'synced')::float8 / nullif(count(*), 0)
        FROM crypto_invoice_cfo_sync
        WHERE created_at > now() - INTERVAL '7 days'
    )::float8
FROM (
    SELECT
        avg(lag)::float8 AS average,
        percentile_cont(0.95) WITHIN GROUP (ORDER BY lag::float8)
            FILTER (WHERE sync_timestamp > now() - INTERVAL '15 minutes') AS recent
    FROM (
        SELECT s.sync_timestamp, extract(epoch FROM (s.sync_timestamp - i.paid_at)) AS lag
        FROM crypto_invoice_cfo_sync AS s
        JOIN crypto_invoices AS i ON s.invoice_id = i.id
        WHERE s.sync_timestamp > now() - INTERVAL '24 hours' AND isfinite(i.paid_at)
    ) AS booked
) AS lags
