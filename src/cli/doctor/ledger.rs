//! The ledger: whether it opens, is whole and this environment's, agrees with its anchor, and has room.

use crate::{
    config::Config,
    ledger::{AnchorState, Condition, Store},
};

use super::report::{Check, Report};

const OF_ITS_ROWS: [Check; 2] = [Check::LedgerWhole, Check::LedgerAnchor];

/// What was found, where it opens.
pub(super) fn look(config: &Config, report: &mut Report) -> Option<Condition> {
    let place = match config.ledger.place() {
        Ok(place) => place,
        Err(why) => {
            report.fault(Check::LedgerOpens, "", why, "mend `[ledger]`");
            report.all_skipped(&OF_ITS_ROWS, "", "the ledger cannot be opened");
            return None;
        }
    };
    look_at_room(config, report);
    let anchor = place.anchor_state(config.environment);
    let found = match place.condition(config.environment, &anchor) {
        Ok(found) => found,
        Err(fault) => {
            let remedy = match place.store {
                Store::Sqlite(_) => {
                    "name this environment's ledger; before the first start run `quotesign ledger migrate`"
                }
                Store::Postgres(_) => {
                    "see that the server runs, lets this user in, and is the right one and the primary"
                }
            };
            report.fault(Check::LedgerOpens, "", fault.to_string(), remedy);
            report.all_skipped(&OF_ITS_ROWS, "", "the ledger cannot be opened");
            return None;
        }
    };
    report.ok(Check::LedgerOpens, "", format!("{place}: {}, of {}", found.store, config.environment));
    look_at_whole(&found, report);
    look_at_anchor(&found, &anchor, report);
    Some(found)
}

fn look_at_whole(found: &Condition, report: &mut Report) {
    let check = Check::LedgerWhole;
    let records: u64 = found.lanes.iter().map(|lane| lane.head.next_index).sum();
    match (&found.damage, &found.unseen) {
        (Some(damage), _) => {
            let remedy = "stop the gateway, keep a copy, look at the disk, and restore the newest backup: `quotesign ledger restore`";
            report.fault(check, "", damage.clone(), remedy);
        }
        (None, Some(why)) => report.skipped(check, "", why.clone()),
        (None, None) => {
            let evidence =
                format!("its pages are whole, and its journal of {records} records ends where its chain says");
            report.ok(check, "", evidence);
        }
    }
}

fn look_at_anchor(found: &Condition, anchor: &AnchorState, report: &mut Report) {
    let check = Check::LedgerAnchor;
    match anchor {
        AnchorState::None => report.skipped(check, "", "the config names no anchor"),
        AnchorState::Missing if found.is_empty() => report.ok(check, "", "there is none yet, and the ledger is empty"),
        AnchorState::Missing => {
            let remedy = "bring it back, or, if this ledger is the newest, end the gateway and run `quotesign ledger anchor adopt`";
            report.fault(check, "", "the anchor is missing, and the ledger is not empty", remedy);
        }
        AnchorState::Unfit(why) => {
            report.fault(check, "", why.clone(), "name this environment's own, on a volume of its own");
        }
        AnchorState::Heads(_) if !found.behind.is_empty() => {
            let evidence = format!("the ledger has gone back in time: {}", found.behind.join("; "));
            let remedy = "restore the newest store, or let somebody decide with `quotesign ledger accept-rollback`";
            report.fault(check, "", evidence, remedy);
        }
        AnchorState::Heads(heads) => {
            report.ok(check, "", format!("the ledger holds what the anchor says of {} lanes", heads.len()));
        }
    }
}

fn look_at_room(config: &Config, report: &mut Report) {
    let (check, room) = (Check::LedgerRoom, config.ledger.room());
    if !room.is_watched() {
        return report.skipped(check, "", "a database's volumes are for its operators to watch");
    }
    room.look();
    match (room.suffices(), room.warning()) {
        (Err(why), _) => report.fault(check, "", why, "make room: nothing new is signed"),
        (Ok(()), Some(warning)) => report.warning(check, "", warning, "make room before nothing new is signed"),
        (Ok(()), None) => {
            let free: Vec<_> =
                room.free().iter().map(|(name, bytes)| format!("{} MiB at the {name}", bytes >> 20)).collect();
            report.ok(check, "", format!("free: {}", free.join(", ")));
        }
    }
}
