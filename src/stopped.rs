//! What this replica knows may not be signed, as it was a moment ago, for those that must not wait for the ledger: the
//! key sets and the choice of a key. What decides is the ledger, in the transaction of each reservation and commit.
//!
//! Revoked kids are also kept in a small file, the *mirror*, beside the anchor and so on another volume than the
//! ledger: a ledger that has gone back in time, and its revocations with it, learns them again from there. What was stopped here while
//! the ledger was away waits in another file beside it, with who did it and why.

use std::{
    collections::BTreeSet,
    fs, io, iter,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{
    audit::Context,
    clock::UtcTime,
    disk,
    domain::{Caller, Identity, Kid},
    ledger::{Stop, StopAct, stops::Stops},
};

/// The first line of a mirror; it says what the file is to whoever finds it.
const HEAD: &str = "# Kids that were revoked, for good. Written by quotesign; do not edit.";
/// The same of one that was written before anybody has told it which those are: others may be revoked as well.
const HEAD_PART: &str = "# Some of the kids that were revoked, for good. Written by quotesign; do not edit.";

/// What a mirror holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Mirrored {
    kids: BTreeSet<Kid>,
    /// Whether those are all.
    is_whole: bool,
}

/// What is stopped, as far as this replica knows.
#[derive(Debug, Default)]
pub struct Stopped {
    known: ArcSwap<Stops>,
    mirror: Option<PathBuf>,
    /// What the mirror holds, where there is one yet; held while it is written.
    mirrored: Mutex<Option<Mirrored>>,
    /// Whether ledger or mirror has told what was revoked.
    told: AtomicBool,
    /// What was stopped here and the ledger has not taken yet.
    pending: Mutex<Vec<Pending>>,
    /// Where that waits; held while it is written.
    waits_in: Mutex<Option<PathBuf>>,
}

/// What was stopped here and the ledger has not taken yet.
#[derive(Debug)]
struct Pending {
    act: StopAct,
    /// Whether somebody asks the ledger just now.
    is_asked: bool,
}

impl Pending {
    /// Whether it is what `act` asks for, and by whom.
    fn is_of(&self, act: &StopAct) -> bool {
        self.act.stop == act.stop && self.act.context.caller == act.context.caller
    }
}

/// The same as a line of its file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    stop: String,
    reason: String,
    context: Context,
    at: UtcTime,
}

/// The mirror cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the file of what is stopped `{}`: {why}", path.display())]
pub struct MirrorError {
    path: PathBuf,
    why: String,
}

impl Stopped {
    /// Knows what the mirror beside `anchor` tells; nothing where there is none yet, until the ledger tells it.
    ///
    /// # Errors
    /// Where there is a mirror that cannot be read: publishing a key that it revokes would be worse than not starting.
    pub fn open(anchor: Option<&Path>) -> Result<Self, MirrorError> {
        let mirror = anchor.map(|anchor| anchor.with_added_extension("revoked"));
        let waits_in = anchor.map(|anchor| anchor.with_added_extension("pending"));
        let mirrored = mirror.as_deref().map(read).transpose()?.flatten();
        let pending = waits_in.as_deref().map(read_pending).transpose()?.unwrap_or_default();
        let kids = mirrored.iter().flat_map(|mirrored| &mirrored.kids).cloned().map(Stop::Revoked);
        let known: Stops = kids.chain(pending.iter().map(|waits| waits.act.stop.clone())).collect();
        let told = AtomicBool::new(mirrored.as_ref().is_some_and(|mirrored| mirrored.is_whole));
        let (known, mirrored) = (ArcSwap::from_pointee(known), Mutex::new(mirrored));
        Ok(Self { known, mirror, mirrored, told, pending: Mutex::new(pending), waits_in: Mutex::new(waits_in) })
    }

