-- The servers that the ledger was written to, by their history, and since when each was there: the first ever since always.
CREATE TABLE home (
  history  text PRIMARY KEY,
  found_at timestamptz NOT NULL
);
