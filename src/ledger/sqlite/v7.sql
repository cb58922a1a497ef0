-- To look for a state in a list of three SQLite makes a table of it for each row that it writes, which costs more than the row.
-- Nothing that is stored changes, so the rule alone is written anew, as SQLite's documentation of ALTER TABLE describes.
PRAGMA writable_schema = ON;
UPDATE sqlite_schema SET sql = replace(sql, 'state IN (1, 2, 3)', 'state BETWEEN 1 AND 3') WHERE type = 'table' AND name = 'quote';
PRAGMA writable_schema = OFF;
-- Whoever has the file open learns of it by a table that comes and goes. The connection that migrates keeps the rule of before until it is
-- closed: what comes after this in the same transaction is checked by that one.
CREATE TABLE passing (a);
DROP TABLE passing;