    /// Whether ledger or mirror has told which kids were revoked. Until then no key may be published: it could be one.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.told.load(Ordering::Acquire)
    }

    /// What is known.
    pub fn known(&self) -> Guard<Arc<Stops>> {
        self.known.load()
    }

    /// Kids that the mirror holds and neither `ledger` nor anybody on the way to it: the ledger has lost them.
    pub fn lost_by(&self, ledger: &Stops) -> Vec<Kid> {
        let mirrored = self.mirrored.lock();
        let pending: Stops = self.pending.lock().iter().map(|waits| waits.act.stop.clone()).collect();
        let kids = mirrored.iter().flat_map(|mirrored| &mirrored.kids);
        kids.filter(|kid| !ledger.is_revoked(kid) && !pending.is_revoked(kid)).cloned().collect()
    }

    /// Knows what has just been made durable by this gateway itself, before it is read again.
    pub fn stands(&self, stop: &Stop) {
        let known: Stops = self.known.load().iter().cloned().chain([stop.clone()]).collect();
        self.known.store(Arc::new(known));
    }

    /// Knows what `act` stops from now on, before the ledger does. Whoever calls this asks the ledger for it next, and says what became of
    /// it: [`Stopped::is_durable`], or that it [`Stopped::waits`].
    ///
    /// # Errors
    /// Where that cannot be written; it is known all the same.
    pub fn stop_here(&self, act: StopAct) -> Result<(), MirrorError> {
        self.stands(&act.stop);
        let mut pending = self.pending.lock();
        // Each who asks has a record; who asks again meanwhile has one.
        if !pending.iter().any(|waits| waits.is_of(&act)) {
            pending.push(Pending { act, is_asked: true });
        }
        drop(pending);
        let kept = self.keep();
        let known = Stops::clone(&self.known.load());
        // Nobody has told more than before.
        self.take_over(known, false).and(kept)
    }

    /// What was stopped here, and not yet in the ledger, that bears on a quote.
    pub fn here_on(&self, identity: &Identity, kid: &Kid, caller: Option<&Caller>) -> Option<Stop> {
        let pending = self.pending.lock();
        if pending.is_empty() {
            return None;
        }
        let here: Stops = pending.iter().map(|waits| waits.act.stop.clone()).collect();
        here.on(identity, kid, caller).cloned()
    }

    /// What the ledger is to be asked for: by whoever takes it, who says what became of it.
    #[must_use]
    pub fn take_waiting(&self) -> Vec<StopAct> {
        let mut pending = self.pending.lock();
        let waiting = pending.iter_mut().filter_map(|waits| {
            let was_asked = std::mem::replace(&mut waits.is_asked, true);
            (!was_asked).then(|| waits.act.clone())
        });
        waiting.collect()
    }

    /// Whether the ledger has not taken it yet.
    pub fn is_pending(&self, stop: &Stop) -> bool {
        self.pending.lock().iter().any(|waits| waits.act.stop == *stop)
    }

    /// The ledger did not take it: it is to be asked again.
    pub fn waits(&self, act: &StopAct) {
        self.pending.lock().iter_mut().filter(|waits| waits.is_of(act)).for_each(|waits| waits.is_asked = false);
    }

    /// The ledger has taken it. What somebody else asked for besides is for the ledger to take as well, so that each has a record.
    pub fn is_durable(&self, act: &StopAct) {
        self.pending.lock().retain(|waits| !waits.is_of(act));
        if let Err(fault) = self.keep() {
            tracing::error!(%fault, "what the ledger has taken waits there all the same, and is looked at again after a restart");
        }
    }

    /// Writes down what waits. Nobody who releases a quote waits for that.
    fn keep(&self) -> Result<(), MirrorError> {
        let waits_in = self.waits_in.lock();
        let Some(path) = &*waits_in else { return Ok(()) };
        let fault = |why: String| MirrorError { path: path.clone(), why };
        let pending: Vec<StopAct> = self.pending.lock().iter().map(|waits| waits.act.clone()).collect();
        if pending.is_empty() {
            let removed = fs::remove_file(path).and_then(|()| disk::sync_folder_of(path));
            return match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fault(error.to_string())),
                _ => Ok(()),
            };
        }
        let mut text = String::new();
        for StopAct { stop, reason, context, now, .. } in pending {
            let line = Line { stop: stop.to_string(), reason, context, at: now };
            text += &serde_json::to_string(&line).map_err(|error| fault(error.to_string()))?;
            text.push('\n');
        }
        disk::put_private(path, text.as_bytes()).map_err(|error| fault(error.to_string()))
    }

    /// Takes over what the ledger says, with the revocations that are known already.
    ///
    /// # Errors
    /// Where the mirror cannot be written; what is stopped is known all the same.
    pub fn learn(&self, ledger: Stops) -> Result<(), MirrorError> {
        self.take_over(ledger, true)
    }

    fn take_over(&self, ledger: Stops, told: bool) -> Result<(), MirrorError> {
        let mut mirrored = self.mirrored.lock();
        // What the ledger has not taken yet counts, also where the mirror could not be written.
        let pending: Vec<Stop> = self.pending.lock().iter().map(|waits| waits.act.stop.clone()).collect();
        let revoked = ledger.iter().chain(&pending);
        let revoked = revoked.filter_map(|stop| if let Stop::Revoked(kid) = stop { Some(kid) } else { None });
        let kids = mirrored.iter().flat_map(|mirrored| &mirrored.kids).chain(revoked).cloned().collect();
        // Whoever has been told stays so.
        let is_whole = self.told.fetch_or(told, Ordering::AcqRel) || told;
        let all = Mirrored { kids, is_whole };
        let revoked = all.kids.iter().cloned().map(Stop::Revoked);
        let known: Stops = ledger.iter().cloned().chain(revoked).chain(pending).collect();
        self.known.store(Arc::new(known));
        // One that says that nothing was revoked is written too: without any nobody could tell that from one that was lost.
        if let Some(path) = self.mirror.as_deref().filter(|_| mirrored.as_ref() != Some(&all)) {
            disk::put(path, text_of(&all).as_bytes())
                .map_err(|why| MirrorError { path: path.to_owned(), why: why.to_string() })?;
        }
        *mirrored = Some(all);
        Ok(())
    }
}

