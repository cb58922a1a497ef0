-- Times are milliseconds since 1970, digests and ids raw bytes, scopes and identities JCS arrays: the values of the
-- SQLite ledger, and of the journal the same bytes. What an operation comes to is decided in the gateway alone;
-- here it is only seen to that nothing it was decided on has changed.
CREATE TABLE meta (
  one         boolean PRIMARY KEY CHECK (one),
  version     integer NOT NULL,
  environment text NOT NULL,
  -- Rises with every change of `stop`.
  stops       bigint NOT NULL DEFAULT 0,
  -- Quotes that expired before this may have been pruned.
  pruned      bigint NOT NULL DEFAULT 0
);

-- A writer each. The epoch rises with every take-over, and fences whoever wrote before.
CREATE TABLE lane (
  lane       text PRIMARY KEY,
  owner      bytea NOT NULL,
  epoch      bigint NOT NULL,
  next_idx   bigint NOT NULL,
  link       bytea NOT NULL CHECK (length(link) = 32),
  newest_at  bigint NOT NULL,
  first_idx  bigint NOT NULL DEFAULT 0,
  first_link bytea NOT NULL CHECK (length(first_link) = 32)
);

-- The last number taken. A row is made by an explicit act and is never removed.
CREATE TABLE scope (
  scope text COLLATE "C" PRIMARY KEY,
  last  bigint NOT NULL CHECK (last BETWEEN 0 AND 9007199254740991)
) WITH (fillfactor = 50);

CREATE TABLE quote (
  identity   text COLLATE "C" PRIMARY KEY,
  scope      text COLLATE "C" NOT NULL,
  sequence   bigint NOT NULL,
  payload    bytea NOT NULL CHECK (length(payload) = 32),
  kid        text NOT NULL,
  generation integer NOT NULL CHECK (generation >= 1),
  input      bytea NOT NULL CHECK (length(input) = 32),
  expires_at bigint NOT NULL,
  state      smallint NOT NULL CHECK (state IN (1, 2, 3)), -- reserved, signed, voided
  jws        text,
  record_id  bytea CHECK (length(record_id) = 16),
  CHECK ((state = 2) = (jws IS NOT NULL) AND (state = 2) = (record_id IS NOT NULL))
);
-- Whatever writes here, no number is ever two quotes.
CREATE UNIQUE INDEX quote_number ON quote (scope, sequence);
CREATE INDEX quote_waiting ON quote (expires_at) WHERE state = 1;
-- For pruning, oldest first.
CREATE INDEX quote_done ON quote (expires_at) WHERE state <> 1;

-- The theoretical arrival time of each quota's GCRA, in nanoseconds since 1970.
CREATE TABLE quota (
  key    text COLLATE "C" PRIMARY KEY,
  tat_ns bigint NOT NULL
) WITH (fillfactor = 50);

-- What may not be signed, as `revoked/<kid>` or `halted/<reach>`. A revocation is never removed.
CREATE TABLE stop (
  what text PRIMARY KEY
);

-- What is remembered of a kid for ever. Its last expiry is rounded up to a minute.
CREATE TABLE kid (
  kid             text COLLATE "C" PRIMARY KEY,
  jwk             text NOT NULL,
  partner         text NOT NULL,
  purpose         text NOT NULL,
  published_since bigint NOT NULL,
  last_expiry     bigint
);

-- The journal: one chain for each lane. A batch's link stands on its last row.
CREATE TABLE audit (
  lane      text NOT NULL,
  idx       bigint NOT NULL,
  at        bigint NOT NULL,
  event     text NOT NULL,
  identity  text,
  record_id bytea NOT NULL CHECK (length(record_id) = 16),
  record    bytea NOT NULL,
  leaf      bytea NOT NULL CHECK (length(leaf) = 32),
  link      bytea CHECK (length(link) = 32),
  PRIMARY KEY (lane, idx)
);
-- Ids are UUIDv7, so that the greatest is the newest.
CREATE UNIQUE INDEX audit_record ON audit (record_id);

-- No pruning of what expired or was journalled since then, until it is released.
CREATE TABLE hold (
  id    text PRIMARY KEY,
  since bigint NOT NULL
);

