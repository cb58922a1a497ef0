-- What may not be signed, as `revoked/<kid>` or `halted/<reach>`. A revocation is never removed.
CREATE TABLE stop (
  what TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;

-- What is remembered of a kid for ever. Its last expiry is rounded up to a minute.
CREATE TABLE kid (
  kid             TEXT PRIMARY KEY,
  jwk             TEXT NOT NULL,
  partner         TEXT NOT NULL,
  purpose         TEXT NOT NULL,
  published_since INTEGER NOT NULL,
  last_expiry     INTEGER
) STRICT, WITHOUT ROWID;

-- Quotes that expired before this may have been pruned.
ALTER TABLE meta ADD COLUMN pruned INTEGER NOT NULL DEFAULT 0;
-- Where the journal begins: what is before was pruned, and the rest hangs on this link.
ALTER TABLE chain ADD COLUMN first_idx INTEGER NOT NULL DEFAULT 0;
ALTER TABLE chain ADD COLUMN first_link BLOB NOT NULL DEFAULT x'0000000000000000000000000000000000000000000000000000000000000000' CHECK (length(first_link) = 32);
-- No pruning of what expired or was journalled since then, until it is released.
CREATE TABLE hold (
  id    TEXT PRIMARY KEY,
  since INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
-- For pruning, oldest first.
CREATE INDEX quote_done ON quote (expires_at) WHERE state <> 1;
