-- The servers that the ledger was written to, by their history, and since when each was there: the first ever since always.
CREATE TABLE home (
  history  text PRIMARY KEY,
  found_at timestamptz NOT NULL
);

-- Which gateways have held what they knew against it, and which of those found that something is gone, and halted all.
CREATE TABLE looked (
  history  text NOT NULL,
  replica  text NOT NULL,
  has_lost boolean NOT NULL,
  PRIMARY KEY (history, replica)
);
