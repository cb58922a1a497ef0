-- Times are milliseconds since 1970, digests and ids raw bytes, scopes and identities JCS arrays.
CREATE TABLE meta (
  one         INTEGER PRIMARY KEY CHECK (one = 1),
  version     INTEGER NOT NULL,
  environment TEXT NOT NULL
) STRICT;

-- The last number taken. A row is made by an explicit act and is never removed.
CREATE TABLE scope (
  scope TEXT PRIMARY KEY,
  last  INTEGER NOT NULL CHECK (last BETWEEN 0 AND 9007199254740991)
) STRICT, WITHOUT ROWID;

-- Keyed at random, hence small: the JWS is appended to `release`, in the order of its key.
CREATE TABLE quote (
  identity    TEXT PRIMARY KEY,
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
) STRICT, WITHOUT ROWID;
CREATE INDEX quote_waiting ON quote (expires_at) WHERE state = 1;

-- One JWS for each quote signed, at the index of the audit record of its commit.
CREATE TABLE release (
  idx INTEGER PRIMARY KEY,
  jws TEXT NOT NULL
) STRICT;

-- The theoretical arrival time of each quota's GCRA, in nanoseconds since 1970.
CREATE TABLE quota (
  key    TEXT PRIMARY KEY,
  tat_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The journal. A batch's link stands on its last row.
CREATE TABLE audit (
  idx       INTEGER PRIMARY KEY,
  at        INTEGER NOT NULL,
  event     TEXT NOT NULL,
  identity  TEXT,
  record_id BLOB NOT NULL,
  record    BLOB NOT NULL,
  leaf      BLOB NOT NULL CHECK (length(leaf) = 32),
  link      BLOB CHECK (length(link) = 32)
) STRICT;
CREATE UNIQUE INDEX audit_record ON audit (record_id);

-- Where the journal stands, how often a gateway took it over, and the greatest time
-- of a record whose time was trusted when it was made.
CREATE TABLE chain (
  one       INTEGER PRIMARY KEY CHECK (one = 1),
  epoch     INTEGER NOT NULL,
  next_idx  INTEGER NOT NULL,
  link      BLOB NOT NULL CHECK (length(link) = 32),
  newest_at INTEGER NOT NULL
) STRICT;
INSERT INTO chain VALUES (1, 0, 0, zeroblob(32), 0);