-- Writes one batch, all of it or nothing, and nothing unless all stands as it was read. Rows are locked in one order:
-- the lane, what is stopped, scopes, quotas, quotes, kids; each kind by its key.
--
-- QS001: something moved; read again, decide again, come again. QS002: the lane is another's.
CREATE FUNCTION apply(
  my_lane text, my_epoch bigint, my_next bigint,
  next_after bigint, link_after bytea, newest_after bigint,
  heed integer, stops_seen bigint, stop_what text[], stop_stands boolean[],
  scope_key text[], scope_seen bigint[], scope_last bigint[],
  quota_key text[], quota_seen bigint[], quota_tat bigint[],
  old_identity text[], old_state smallint[], old_generation integer[],
  quote_identity text[], quote_is_new boolean[], quote_scope text[], quote_sequence bigint[], quote_payload bytea[],
  quote_kid text[], quote_generation integer[], quote_input bytea[], quote_expires_at bigint[],
  quote_state smallint[], quote_jws text[], quote_record_id bytea[],
  kid_key text[], kid_is_new boolean[], kid_jwk text[], kid_partner text[], kid_purpose text[],
  kid_published_since bigint[], kid_last_expiry bigint[],
  pruned_identity text[], pruned_before bigint, hold_id text[], hold_since bigint[],
  audit_at bigint[], audit_event text[], audit_identity text[], audit_record_id bytea[], audit_record bytea[],
  audit_leaf bytea[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  moved CONSTANT text := 'something that the batch was decided on has changed';
  mine boolean;
BEGIN
  SELECT l.epoch = my_epoch AND l.next_idx = my_next INTO mine FROM lane l WHERE l.lane = my_lane FOR UPDATE;
  IF mine IS NOT TRUE THEN
    RAISE EXCEPTION 'the lane is another writer''s' USING ERRCODE = 'QS002';
  END IF;

  -- Whoever stops something waits for every batch that was decided without it, and no batch for another.
  IF heed = 1 THEN
    PERFORM pg_advisory_xact_lock_shared(7810769);
  ELSIF heed = 2 THEN
    PERFORM pg_advisory_xact_lock(7810769);
  END IF;
  IF heed > 0 AND (SELECT m.stops FROM meta m) <> stops_seen THEN
    RAISE EXCEPTION '%', moved USING ERRCODE = 'QS001';
  END IF;
  IF cardinality(stop_what) > 0 THEN
    UPDATE meta SET stops = stops + 1;
    -- The last word on each is what stands.
    DELETE FROM stop s USING unnest(stop_what) AS g(what) WHERE s.what = g.what;
    INSERT INTO stop
      SELECT DISTINCT g.what FROM unnest(stop_what, stop_stands) WITH ORDINALITY AS g(what, stands, n)
      WHERE g.stands AND g.n = (SELECT max(h.n) FROM unnest(stop_what) WITH ORDINALITY AS h(what, n) WHERE h.what = g.what);
  END IF;

  IF cardinality(scope_key) > 0 THEN
    PERFORM 1 FROM scope s WHERE s.scope = ANY (scope_key) ORDER BY s.scope FOR UPDATE;
    IF EXISTS (SELECT 1 FROM unnest(scope_key, scope_seen) AS g(k, seen) LEFT JOIN scope s ON s.scope = g.k
               WHERE s.last IS DISTINCT FROM g.seen) THEN
      RAISE EXCEPTION '%', moved USING ERRCODE = 'QS001';
    END IF;
    UPDATE scope s SET last = g.last FROM unnest(scope_key, scope_seen, scope_last) AS g(k, seen, last)
      WHERE s.scope = g.k AND g.seen IS NOT NULL;
    INSERT INTO scope SELECT g.k, g.last FROM unnest(scope_key, scope_seen, scope_last) AS g(k, seen, last)
      WHERE g.seen IS NULL;
  END IF;

  IF cardinality(quota_key) > 0 THEN
    PERFORM 1 FROM quota q WHERE q.key = ANY (quota_key) ORDER BY q.key FOR UPDATE;
    IF EXISTS (SELECT 1 FROM unnest(quota_key, quota_seen) AS g(k, seen) LEFT JOIN quota q ON q.key = g.k
               WHERE q.tat_ns IS DISTINCT FROM g.seen) THEN
      RAISE EXCEPTION '%', moved USING ERRCODE = 'QS001';
    END IF;
    UPDATE quota q SET tat_ns = g.tat FROM unnest(quota_key, quota_seen, quota_tat) AS g(k, seen, tat)
      WHERE q.key = g.k AND g.seen IS NOT NULL;
    INSERT INTO quota SELECT g.k, g.tat FROM unnest(quota_key, quota_seen, quota_tat) AS g(k, seen, tat)
      WHERE g.seen IS NULL;
  END IF;

  IF cardinality(old_identity) > 0 THEN
    PERFORM 1 FROM quote q WHERE q.identity = ANY (old_identity) ORDER BY q.identity FOR UPDATE;
    IF EXISTS (SELECT 1 FROM unnest(old_identity, old_state, old_generation) AS g(k, state, generation)
               LEFT JOIN quote q ON q.identity = g.k
               WHERE (q.state, q.generation) IS DISTINCT FROM (g.state, g.generation)) THEN
      RAISE EXCEPTION '%', moved USING ERRCODE = 'QS001';
    END IF;
    UPDATE quote q SET kid = g.kid, generation = g.generation, input = g.input, state = g.state, jws = g.jws,
                       record_id = g.record_id
      FROM unnest(quote_identity, quote_is_new, quote_kid, quote_generation, quote_input, quote_state, quote_jws,
                  quote_record_id) AS g(k, is_new, kid, generation, input, state, jws, record_id)
      WHERE q.identity = g.k AND NOT g.is_new;
  END IF;
  IF true = ANY (quote_is_new) THEN
    INSERT INTO quote
      SELECT g.k, g.scope, g.sequence, g.payload, g.kid, g.generation, g.input, g.expires_at, g.state, g.jws, g.record_id
      FROM unnest(quote_identity, quote_is_new, quote_scope, quote_sequence, quote_payload, quote_kid, quote_generation,
                  quote_input, quote_expires_at, quote_state, quote_jws, quote_record_id)
           AS g(k, is_new, scope, sequence, payload, kid, generation, input, expires_at, state, jws, record_id)
      WHERE g.is_new;
  END IF;

  IF cardinality(kid_key) > 0 THEN
    PERFORM 1 FROM kid k WHERE k.kid = ANY (kid_key) ORDER BY k.kid FOR UPDATE;
    UPDATE kid k SET last_expiry = greatest(k.last_expiry, g.last)
      FROM unnest(kid_key, kid_is_new, kid_last_expiry) AS g(k, is_new, last) WHERE k.kid = g.k AND NOT g.is_new;
    INSERT INTO kid
      SELECT g.k, g.jwk, g.partner, g.purpose, g.since, g.last
      FROM unnest(kid_key, kid_is_new, kid_jwk, kid_partner, kid_purpose, kid_published_since, kid_last_expiry)
           AS g(k, is_new, jwk, partner, purpose, since, last)
      WHERE g.is_new;
  END IF;

  IF cardinality(pruned_identity) > 0 THEN
    DELETE FROM quote q WHERE q.identity = ANY (pruned_identity) AND q.state <> 1 AND q.expires_at < pruned_before;
    UPDATE meta SET pruned = greatest(pruned, pruned_before);
  END IF;
  IF cardinality(hold_id) > 0 THEN
    DELETE FROM hold h WHERE h.id = ANY (hold_id);
    INSERT INTO hold SELECT g.id, g.since FROM unnest(hold_id, hold_since) AS g(id, since) WHERE g.since IS NOT NULL;
  END IF;

  IF next_after > my_next THEN
    INSERT INTO audit
      SELECT my_lane, my_next + g.n - 1, g.at, g.event, g.identity, g.record_id, g.record, g.leaf,
             CASE WHEN my_next + g.n = next_after THEN link_after END
      FROM unnest(audit_at, audit_event, audit_identity, audit_record_id, audit_record, audit_leaf)
           WITH ORDINALITY AS g(at, event, identity, record_id, record, leaf, n);
    UPDATE lane l SET next_idx = next_after, link = link_after, newest_at = greatest(l.newest_at, newest_after)
      WHERE l.lane = my_lane;
  END IF;
END $$;
