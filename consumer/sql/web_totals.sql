-- What was paid, and what was booked, today and over 30 days: days of UTC, today the last of them. The comparison fits
-- columns with and without a zone, because every session speaks UTC.
WITH since AS MATERIALIZED (
    SELECT
        date_trunc('day', now() AT TIME ZONE 'UTC') AS today,
        date_trunc('day', now() AT TIME ZONE 'UTC') - INTERVAL '29 days' AS month
)
SELECT p.*, b.*
FROM (
    SELECT
        count(*) FILTER (WHERE i.paid_at >= since.today) AS paid_today,
        coalesce(sum(i.amount_usd) FILTER (WHERE i.paid_at >= since.today), 0) AS paid_today_usd,
        count(*) AS paid_month,
        coalesce(sum(i.amount_usd), 0) AS paid_month_usd
    FROM since, crypto_invoices AS i
    WHERE i.paid_at >= since.month AND isfinite(i.paid_at) AND lower(i.status::text) IN ('paid', 'complete')
) AS p, (
    SELECT
        count(*) FILTER (WHERE s.sync_timestamp >= since.today) AS booked_today,
        coalesce(sum(i.amount_usd) FILTER (WHERE s.sync_timestamp >= since.today), 0) AS booked_today_usd,
        count(*) AS booked_month,
        coalesce(sum(i.amount_usd), 0) AS booked_month_usd
    FROM since, crypto_invoice_cfo_sync AS s
    LEFT JOIN crypto_invoices AS i ON i.id = s.invoice_id
    WHERE s.sync_timestamp >= since.month AND s.sync_status = 'synced'
) AS b
