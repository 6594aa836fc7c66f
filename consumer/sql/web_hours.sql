-- Bookings of the last 48 hours, by the hour: how many, USD, and the seconds from payment to booking within which half,
-- 95 % and 99 % of them were. An hour without bookings has no row.
SELECT
    date_trunc('hour', s.sync_timestamp) AS hour,
    count(*) AS booked,
    coalesce(sum(i.amount_usd), 0) AS usd,
    percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (
        ORDER BY greatest(0, extract(epoch FROM (s.sync_timestamp - i.paid_at)))::float8
    ) FILTER (WHERE isfinite(i.paid_at)) AS lags
FROM crypto_invoice_cfo_sync AS s
LEFT JOIN crypto_invoices AS i ON i.id = s.invoice_id
WHERE s.sync_timestamp >= date_trunc('hour', now() AT TIME ZONE 'UTC') - INTERVAL '47 hours'
    AND s.sync_status = 'synced'
GROUP BY 1
ORDER BY 1
