-- What people and the reconciliation leave behind, in the invoice database: the state of dead letters, who did what,
-- runs of the reconciliation, differences that somebody has acknowledged. Every statement may run again.
-- Timestamps without zone hold UTC.
-- depends: 0001.sync-tables-and-views

-- Keyed by the failure id that a record carries in its headers, not by partition and offset: a topic that is deleted
-- and made anew begins at offset 0 again, and must not hide its records behind the states of the old ones.
CREATE TABLE IF NOT EXISTS cfo_sync_dlq (
    failure_id TEXT PRIMARY KEY,
    state VARCHAR(20) NOT NULL CHECK (state IN ('replaying', 'replayed', 'resolved', 'discarded')),
    invoice_id INTEGER,
    error_code TEXT,
    dlq_partition INTEGER,
    dlq_offset BIGINT,
    replay_count INTEGER NOT NULL DEFAULT 0,
    replay_id TEXT,
    changed_by TEXT,
    reason TEXT,
    outcome TEXT,
    created_at TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'),
    updated_at TIMESTAMP NOT NULL DEFAULT (clock_timestamp() AT TIME ZONE 'UTC')
);

-- Asked at every booking, whose invoices nearly always have no row here.
CREATE INDEX IF NOT EXISTS cfo_sync_dlq_invoice_id_idx ON cfo_sync_dlq (invoice_id) WHERE state <> 'resolved';

COMMENT ON TABLE cfo_sync_dlq IS
    'CFO sync: what was done about a dead letter. No row means open. A record that came back after its replay carries as many replays as replay_count and is open again. Times are UTC.';

COMMENT ON COLUMN cfo_sync_dlq.replay_count IS
    'Replays asked for so far.';

CREATE TABLE IF NOT EXISTS cfo_sync_actions (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at TIMESTAMP NOT NULL DEFAULT (clock_timestamp() AT TIME ZONE 'UTC'),
    done_by TEXT NOT NULL,
    action VARCHAR(20) NOT NULL CHECK (action IN ('replay', 'discard', 'remap', 'repair', 'acknowledge')),
    failure_id TEXT,
    invoice_id INTEGER,
    reason TEXT,
    details JSONB
);

CREATE INDEX IF NOT EXISTS cfo_sync_actions_invoice_id_idx ON cfo_sync_actions (invoice_id);

CREATE INDEX IF NOT EXISTS cfo_sync_actions_failure_id_idx ON cfo_sync_actions (failure_id);

COMMENT ON TABLE cfo_sync_actions IS
    'CFO sync: what people did, and who. Only ever added to. Times are UTC.';

CREATE TABLE IF NOT EXISTS cfo_sync_reconciliations (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    started_at TIMESTAMP NOT NULL,
    finished_at TIMESTAMP NOT NULL,
    requested_by TEXT NOT NULL,
    since TIMESTAMP,
    summary JSONB NOT NULL,
    differences JSONB NOT NULL
);

COMMENT ON TABLE cfo_sync_reconciliations IS
    'CFO sync: finished runs of the reconciliation; differences holds the first 1,000 of each run. Times are UTC.';

-- An acknowledged difference is one of exact values: when one of them changes, it is a difference again.
CREATE TABLE IF NOT EXISTS cfo_sync_acknowledgements (
    identifier TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    invoice_id INTEGER,
    reason TEXT NOT NULL,
    acknowledged_by TEXT NOT NULL,
    acknowledged_at TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'),
    PRIMARY KEY (identifier, fingerprint)
);

COMMENT ON TABLE cfo_sync_acknowledgements IS
    'CFO sync: differences that no repair can mend, that somebody has looked at and accepted, and why. Times are UTC.';
