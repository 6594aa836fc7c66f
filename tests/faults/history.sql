-- What really happened to the invoices, for the checker: every state that a commit left behind, and who did it.
-- Run by the owner on the invoice database before the workload starts; the rows commit with the change they tell of.

CREATE SCHEMA IF NOT EXISTS campaign;

CREATE TABLE IF NOT EXISTS campaign.history (
    seq BIGSERIAL PRIMARY KEY,
    at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    op "char" NOT NULL,
    invoice_id INTEGER NOT NULL,
    invoice_number TEXT,
    status TEXT,
    amount_usd NUMERIC,
    paid_at TIMESTAMP,
    client_id INTEGER,
    application TEXT DEFAULT current_setting('application_name'),
    -- A state that the same transaction left again was never committed. Debezium's events bear its low 32 bits.
    xid BIGINT NOT NULL DEFAULT pg_current_xact_id()::text::bigint
);

-- Invoices that have a reason of their own to meet faults: bad, late-client, late-payment, locked, foreign.
CREATE TABLE IF NOT EXISTS campaign.expected (
    invoice_id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('bad', 'late-client', 'late-payment', 'locked', 'foreign'))
);

-- SECURITY DEFINER: roles that may change invoices need no privilege here.
CREATE OR REPLACE FUNCTION campaign.record_history() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found record;
BEGIN
    IF TG_OP = 'DELETE' THEN
        found := OLD;
    ELSE
        found := NEW;
    END IF;
    INSERT INTO campaign.history (op, invoice_id, invoice_number, status, amount_usd, paid_at, client_id)
    VALUES (
        left(TG_OP, 1)::"char", found.id, found.invoice_number, found.status, found.amount_usd, found.paid_at,
        found.client_id
    );
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER campaign_presence AFTER INSERT OR DELETE ON crypto_invoices
FOR EACH ROW EXECUTE FUNCTION campaign.record_history();

CREATE OR REPLACE TRIGGER campaign_change AFTER UPDATE ON crypto_invoices
FOR EACH ROW
WHEN (
    (OLD.status, OLD.invoice_number, OLD.amount_usd, OLD.client_id, OLD.paid_at)
    IS DISTINCT FROM (NEW.status, NEW.invoice_number, NEW.amount_usd, NEW.client_id, NEW.paid_at)
)
EXECUTE FUNCTION campaign.record_history();
