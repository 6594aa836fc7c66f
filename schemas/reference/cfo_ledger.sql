-- Reference DDL of the CFO's transactions table: for the demo and the tests only.
-- The real table belongs to the CFO system. Never run this against production.
-- The columns are those of the guide's insert, plus id and created_at. Names are not quoted, so they fold to lower case.

CREATE TABLE IF NOT EXISTS transactions (
    id SERIAL PRIMARY KEY,
    date TIMESTAMP NOT NULL,
    description TEXT,
    amount NUMERIC(18, 2) NOT NULL,
    classified_entity VARCHAR(255),
    business_unit VARCHAR(255),
    source_file VARCHAR(255),
    transaction_type VARCHAR(100),
    confidence NUMERIC(4, 3),
    classification_reason TEXT,
    origin VARCHAR(255),
    destination VARCHAR(255),
    identifier VARCHAR(255),
    currency VARCHAR(20),
    created_at TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC')
);

-- Not unique: rows by other hands may repeat an Identifier.
CREATE INDEX IF NOT EXISTS transactions_identifier_idx ON transactions (identifier);

-- Makes it impossible to book an invoice number twice, whoever tries: of the sync's own rows, one per Identifier.
CREATE UNIQUE INDEX IF NOT EXISTS transactions_cfo_sync_identifier_key
    ON transactions (identifier) WHERE source_file LIKE 'crypto\_invoice\_%';
