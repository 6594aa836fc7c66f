-- How failures stand: what was done about each (NULLs: nothing), and under which transaction its invoice is booked
-- (not booked: it never was, or not any more and not since the record was written). The log is read once for all
-- invoices, however many letters they have; a remap stands there too, and books nothing.
SELECT
    v.failure_id,
    d.state,
    d.replay_count,
    d.replay_id,
    d.changed_by,
    d.reason,
    d.outcome,
    d.updated_at,
    s.sync_status = 'synced' AND lower(i.status::text) IS DISTINCT FROM 'paid'
        OR l.invoice_id IS NOT NULL AS is_booked,
    coalesce(s.cfo_transaction_id::text, s.cfo_identifier) AS booked_as
FROM unnest(%(failure_ids)s::text[], %(invoice_ids)s::integer[], %(written_at)s::timestamp[])
    AS v (failure_id, invoice_id, written_at)
LEFT JOIN cfo_sync_dlq d ON d.failure_id = v.failure_id
LEFT JOIN crypto_invoice_cfo_sync s ON s.invoice_id = v.invoice_id
LEFT JOIN crypto_invoices i ON i.id = v.invoice_id
LEFT JOIN (
    SELECT invoice_id, max(sync_attempt_timestamp) AS last_at
    FROM crypto_cfo_sync_log
    WHERE invoice_id = ANY(%(invoice_ids)s::integer[]) AND sync_status = 'synced'
        AND request_payload ->> 'action' IS NULL
    GROUP BY invoice_id
) l ON l.invoice_id = v.invoice_id AND l.last_at > v.written_at
