-- Quotes stand in the order in which they came, and their random identities in an index of their own: a page that is found
-- by chance then holds five times as many of them, and is written for a reservation and not again for its commit.
CREATE TABLE quote_in_order (
  id          INTEGER PRIMARY KEY,
  identity    TEXT NOT NULL,
  scope       TEXT NOT NULL,
  sequence    INTEGER NOT NULL,
  payload     BLOB NOT NULL CHECK (length(payload) = 32),
  kid         TEXT NOT NULL,
  generation  INTEGER NOT NULL CHECK (generation >= 1),
  input       BLOB NOT NULL CHECK (length(input) = 32),
  expires_at  INTEGER NOT NULL,
  state       INTEGER NOT NULL CHECK (state IN (1, 2, 3)), -- reserved, signed, voided
  release_idx INTEGER,
  record_id   BLOB,
  CHECK ((state = 2) = (release_idx IS NOT NULL) AND (state = 2) = (record_id IS NOT NULL))
) STRICT;
INSERT INTO quote_in_order
  SELECT NULL, identity, scope, sequence, payload, kid, generation, input, expires_at, state, release_idx, record_id
  FROM quote ORDER BY scope, sequence;
DROP TABLE quote;
ALTER TABLE quote_in_order RENAME TO quote;
CREATE UNIQUE INDEX quote_identity ON quote (identity);
CREATE UNIQUE INDEX quote_number ON quote (scope, sequence);
CREATE INDEX quote_waiting ON quote (expires_at) WHERE state = 1;
CREATE INDEX quote_done ON quote (expires_at) WHERE state <> 1;