fn read(path: &Path) -> Result<Option<Mirrored>, MirrorError> {
    let fault = |why: String| MirrorError { path: path.to_owned(), why };
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|error| fault(error.to_string()))?,
    };
    let mut lines = text.lines();
    let is_whole = match lines.next() {
        Some(HEAD) => true,
        Some(HEAD_PART) => false,
        _ => return Err(fault("it is something else; move it away".to_owned())),
    };
    let kid = |line: &str| line.parse().map_err(|_| fault(format!("`{line}` is no kid; restore the file")));
    let kids = lines.map(kid).collect::<Result<_, _>>()?;
    Ok(Some(Mirrored { kids, is_whole }))
}

fn read_pending(path: &Path) -> Result<Vec<Pending>, MirrorError> {
    let fault = |why: String| MirrorError { path: path.to_owned(), why };
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(|error| fault(error.to_string()))?,
    };
    let pending = |line: &str| {
        let unread = |why: String| {
            fault(format!("a line of it cannot be read: {why}; move it away and stop again what it names"))
        };
        let line: Line = serde_json::from_str(line).map_err(|error| unread(error.to_string()))?;
        let stop = line.stop.parse().map_err(|_| unread(format!("`{}` is nothing that is stopped", line.stop)))?;
        let act = StopAct { stop, stands: true, reason: line.reason, context: line.context, now: line.at };
        Ok(Pending { act, is_asked: false })
    };
    text.lines().map(pending).collect()
}

