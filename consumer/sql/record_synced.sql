-- The mapping row of every invoice booked in this transaction. The first sync_timestamp stays.
INSERT INTO crypto_invoice_cfo_sync AS s (
    invoice_id, cfo_transaction_id, cfo_identifier, adopted, sync_status, sync_timestamp,
    entity_mapped, category_mapped, confidence_score, sync_error, retry_count, updated_at
)
SELECT
    v.invoice_id, v.cfo_transaction_id, v.cfo_identifier, v.adopted, 'synced', clock_timestamp() AT TIME ZONE 'UTC',
    v.entity, v.category, 1.0, NULL, v.retry_count, clock_timestamp() AT TIME ZONE 'UTC'
FROM unnest(
    %(invoice_ids)s::integer[], %(transaction_ids)s::bigint[], %(identifiers)s::text[], %(adopted)s::boolean[],
    %(entities)s::text[], %(categories)s::text[], %(retry_counts)s::integer[]
) AS v (invoice_id, cfo_transaction_id, cfo_identifier, adopted, entity, category, retry_count)
ON CONFLICT (invoice_id) DO UPDATE SET
    cfo_transaction_id = excluded.cfo_transaction_id,
    cfo_identifier = excluded.cfo_identifier,
    adopted = excluded.adopted,
    sync_status = 'synced',
    sync_timestamp = coalesce(s.sync_timestamp, excluded.sync_timestamp),
    entity_mapped = coalesce(excluded.entity_mapped, s.entity_mapped),
    category_mapped = coalesce(s.category_mapped, excluded.category_mapped),
    confidence_score = excluded.confidence_score,
    sync_error = NULL,
    retry_count = excluded.retry_count,
    updated_at = excluded.updated_at
