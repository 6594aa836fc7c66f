-- Note what somebody found out by looking: these failures' invoices are booked.
INSERT INTO cfo_sync_dlq AS d (
    failure_id, state, invoice_id, error_code, dlq_partition, dlq_offset, replay_count, outcome
)
SELECT v.failure_id, 'resolved', v.invoice_id, v.error_code, v.partition, v."offset", v.replay_count, v.outcome
FROM unnest(
    %(failure_ids)s::text[], %(invoice_ids)s::integer[], %(error_codes)s::text[], %(partitions)s::integer[],
    %(offsets)s::bigint[], %(replay_counts)s::integer[], %(outcomes)s::text[]
) AS v (failure_id, invoice_id, error_code, partition, "offset", replay_count, outcome)
ORDER BY v.failure_id
ON CONFLICT (failure_id) DO UPDATE SET
    state = 'resolved',
    outcome = excluded.outcome,
    updated_at = clock_timestamp() AT TIME ZONE 'UTC'
WHERE d.state NOT IN ('resolved', 'discarded')
