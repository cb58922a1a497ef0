//! Quotes that wait for their signature, as the writer left them: a commit need not read its own.

use std::collections::HashMap;

use crate::{
    domain::Identity,
    ledger::step::{Quote, Stage},
};

/// More than a gateway has under way by far, but for one whose queues are made very long; some 5 MB.
const QUOTES_MAX: usize = 8_192;

/// What the file holds of them. Whoever changes the file takes it away, and gives it back when the change is durable: after
/// anything else nothing is known, and all is read.
#[derive(Debug, Default)]
pub(super) struct Known(HashMap<Identity, Quote>);

impl Known {
    /// The quote, if it is known; [`Known::put`] has it back.
    pub(super) fn take(&mut self, identity: &Identity) -> Option<Quote> {
        self.0.remove(identity)
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> impl Iterator<Item = (&Identity, &Quote)> {
        self.0.iter()
    }

    #[cfg(test)]
    pub(super) fn holds(&self, identity: &Identity) -> bool {
        self.0.contains_key(identity)
    }

    /// Keeps those of `quotes` that wait. With too many of them all are forgotten: some never came to their end here.
    pub(super) fn put(&mut self, quotes: HashMap<Identity, Quote>) {
        self.0.extend(quotes.into_iter().filter(|(_, quote)| quote.stage == Stage::Reserved));
        if self.0.len() > QUOTES_MAX {
            self.0 = HashMap::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            super::{
                Done, Engine as _, EngineError, Op, Reads as _,
                step::tests::{commit, identity, pending, reserve, void},
            },
            Sqlite,
            tests::Home,
        },
        *,
    };

    #[test]
    fn what_is_known_is_what_waits_and_nothing_after_an_error() {
        let home = Home::new();
        let mut ledger = home.seeded();
        let held: Vec<_> =
            (1..4).map(|n| pending(ledger.one(Op::Reserve(reserve(&format!("q{n}"), n))).unwrap())).collect();
        let known = |ledger: &Sqlite| ["q1", "q2", "q3"].map(|quote| ledger.known.holds(&identity(quote)));
        assert_eq!(known(&ledger), [true, true, true]);
        ledger.one(Op::Commit(commit(&held[0], "e30.e30.x"))).unwrap();
        assert_eq!(known(&ledger), [false, true, true]);
        // Who asks again changes nothing.
        assert_eq!(pending(ledger.one(Op::Reserve(reserve("q2", 2))).unwrap()), held[1]);
        assert_eq!(known(&ledger), [false, true, true]);
        home.shell("UPDATE scope SET last = 0");
        let batch = [Op::Commit(commit(&held[1], "e30.e30.y")), Op::Reserve(reserve("q4", 3))];
        assert!(matches!(ledger.apply(&batch), Err(EngineError::RolledBack(_))));
        assert_eq!(known(&ledger), [false, false, false]);
        assert_eq!(ledger.quote(&identity("q2")).unwrap().unwrap().stage, Stage::Reserved);
        ledger.one(Op::Commit(commit(&held[1], "e30.e30.z"))).unwrap();
        // The first that was stored stays.
        let again = ledger.one(Op::Commit(commit(&held[1], "e30.e30.y")));
        let Ok(Done::Committed { released, first: false }) = again else { panic!("{again:?}") };
        assert_eq!(released.jws.as_str(), "e30.e30.z");
        ledger.one(Op::Void(void("q3", 600_000))).unwrap();
        assert_eq!(known(&ledger), [false, false, false]);
    }

    /// Nobody but the gateway may write the file. Whoever does all the same finds no quote signed that he ended.
    #[test]
    fn a_quote_that_waits_no_more_in_the_file_is_not_signed() {
        for ended in [
            "UPDATE quote SET state = 3",
            "UPDATE quote SET state = 2, release_idx = 7, record_id = zeroblob(16)",
            "UPDATE quote SET generation = 2",
            "UPDATE quote SET identity = 'q2'",
            "DELETE FROM quote",
        ] {
            let home = Home::new();
            let mut ledger = home.seeded();
            let held = pending(ledger.one(Op::Reserve(reserve("q1", 1))).unwrap());
            home.shell(ended);
            let applied = ledger.apply(&[Op::Commit(commit(&held, "e30.e30.x"))]);
            assert!(matches!(applied, Err(EngineError::Unfit(_))), "{ended}: {applied:?}");
            let stored = "SELECT count(*) FROM release";
            let stored: i64 = ledger.connection().unwrap().query_row(stored, (), |row| row.get(0)).unwrap();
            assert_eq!(stored, 0, "{ended}");
        }
    }

    #[test]
    fn what_is_known_is_bounded() {
        let home = Home::new();
        let mut ledger = home.seeded();
        ledger.one(Op::Reserve(reserve("q1", 1))).unwrap();
        let quote = ledger.quote(&identity("q1")).unwrap().unwrap();
        let put = |known: &mut Known, first: usize, count: usize| {
            known.put((first..first + count).map(|n| (identity(&format!("q{n}")), quote.clone())).collect());
            known.0.len()
        };
        let mut known = Known::default();
        assert_eq!(put(&mut known, 0, QUOTES_MAX), QUOTES_MAX);
        assert_eq!(put(&mut known, 0, QUOTES_MAX), QUOTES_MAX);
        assert_eq!(put(&mut known, QUOTES_MAX, 1), 0);
        assert_eq!(put(&mut known, 0, 1), 1);
    }
}
