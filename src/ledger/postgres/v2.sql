-- Since when every gateway that counts was seen to serve a key, since when it may sign before its propagation time is over,
-- and how far it has come on its timeline (-1: not yet journalled). What has signed was known to verifiers.
ALTER TABLE kid
  ADD COLUMN served_since bigint,
  ADD COLUMN activated_at bigint,
  ADD COLUMN state        smallint NOT NULL DEFAULT -1;
UPDATE kid SET served_since = published_since WHERE last_expiry IS NOT NULL;

-- Acts that wait for a second person, by their digest.
CREATE TABLE proposal (
  act    text PRIMARY KEY,
  caller text,
  until  bigint
);

-- The gateways that share this ledger: when each was last seen, and what its key sets show. No memory: it may be emptied.
CREATE TABLE replica (
  replica      text PRIMARY KEY,
  seen_at      timestamptz NOT NULL,
  serial       bigint NOT NULL,
  serial_since timestamptz NOT NULL,
  shown        text[] NOT NULL
);

-- The function of version 1 stays beside this one: gateways that run go on until they are restarted.
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
  kid_published_since bigint[], kid_last_expiry bigint[], kid_served_since bigint[], kid_activated_at bigint[],
  kid_state smallint[],
  pruned_identity text[], pruned_before bigint, hold_id text[], hold_since bigint[],
  act_key text[], act_caller text[], act_until bigint[],
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
    -- Each only rises or stays as it was first written, so that nobody need have seen it.
    UPDATE kid k SET last_expiry = greatest(k.last_expiry, g.last), served_since = coalesce(k.served_since, g.served),
                     activated_at = coalesce(k.activated_at, g.activated), state = greatest(k.state, g.state)
      FROM unnest(kid_key, kid_is_new, kid_last_expiry, kid_served_since, kid_activated_at, kid_state)
           AS g(k, is_new, last, served, activated, state)
      WHERE k.kid = g.k AND NOT g.is_new;
    INSERT INTO kid
      SELECT g.k, g.jwk, g.partner, g.purpose, g.since, g.last, g.served, g.activated, g.state
      FROM unnest(kid_key, kid_is_new, kid_jwk, kid_partner, kid_purpose, kid_published_since, kid_last_expiry,
                  kid_served_since, kid_activated_at, kid_state)
           AS g(k, is_new, jwk, partner, purpose, since, last, served, activated, state)
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

  IF cardinality(act_key) > 0 THEN
    DELETE FROM proposal p WHERE p.act = ANY (act_key);
    INSERT INTO proposal
      SELECT DISTINCT ON (g.act) g.act, g.caller, g.until
      FROM unnest(act_key, act_caller, act_until) WITH ORDINALITY AS g(act, caller, until, n) ORDER BY g.act, g.n DESC;
    -- No act waits for longer than a day: what is two days older has ended.
    DELETE FROM proposal p
      WHERE p.caller IS NULL OR p.until < (SELECT max(g.until) FROM unnest(act_until) AS g(until)) - 172800000;
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
