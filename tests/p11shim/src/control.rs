//! The control file: read again when it changes, and asked at each call for the rules that act on it.
//!
//! How often a rule was met is kept by the text of its line, so that it outlives a change elsewhere in the file.

use std::{
    collections::HashMap,
    env,
    fs::{self, File, Metadata},
    io::Read,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use cryptoki_sys::CK_ULONG;

use crate::{
    fault,
    rule::{Action, Rule},
};

/// How often a rule was met, and how often it acted.
#[derive(Debug, Default)]
struct Count {
    met: AtomicU64,
    acted: AtomicU64,
}

/// What tells two lines apart that read alike: which of them it is.
type Identity = (String, usize);

/// A rule that is in the file, with its count.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The rule.
    pub rule: Rule,
    identity: Identity,
    count: Arc<Count>,
}

impl Standing {
    /// Counts a call that the rule is for, and says whether its modifiers let it act on this one.
    fn meets(&self) -> bool {
        let met = self.count.met.fetch_add(1, Ordering::Relaxed) + 1;
        met.checked_sub(self.rule.after).is_some_and(|past| past > 0 && past.is_multiple_of(self.rule.every))
    }

    /// Takes one of the times that the rule may act.
    fn may_act(&self) -> bool {
        let times = self.rule.times.unwrap_or(u64::MAX);
        let more = |acted: u64| (acted < times).then_some(acted + 1);
        self.count.acted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

/// All rules of one reading of the file.
pub type Rules = Arc<[Standing]>;

/// What befalls one call.
#[derive(Debug, Default)]
pub struct Plan {
    /// What happens first, in the order of the file.
    pub before: Vec<Standing>,
    /// What decides the call; otherwise the real module does.
    pub last: Option<Standing>,
}

/// Counts the call with every rule that is for it, and picks those that act.
pub fn plan(rules: &Rules, function: &str, has_session: bool) -> Plan {
    let mut plan = Plan::default();
    for standing in rules.iter() {
        let action = standing.rule.action;
        let concerned =
            standing.rule.is_for(function) && !action.is_state() && (has_session || !action.needs_session());
        if !concerned || !standing.meets() {
            continue;
        }
        if action.lets_go_on() {
            if standing.may_act() {
                plan.before.push(standing.clone());
            }
        } else if plan.last.is_none() && standing.may_act() {
            plan.last = Some(standing.clone());
        }
    }
    plan
}

/// How many sessions a slot may have, if a rule bounds them.
pub fn max_sessions(rules: &Rules) -> Option<CK_ULONG> {
    rules.iter().find_map(|standing| match standing.rule.action {
        Action::MaxSessions(bound) => Some(bound),
        _ => None,
    })
}

/// Whether the token says that one more wrong PIN locks it.
pub fn is_final_try(rules: &Rules) -> bool {
    rules.iter().any(|standing| standing.rule.action == Action::PinFinalTry)
}

/// Whether a rule has signatures remembered.
pub fn remembers_signatures(rules: &Rules) -> bool {
    rules.iter().any(|standing| standing.rule.action == Action::Cache)
}

/// What changes when the file does.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    modified: (i64, i64),
    bytes: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self { inode: metadata.ino(), modified: (metadata.mtime(), metadata.mtime_nsec()), bytes: metadata.size() }
    }
}

#[derive(Default)]
struct Reading {
    stamp: Option<Stamp>,
    rules: Rules,
    counts: HashMap<Identity, Arc<Count>>,
}

/// A control file, as it was last read.
pub struct Control {
    path: Option<PathBuf>,
    reading: RwLock<Reading>,
}

/// The control file that the environment names.
pub fn control() -> &'static Control {
    static CONTROL: OnceLock<Control> = OnceLock::new();
    CONTROL.get_or_init(|| Control::new(env::var_os("P11SHIM_CONTROL").map(PathBuf::from)))
}

impl Control {
    fn new(path: Option<PathBuf>) -> Self {
        Self { path, reading: RwLock::default() }
    }

    /// The rules that stand now. Without a file there are none.
    pub fn rules(&self) -> Rules {
        let Some(path) = &self.path else { return Rules::default() };
        let stamp = fs::metadata(path).ok().as_ref().map(Stamp::of);
        {
            let reading = self.reading.read().unwrap_or_else(PoisonError::into_inner);
            if reading.stamp == stamp {
                return Arc::clone(&reading.rules);
            }
        }
        let mut reading = self.reading.write().unwrap_or_else(PoisonError::into_inner);
        let mut text = Vec::new();
        // The stamp is taken before the text, so that a change in between is seen at the next call.
        let stamp = File::open(path).ok().and_then(|mut file| {
            let stamp = file.metadata().ok().as_ref().map(Stamp::of);
            file.read_to_end(&mut text).ok().and(stamp)
        });
        if reading.stamp != stamp {
            reading.rules = reading.read(&String::from_utf8_lossy(&text));
            reading.stamp = stamp;
        }
        Arc::clone(&reading.rules)
    }

    /// Whether this very line is in the file still.
    pub fn still_stands(&self, standing: &Standing) -> bool {
        self.rules().iter().any(|other| other.identity == standing.identity)
    }
}

