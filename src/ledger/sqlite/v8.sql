-- A quote is found by a digest of its identity, of which a page holds three times as many as of the texts: with millions of
-- quotes each reservation changes a page that is found by chance, and there are only so many in memory.
CREATE TABLE quote_by_key (
  id          INTEGER PRIMARY KEY,
  key         BLOB NOT NULL CHECK (length(key) = 16), -- the first half of the SHA-256 of the identity
  identity    TEXT NOT NULL,
  scope       TEXT NOT NULL,
  sequence    INTEGER NOT NULL,
  payload     BLOB NOT NULL CHECK (length(payload) = 32),
  kid         TEXT NOT NULL,
  generation  INTEGER NOT NULL CHECK (generation >= 1),
  input       BLOB NOT NULL CHECK (length(input) = 32),
  expires_at  INTEGER NOT NULL,
  state       INTEGER NOT NULL CHECK (state BETWEEN 1 AND 3), -- reserved, signed, voided
  release_idx INTEGER,
  record_id   BLOB,
  CHECK ((state = 2) = (release_idx IS NOT NULL) AND (state = 2) = (record_id IS NOT NULL))
) STRICT;
-- `key_of` is the gateway's own.
INSERT INTO quote_by_key
  SELECT id, key_of(identity), identity, scope, sequence, payload, kid, generation, input, expires_at, state, release_idx, record_id
  FROM quote ORDER BY id;
DROP TABLE quote;
ALTER TABLE quote_by_key RENAME TO quote;
CREATE UNIQUE INDEX quote_key ON quote (key);
CREATE UNIQUE INDEX quote_number ON quote (scope, sequence);
CREATE INDEX quote_waiting ON quote (expires_at) WHERE state = 1;
CREATE INDEX quote_done ON quote (expires_at) WHERE state <> 1;
