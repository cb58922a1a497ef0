//! A batch's changes as the arguments of the one statement that writes them.

use std::collections::BTreeMap;

use tokio_postgres::types::ToSql;

use crate::{
    clock::UtcTime,
    domain::Identity,
    ledger::{
        EngineError, Kept, Op,
        batch::{Changes, version},
        chain::{Lane, Position},
        encoding::{key_state, state_of, stored},
        step::{Cut, Quote, Stage},
    },
};

/// How many arguments `apply` takes.
const ARGUMENTS: usize = 63;

/// The statement.
pub(super) fn sql() -> String {
    let places: Vec<String> = (1..=ARGUMENTS).map(|place| format!("${place}")).collect();
    format!("SELECT apply({})", places.join(", "))
}

/// Whether a batch depends on what is stopped, or changes it. What is asked for and agreed to counts as that: who asks may be
/// suspended, and two who agree at once are one after the other.
pub(super) fn heed(batch: &[Op]) -> i32 {
    match () {
        () if batch.iter().any(|op| matches!(op, Op::Stop(_) | Op::Propose(_) | Op::Hold(_))) => 2,
        () if Changes::heed_stops(batch) => 1,
        () => 0,
    }
}

type Arguments<'a> = Vec<Box<dyn ToSql + Sync + Send + 'a>>;

/// The arguments, in their order.
pub(super) fn arguments<'a>(
    name: &'a str,
    lane: Lane,
    heed: i32,
    stops_seen: i64,
    changes: &'a Changes<'a>,
) -> Result<Arguments<'a>, EngineError> {
    let Position { next_index, link } = changes.position;
    let newest = changes.newest().map_or(0, UtcTime::millis);
    // A proposal that comes or goes stops nothing and ends no stop, and is counted with them.
    let proposed = changes.proposals.iter().map(|(act, _)| (format!("proposed/{act}"), false));
    let stopped = changes.stops.iter().map(|(stop, stands)| (stop.to_string(), *stands));
    let (stops, stand): (Vec<_>, Vec<_>) = stopped.chain(proposed).unzip();
    let mut arguments: Arguments<'a> = vec![
        Box::new(name),
        Box::new(lane.epoch),
        Box::new(stored(lane.position.next_index)?),
        Box::new(stored(next_index)?),
        Box::new(link.to_vec()),
        Box::new(newest),
        Box::new(heed),
        Box::new(stops_seen),
        Box::new(stops),
        Box::new(stand),
    ];
    arguments.extend(scopes(changes)?);
    arguments.extend(quotas(changes));
    arguments.extend(quotes(changes)?);
    arguments.extend(kids(changes));
    arguments.extend(keeping(changes));
    arguments.extend(records(changes));
    arguments.extend(checkpoints(changes)?);
    arguments.extend(cuts(changes)?);
    arguments.extend(held(changes));
    Ok(arguments)
}

fn held<'a>(changes: &'a Changes<'a>) -> Arguments<'a> {
    let held: Vec<_> = changes.held.iter().flatten().collect();
    vec![Box::new(column(&held, |(id, _)| id.as_str())), Box::new(column(&held, |(_, since)| since.millis()))]
}

fn checkpoints<'a>(changes: &'a Changes<'a>) -> Result<Arguments<'a>, EngineError> {
    let sizes = |of: fn(&(u64, u64, String)) -> u64| {
        changes.checkpoints.iter().map(of).map(stored).collect::<Result<Vec<_>, _>>()
    };
    Ok(vec![
        Box::new(sizes(|(before, ..)| *before)?),
        Box::new(sizes(|(_, size, _)| *size)?),
        Box::new(column(&changes.checkpoints, |(.., jws)| jws.as_str())),
    ])
}

fn cuts<'a>(changes: &'a Changes<'a>) -> Result<Arguments<'a>, EngineError> {
    let places = |of: fn(&Cut) -> u64| changes.cuts.iter().map(of).map(stored).collect::<Result<Vec<_>, _>>();
    Ok(vec![
        Box::new(column(&changes.cuts, |cut| cut.lane.as_str())),
        Box::new(places(|cut| cut.from.next_index)?),
        Box::new(places(|cut| cut.to.next_index)?),
        Box::new(column(&changes.cuts, |cut| cut.to.link.as_slice())),
    ])
}

fn keeping<'a>(changes: &'a Changes<'a>) -> Arguments<'a> {
    // The last word on each is what stands.
    let holds: BTreeMap<&str, Option<UtcTime>> =
        changes.holds.iter().map(|(id, since)| (id.as_str(), *since)).collect();
    vec![
        Box::new(column(&changes.pruned, Identity::as_str)),
        Box::new(changes.after.pruned.map_or(0, UtcTime::millis)),
        Box::new(holds.keys().copied().collect::<Vec<_>>()),
        Box::new(holds.values().map(|since| since.map(UtcTime::millis)).collect::<Vec<_>>()),
        Box::new(column(&changes.proposals, |(act, _)| act.as_str())),
        Box::new(column(&changes.proposals, |(_, waits)| waits.as_ref().map(|waits| waits.caller.to_string()))),
        Box::new(column(&changes.proposals, |(_, waits)| waits.as_ref().map(|waits| waits.until.millis()))),
    ]
}