fn text_of(mirrored: &Mirrored) -> String {
    let head = if mirrored.is_whole { HEAD } else { HEAD_PART };
    iter::once(head).chain(mirrored.kids.iter().map(Kid::as_str)).fold(String::new(), |text, line| text + line + "\n")
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::{audit::Context, clock::UtcTime, domain::Environment};

    fn stops(texts: &[&str]) -> Stops {
        texts.iter().map(|text| text.parse::<Stop>().unwrap()).collect()
    }

    #[test]
    fn a_revocation_is_known_after_a_restart_and_whatever_the_ledger_forgets() {
        let home = TempDir::new().unwrap();
        let anchor = home.path().join("anchor");
        let stopped = Stopped::open(Some(&anchor)).unwrap();
        assert!(!home.path().join("anchor.revoked").exists());
        stopped.learn(stops(&["revoked/quote-a", "halted/all"])).unwrap();
        assert_eq!(**stopped.known(), stops(&["revoked/quote-a", "halted/all"]));
        let stopped = Stopped::open(Some(&anchor)).unwrap();
        assert_eq!(**stopped.known(), stops(&["revoked/quote-a"]), "a halt may have ended since");
        assert_eq!(stopped.lost_by(&stops(&["halted/all"])), ["quote-a".parse::<Kid>().unwrap()]);
        stopped.learn(stops(&["revoked/quote-b"])).unwrap();
        assert_eq!(**stopped.known(), stops(&["revoked/quote-a", "revoked/quote-b"]));
        assert!(stopped.lost_by(&stops(&["revoked/quote-a", "revoked/quote-b"])).is_empty());
    }

    fn act(kid: &str) -> StopAct {
        let context = Context::new("test-1".parse().unwrap(), Environment::Sandbox, "00".to_owned(), 1);
        let stop = Stop::Revoked(kid.parse().unwrap());
        StopAct { stop, stands: true, reason: "INC".to_owned(), context, now: UtcTime::from_millis(0) }
    }

    #[test]
    fn what_was_revoked_here_is_not_forgotten_and_tells_no_more_than_it_is() {
        let home = TempDir::new().unwrap();
        let anchor = home.path().join("anchor");
        let (a, b) = ("quote-a".parse::<Kid>().unwrap(), "quote-b".parse::<Kid>().unwrap());
        // Nobody has told yet what else was revoked; a restart does not change that.
        let stopped = Stopped::open(Some(&anchor)).unwrap();
        stopped.stop_here(act("quote-b")).unwrap();
        assert!(!stopped.is_told() && stopped.known().is_revoked(&b));
        let stopped = Stopped::open(Some(&anchor)).unwrap();
        assert!(!stopped.is_told() && stopped.known().is_revoked(&b));
        stopped.learn(stops(&["revoked/quote-a"])).unwrap();
        assert!(stopped.is_told());
        let stopped = Stopped::open(Some(&anchor)).unwrap();
        assert!(stopped.is_told() && stopped.known().is_revoked(&a) && stopped.known().is_revoked(&b));
        // A mirror that cannot be written, and a ledger that can be read and not written.
        let nowhere = Stopped::open(Some(&home.path().join("none/anchor"))).unwrap();
        assert!(nowhere.stop_here(act("quote-a")).is_err());
        drop(nowhere.learn(Stops::default()));
        assert!(nowhere.known().is_revoked(&a), "until the ledger has taken it");
        nowhere.is_durable(&act("quote-a"));
        drop(nowhere.learn(stops(&["revoked/quote-a"])));
        assert!(nowhere.known().is_revoked(&a));
    }

    #[test]
    fn the_ledger_is_asked_by_one_at_a_time_and_has_not_lost_what_is_on_its_way() {
        let home = TempDir::new().unwrap();
        let stopped = Stopped::open(Some(&home.path().join("anchor"))).unwrap();
        let kid = Stop::Revoked("quote-a".parse().unwrap());
        stopped.stop_here(act("quote-a")).unwrap();
        assert!(stopped.take_waiting().is_empty(), "whoever revoked it asks");
        assert!(stopped.lost_by(&Stops::default()).is_empty(), "it never had it");
        stopped.waits(&act("quote-a"));
        assert_eq!(stopped.take_waiting().len(), 1);
        assert!(stopped.take_waiting().is_empty() && stopped.is_pending(&kid), "somebody asks");
        stopped.is_durable(&act("quote-a"));
        assert!(!stopped.is_pending(&kid));
        assert_eq!(stopped.lost_by(&Stops::default()).len(), 1, "it had it");
    }

    #[test]
    fn who_stops_what_somebody_else_has_stopped_is_not_forgotten() {
        let home = TempDir::new().unwrap();
        let anchor = home.path().join("anchor");
        let by = |caller: &str| {
            let act = act("quote-a");
            let caller = Some(format!("spiffe://example.org/{caller}").parse().unwrap());
            StopAct { context: Context { caller, ..act.context.clone() }, ..act }
        };
        let (one, other) = (by("operator"), by("second"));
        let stopped = Stopped::open(Some(&anchor)).unwrap();
        for act in [&one, &other, &one] {
            stopped.stop_here(act.clone()).unwrap();
            stopped.waits(act);
        }
        // Also after a restart each is asked for, whoever asked twice once.
        let stopped = Stopped::open(Some(&anchor)).unwrap();
        let callers = |acts: Vec<StopAct>| acts.into_iter().map(|act| act.context.caller).collect::<Vec<_>>();
        assert_eq!(callers(stopped.take_waiting()), [one.context.caller.clone(), other.context.caller.clone()]);
        stopped.is_durable(&one);
        assert!(stopped.is_pending(&one.stop), "nothing ends it before the other has a record, too");
        stopped.is_durable(&other);
        assert!(!stopped.is_pending(&one.stop) && !home.path().join("anchor.pending").exists());
    }

    #[test]
    fn a_mirror_that_is_none_is_refused_and_one_that_cannot_be_written_is_told() {
        let home = TempDir::new().unwrap();
        let anchor = home.path().join("anchor");
        for text in ["", "quote-a\n", &format!("{HEAD}\na b\n")] {
            fs::write(home.path().join("anchor.revoked"), text).unwrap();
            assert!(Stopped::open(Some(&anchor)).is_err(), "{text:?}");
        }
        let nowhere = Stopped::open(Some(&home.path().join("none/anchor"))).unwrap();
        assert!(nowhere.learn(stops(&["revoked/quote-a"])).is_err());
        assert!(nowhere.known().is_revoked(&"quote-a".parse().unwrap()));
    }
}
