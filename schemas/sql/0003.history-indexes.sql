-- The last day's and the last week's bookings are looked at every few seconds, and are few among all of them. BRIN,
-- because rows lie in the order of their times: some pages of index for millions of rows, and nothing to do at an insert.
-- depends: 0002.operations

CREATE INDEX IF NOT EXISTS crypto_invoice_cfo_sync_sync_timestamp_idx
    ON crypto_invoice_cfo_sync USING brin (sync_timestamp) WITH (pages_per_range = 32, autosummarize = on);

CREATE INDEX IF NOT EXISTS crypto_invoice_cfo_sync_created_at_idx
    ON crypto_invoice_cfo_sync USING brin (created_at) WITH (pages_per_range = 32, autosummarize = on);
