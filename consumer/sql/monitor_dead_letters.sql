-- Changes whenever a row of the table does: then the dead letters stand differently.
SELECT count(*), coalesce(sum(hashtextextended(concat_ws(' ', failure_id, state, replay_count), 0)::numeric), 0)
FROM cfo_sync_dlq