fn scopes<'a>(changes: &'a Changes<'a>) -> Result<Arguments<'a>, EngineError> {
    let (mut keys, mut seen, mut lasts) = (Vec::new(), Vec::new(), Vec::new());
    for (scope, before) in &changes.scopes {
        let Some(last) = changes.after.lasts.get(scope) else { continue };
        keys.push(scope.as_str());
        seen.push(before.map(|before| stored(before.get())).transpose()?);
        lasts.push(stored(last.get())?);
    }
    Ok(vec![Box::new(keys), Box::new(seen), Box::new(lasts)])
}

fn quotas<'a>(changes: &'a Changes<'a>) -> Arguments<'a> {
    let (mut keys, mut seen, mut arrivals) = (Vec::new(), Vec::new(), Vec::new());
    for (quota, before) in &changes.quotas {
        let Some(arrival) = changes.after.quotas.get(quota) else { continue };
        keys.push(quota.as_str());
        seen.push(*before);
        arrivals.push(*arrival);
    }
    vec![Box::new(keys), Box::new(seen), Box::new(arrivals)]
}

fn quotes<'a>(changes: &'a Changes<'a>) -> Result<Arguments<'a>, EngineError> {
    let (mut old, mut states, mut generations) = (Vec::new(), Vec::new(), Vec::new());
    let mut written: Vec<(&Identity, bool, &Quote)> = Vec::new();
    for (identity, (before, _)) in &changes.quotes {
        let Some(quote) = changes.after.quotes.get(identity) else { continue };
        if let Some((state, generation)) = before {
            old.push(identity.as_str());
            states.push(*state);
            generations.push(*generation);
        }
        written.push((identity, before.is_none(), quote));
    }
    let jws = |quote: &'a Quote| if let Stage::Signed { jws, .. } = &quote.stage { Some(jws.as_str()) } else { None };
    let record = |quote: &'a Quote| {
        if let Stage::Signed { record, .. } = &quote.stage { Some(record.as_bytes().as_slice()) } else { None }
    };
    let numbers = written.iter().map(|(_, _, quote)| stored(quote.sequence.get()));
    Ok(vec![
        Box::new(old),
        Box::new(states),
        Box::new(generations),
        Box::new(column(&written, |(identity, ..)| identity.as_str())),
        Box::new(column(&written, |(_, is_new, _)| *is_new)),
        Box::new(column(&written, |(.., quote)| quote.scope.as_str())),
        Box::new(numbers.collect::<Result<Vec<_>, _>>()?),
        Box::new(column(&written, |(.., quote)| quote.payload.0.as_slice())),
        Box::new(column(&written, |(.., quote)| quote.kid.as_str())),
        Box::new(column(&written, |(.., quote)| version(quote).1)),
        Box::new(column(&written, |(.., quote)| quote.input.0.as_slice())),
        Box::new(column(&written, |(.., quote)| quote.expires_at.millis())),
        Box::new(column(&written, |(.., quote)| state_of(&quote.stage))),
        Box::new(column(&written, |(.., quote)| jws(quote))),
        Box::new(column(&written, |(.., quote)| record(quote))),
    ])
}

fn kids<'a>(changes: &'a Changes<'a>) -> Arguments<'a> {
    let kids = changes.kids.iter();
    let written: Vec<_> =
        kids.filter_map(|(kid, known)| Some((kid.as_str(), !known, changes.after.kids.get(kid)?))).collect();
    let kept = |of: fn(&'a Kept) -> &'a str| column(&written, |(.., kept)| of(kept));
    vec![
        Box::new(column(&written, |(kid, ..)| *kid)),
        Box::new(column(&written, |(_, is_new, _)| *is_new)),
        Box::new(kept(|kept| &kept.jwk)),
        Box::new(kept(|kept| kept.partner.as_str())),
        Box::new(kept(|kept| &kept.purpose)),
        Box::new(column(&written, |(.., kept)| kept.published_since.millis())),
        Box::new(column(&written, |(.., kept)| kept.last_expiry.map(UtcTime::millis))),
        Box::new(column(&written, |(.., kept)| kept.served_since.map(UtcTime::millis))),
        Box::new(column(&written, |(.., kept)| kept.activated_at.map(UtcTime::millis))),
        Box::new(column(&written, |(.., kept)| key_state(kept.state))),
    ]
}

fn records<'a>(changes: &'a Changes<'a>) -> Arguments<'a> {
    let entries = &changes.entries;
    vec![
        Box::new(column(entries, |entry| entry.record.at.millis())),
        Box::new(column(entries, |entry| entry.record.event.name())),
        Box::new(column(entries, |entry| entry.identity.map(Identity::as_str))),
        Box::new(column(entries, |entry| entry.record.id.as_bytes().as_slice())),
        Box::new(column(entries, |entry| entry.bytes.as_slice())),
        Box::new(column(entries, |entry| entry.leaf.as_slice())),
    ]
}

fn column<'a, R, T>(rows: &'a [R], of: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(of).collect()
}
