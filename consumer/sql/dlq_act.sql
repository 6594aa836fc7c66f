-- Claim failures for a replay, or discard them, and write down who did. Rows in `locked` are held by this transaction,
-- which has judged them; a row that came in between is somebody else's and stays as it is.
WITH changed AS (
    INSERT INTO cfo_sync_dlq AS d (
        failure_id, state, invoice_id, error_code, dlq_partition, dlq_offset, replay_count, replay_id, changed_by,
        reason, outcome
    )
    SELECT
        v.failure_id, %(state)s, v.invoice_id, v.error_code, v.partition, v."offset", v.replay_count, v.replay_id,
        %(by)s, %(reason)s, %(outcome)s
    FROM unnest(
        %(failure_ids)s::text[], %(invoice_ids)s::integer[], %(error_codes)s::text[], %(partitions)s::integer[],
        %(offsets)s::bigint[], %(replay_counts)s::integer[], %(replay_ids)s::text[]
    ) AS v (failure_id, invoice_id, error_code, partition, "offset", replay_count, replay_id)
    ORDER BY v.failure_id
    ON CONFLICT (failure_id) DO UPDATE SET
        state = excluded.state,
        invoice_id = excluded.invoice_id,
        error_code = excluded.error_code,
        dlq_partition = excluded.dlq_partition,
        dlq_offset = excluded.dlq_offset,
        replay_count = excluded.replay_count,
        replay_id = coalesce(excluded.replay_id, d.replay_id),
        changed_by = excluded.changed_by,
        reason = excluded.reason,
        outcome = excluded.outcome,
        updated_at = clock_timestamp() AT TIME ZONE 'UTC'
    WHERE d.failure_id = ANY(%(locked)s::text[])
    RETURNING d.*
)
INSERT INTO cfo_sync_actions (done_by, action, failure_id, invoice_id, reason, details)
SELECT
    changed_by, %(action)s, failure_id, invoice_id, reason,
    jsonb_build_object(
        'partition', dlq_partition, 'offset', dlq_offset, 'error_code', error_code,
        'replay_count', replay_count, 'replay_id', replay_id
    )
FROM changed
RETURNING failure_id
