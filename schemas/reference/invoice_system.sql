-- Reference DDL of the crypto invoice system: for the demo and the tests only.
-- The real tables belong to the invoice system. Never run this against production.
--
-- No foreign keys: the services of the invoice system write these tables in any order, so a client or a payment may
-- come after the invoice that names it, and the sync has to cope with that. Times are UTC.

CREATE TABLE IF NOT EXISTS crypto_clients (
    id SERIAL PRIMARY KEY,
    name VARCHAR(255) NOT NULL UNIQUE,
    contact_email VARCHAR(255),
    wallet_addresses JSONB NOT NULL DEFAULT '{}'
);

CREATE TABLE IF NOT EXISTS crypto_invoices (
    id SERIAL PRIMARY KEY,
    invoice_number VARCHAR(50) NOT NULL UNIQUE,
    client_id INTEGER NOT NULL,
    status VARCHAR(20) NOT NULL DEFAULT 'draft' CHECK (status IN (
        'draft', 'sent', 'partially_paid', 'paid', 'complete', 'expired', 'partial', 'overpaid', 'overdue', 'cancelled'
    )),
    amount_usd NUMERIC(18, 2),
    transaction_fee_percent NUMERIC(6, 3),
    tax_percent NUMERIC(6, 3),
    crypto_currency VARCHAR(20),
    crypto_amount NUMERIC(36, 18),
    crypto_network VARCHAR(50),
    exchange_rate NUMERIC(36, 18),
    rate_locked_until TIMESTAMP,
    deposit_address VARCHAR(255),
    memo_tag VARCHAR(100),
    billing_period VARCHAR(100),
    description TEXT,
    line_items JSONB NOT NULL DEFAULT '[]',
    due_date DATE,
    issue_date DATE,
    notes TEXT,
    created_at TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'),
    updated_at TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'),
    paid_at TIMESTAMP
);

CREATE TABLE IF NOT EXISTS crypto_payment_transactions (
    id SERIAL PRIMARY KEY,
    invoice_id INTEGER NOT NULL,
    transaction_hash VARCHAR(255) NOT NULL UNIQUE,
    amount_received NUMERIC(36, 18),
    currency VARCHAR(20),
    network VARCHAR(50),
    status VARCHAR(20) NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'detected', 'confirmed', 'failed')),
    confirmations INTEGER NOT NULL DEFAULT 0,
    required_confirmations INTEGER,
    detected_at TIMESTAMP,
    confirmed_at TIMESTAMP,
    block_height BIGINT,
    raw_api_response JSONB
);

CREATE INDEX IF NOT EXISTS crypto_payment_transactions_invoice_id_idx ON crypto_payment_transactions (invoice_id);

-- What the sweep and the pending view look for; a real invoice system should have it too (docs/connector.md).
CREATE INDEX IF NOT EXISTS crypto_invoices_paid_idx ON crypto_invoices (id) WHERE lower(status) = 'paid';

-- The demo refuses every database whose invoice table does not bear this mark.
COMMENT ON TABLE crypto_invoices IS 'cfo-sync reference schema';
