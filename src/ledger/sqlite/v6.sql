-- Signed checkpoints of the journal, by how many links their tree has; each follows one that has fewer, and nothing else does.
CREATE TABLE checkpoint (
  size   INTEGER PRIMARY KEY,
  before INTEGER NOT NULL UNIQUE,
  jws    TEXT NOT NULL
) STRICT;

-- Up to where the journal was shipped: what is before this index was taken by the collector, or is in quarantine.
CREATE TABLE shipment (
  lane     TEXT PRIMARY KEY,
  next_idx INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Records that no collector would take, and what it said.
CREATE TABLE quarantine (
  lane TEXT NOT NULL,
  idx  INTEGER NOT NULL,
  why  TEXT NOT NULL,
  PRIMARY KEY (lane, idx)
) STRICT, WITHOUT ROWID;
