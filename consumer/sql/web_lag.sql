-- Seconds from payment to booking, of the bookings of 24 hours: the mean (the guide's "Sync Lag"), and within which
-- half, 95 % and 99 % of them were.
SELECT
    avg(lag),
    percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY lag)
FROM (
    SELECT greatest(0, extract(epoch FROM (s.sync_timestamp - i.paid_at)))::float8 AS lag
    FROM crypto_invoice_cfo_sync AS s
    JOIN crypto_invoices AS i ON i.id = s.invoice_id
    WHERE s.sync_timestamp > now() AT TIME ZONE 'UTC' - INTERVAL '24 hours' AND isfinite(i.paid_at)
) AS booked
