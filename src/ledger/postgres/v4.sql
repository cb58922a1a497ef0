-- A batch as the function of version 3 writes it, which stays beside this one. Quotes are forgotten, and holds set and released,
-- only as long as the holds are those that it was decided by, as it is of records: nothing goes after the answer that it is held,
-- and no hold comes to keep less than was answered. Whoever does none of that takes no lock for it. Locks in this order:
-- checkpoints, keeping, the lanes that are cut, and then as in version 2.
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
  audit_leaf bytea[],
  checkpoint_before bigint[], checkpoint_size bigint[], checkpoint_jws text[],
  cut_lane text[], cut_from bigint[], cut_to bigint[], cut_link bytea[],
  held_id text[], held_since bigint[]
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF cardinality(checkpoint_size) > 0 THEN
    PERFORM pg_advisory_xact_lock(7810770);
    IF (SELECT coalesce(max(c.size), 0) FROM checkpoint c) <> checkpoint_before[1] THEN
      RAISE EXCEPTION 'another checkpoint was first' USING ERRCODE = 'QS001';
    END IF;
    INSERT INTO checkpoint
      SELECT g.size, g.before, g.jws FROM unnest(checkpoint_size, checkpoint_before, checkpoint_jws) AS g(size, before, jws);
  END IF;
  IF cardinality(pruned_identity) > 0 OR cardinality(cut_lane) > 0 OR cardinality(hold_id) > 0 THEN
    PERFORM pg_advisory_xact_lock(7810771);
    IF EXISTS (SELECT 1 FROM unnest(held_id, held_since) AS g(id, since) FULL JOIN hold h ON h.id = g.id
               WHERE h.since IS DISTINCT FROM g.since) THEN
      RAISE EXCEPTION 'what is held has changed' USING ERRCODE = 'QS001';
    END IF;
  END IF;
  IF cardinality(cut_lane) > 0 THEN
    PERFORM 1 FROM lane l WHERE l.lane = ANY (cut_lane) ORDER BY l.lane FOR UPDATE;
    IF EXISTS (SELECT 1 FROM unnest(cut_lane, cut_from) AS g(k, seen) LEFT JOIN lane l ON l.lane = g.k
               WHERE l.first_idx IS DISTINCT FROM g.seen) THEN
      RAISE EXCEPTION 'another has cut the lane' USING ERRCODE = 'QS001';
    END IF;
    UPDATE lane l SET first_idx = g.cut, first_link = g.link FROM unnest(cut_lane, cut_to, cut_link) AS g(k, cut, link)
      WHERE l.lane = g.k;
    -- One by one, each by its key.
    FOR n IN 1 .. cardinality(cut_lane) LOOP
      DELETE FROM audit a WHERE a.lane = cut_lane[n] AND a.idx >= cut_from[n] AND a.idx < cut_to[n];
    END LOOP;
  END IF;
  PERFORM apply(
    my_lane, my_epoch, my_next, next_after, link_after, newest_after, heed, stops_seen, stop_what, stop_stands,
    scope_key, scope_seen, scope_last, quota_key, quota_seen, quota_tat, old_identity, old_state, old_generation,
    quote_identity, quote_is_new, quote_scope, quote_sequence, quote_payload, quote_kid, quote_generation,
    quote_input, quote_expires_at, quote_state, quote_jws, quote_record_id, kid_key, kid_is_new, kid_jwk,
    kid_partner, kid_purpose, kid_published_since, kid_last_expiry, kid_served_since, kid_activated_at, kid_state,
    pruned_identity, pruned_before, hold_id, hold_since, act_key, act_caller, act_until, audit_at, audit_event,
    audit_identity, audit_record_id, audit_record, audit_leaf);
END $$;