impl Reading {
    fn read(&mut self, text: &str) -> Rules {
        let mut seen: HashMap<&str, usize> = HashMap::new();
        let mut rules = Vec::new();
        for line in text.lines().map(str::trim) {
            match Rule::parse(line) {
                Ok(None) => {}
                Ok(Some(rule)) => {
                    let earlier = seen.entry(line).or_default();
                    let identity = (line.to_owned(), *earlier);
                    *earlier += 1;
                    let count = Arc::clone(self.counts.entry(identity.clone()).or_default());
                    rules.push(Standing { rule, identity, count });
                }
                // A test with a slip in its rules must not pass for want of a fault unnoticed.
                Err(reason) => fault::complain(line, &reason),
            }
        }
        rules.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Rules {
        Reading::default().read(text)
    }

    /// On which of so many calls a rule decides.
    fn acts_on(rules: &Rules, calls: usize) -> Vec<usize> {
        (1..=calls).filter(|_| plan(rules, "C_Sign", true).last.is_some()).collect()
    }

    #[test]
    fn a_rule_acts_on_the_calls_that_its_modifiers_name() {
        assert_eq!(acts_on(&rules("C_Sign err 5"), 3), [1, 2, 3]);
        assert_eq!(acts_on(&rules("C_Sign err 5 every 3"), 9), [3, 6, 9]);
        assert_eq!(acts_on(&rules("C_Sign err 5 after 2"), 5), [3, 4, 5]);
        assert_eq!(acts_on(&rules("C_Sign err 5 times 2"), 5), [1, 2]);
        assert_eq!(acts_on(&rules("C_Sign err 5 every 2 after 3 times 2"), 20), [5, 7]);
        assert_eq!(acts_on(&rules("C_Login err 5"), 3), [0; 0]);
        assert_eq!(acts_on(&rules("* err 5"), 2), [1, 2]);
    }

    #[test]
    fn what_lets_go_on_acts_in_order_and_the_first_that_decides_does() {
        let rules = rules("C_Sign delay 1\nC_Sign err 5 every 2\n* delay 2\nC_Sign corrupt times 2\nC_Sign logout");
        let actions = |plan: Plan| {
            let before: Vec<String> = plan.before.into_iter().map(|standing| standing.rule.spelling).collect();
            (before.join(", "), plan.last.map(|standing| standing.rule.spelling))
        };
        let before = "delay 1, delay 2, logout".to_owned();
        assert_eq!(actions(plan(&rules, "C_Sign", true)), (before.clone(), Some("corrupt".into())));
        assert_eq!(actions(plan(&rules, "C_Sign", true)), (before.clone(), Some("err 5".into())));
        // A call that another rule decided takes none of a rule's times.
        assert_eq!(actions(plan(&rules, "C_Sign", true)), (before, Some("corrupt".into())));
        assert_eq!(actions(plan(&rules, "C_OpenSession", false)), ("delay 2".into(), None));
    }

    #[test]
    fn a_logout_for_all_leaves_calls_without_a_session_alone() {
        let rules = rules("* logout times 1");
        assert!(plan(&rules, "C_OpenSession", false).before.is_empty());
        assert_eq!(plan(&rules, "C_SignInit", true).before.len(), 1);
    }

    #[test]
    fn times_hold_across_threads() {
        let rules = rules("C_Sign err 5 every 2 times 100");
        let acted: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| acts_on(&rules, 1000).len())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(acted, 100);
    }

    #[test]
    fn the_bound_on_sessions_and_the_cache_are_found() {
        assert_eq!(max_sessions(&rules("C_Sign err 5\n* max-sessions 3")), Some(3));
        assert_eq!(max_sessions(&rules("C_Sign cache")), None);
        assert!(remembers_signatures(&rules("C_Sign cache")));
    }

    #[test]
    fn a_changed_file_is_read_again_and_counts_go_on() {
        let path = env::temp_dir().join(format!("p11shim-control-{}", std::process::id()));
        let replace = |text: &str| {
            let new = path.with_extension("new");
            fs::write(&new, text).unwrap();
            fs::rename(&new, &path).unwrap();
        };
        let _ = fs::remove_file(&path);
        let control = Control::new(Some(path.clone()));
        assert!(control.rules().is_empty());

        replace("C_Sign err 5 every 3\nno rule at all\n");
        assert_eq!(acts_on(&control.rules(), 2), [0; 0]);
        let standing = control.rules().first().unwrap().clone();

        replace("# another line above\nC_Login err 5\nC_Sign err 5 every 3\n");
        assert!(control.still_stands(&standing));
        assert_eq!(acts_on(&control.rules(), 4), [1, 4]);

        // A comment makes it another rule, with a count of its own.
        replace("C_Sign err 5 every 3 # second run\n");
        assert!(!control.still_stands(&standing));
        assert_eq!(acts_on(&control.rules(), 3), [3]);

        fs::remove_file(&path).unwrap();
        assert!(control.rules().is_empty());
    }

    #[test]
    fn lines_that_read_alike_count_apart() {
        assert_eq!(acts_on(&rules("C_Sign err 5 times 1\nC_Sign err 5 times 1"), 4), [1, 2]);
    }
}
