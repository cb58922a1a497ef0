-- Since when every gateway that counts was seen to serve a key, since when it may sign before its propagation time is over,
-- and how far it has come on its timeline (-1: not yet journalled). What has signed was known to verifiers.
ALTER TABLE kid ADD COLUMN served_since INTEGER;
ALTER TABLE kid ADD COLUMN activated_at INTEGER;
ALTER TABLE kid ADD COLUMN state INTEGER NOT NULL DEFAULT -1;
UPDATE kid SET served_since = published_since WHERE last_expiry IS NOT NULL;

-- Acts that wait for a second person, by their digest.
CREATE TABLE proposal (
  act    TEXT PRIMARY KEY,
  caller TEXT NOT NULL,
  until  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
