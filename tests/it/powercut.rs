//! The power is cut: what was not synchronised may be there, gone or torn. One run under load is noted, and cut at many
//! moments afterwards. What had been answered by then must be there.

mod disk;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use quotesign::{
    domain::Environment,
    ledger::{Place, Store as Kept},
};
use rustix::time::{ClockId, clock_gettime};
use tokio::task::JoinSet;

use crate::{
    harness::{Caller, Quote, Site, reason, until},
    history::{Answer, Store, Told, faults},
    kills::{CALLERS, Dice, number_from, seed_from},
};
use disk::{Disk, Files, Note};

/// The library that notes, built by the cargo that runs the tests.
fn library() -> PathBuf {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked", "--package", "quotesign-powercut"]);
    assert!(build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success(), "it does not build");
    Path::new(env!("CARGO_BIN_EXE_quotesign")).with_file_name("libpowercut.so")
}

fn steady_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

/// What was told, and when.
type Heard = (Told, u64);

/// A run: the site, what was on its disk before, what was done to it, and what callers were told.
struct Run {
    site: Site,
    before: Files,
    notes: Vec<Note>,
    heard: Vec<Heard>,
}

/// The files that are noted.
fn ledger_files(site: &Site) -> Files {
    let entries = fs::read_dir(site.path("")).unwrap().map(|entry| entry.unwrap().path());
    let noted = entries.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("ledger."));
    noted.map(|path| (path.to_str().unwrap().to_owned(), fs::read(&path).unwrap())).collect()
}

async fn keep_asking(pricing: Caller, next: Arc<AtomicU64>, heard: Arc<Mutex<Vec<Heard>>>, until: Instant) {
    while Instant::now() < until {
        let quote = Quote::number(next.fetch_add(1, Ordering::Relaxed));
        loop {
            let told = match pricing.sign(&quote).await {
                Ok(answer) => Told::signed(&quote, &answer),
                Err(status) if reason(&status) == "SEQUENCE_NOT_MONOTONIC" => Told::refused(&quote),
                Err(status) if ["OVERLOADED", "SIGNER_UNAVAILABLE"].contains(&&*reason(&status)) => continue,
                Err(status) => panic!("{status:?}"),
            };
            heard.lock().unwrap().push((told, steady_ns()));
            break;
        }
    }
}

impl Run {
    async fn new(failpoints: &str, lasts: Duration) -> Self {
        let site = Site::new();
        let (anchor, log, noted) = (site.path("ledger.anchor"), site.path("notes"), site.path("ledger."));
        let site = site
            .with("QUOTESIGN__LEDGER__ANCHOR", anchor.to_str().unwrap())
            .with("FAILPOINTS", failpoints)
            .with("POWERCUT_FILES", noted.to_str().unwrap())
            .with("POWERCUT_LOG", log.to_str().unwrap());
        site.edit_policy(|policy| {
            for quota in ["attempts_per_caller", "signed_per_partner", "signed_per_caller", "signed_per_key"] {
                policy["quotas"][quota]["per_second"] = toml_edit::value(100_000);
                policy["quotas"][quota]["burst"] = toml_edit::value(100_000);
            }
        });
        let before = ledger_files(&site);
        let mut site = site.with("LD_PRELOAD", library().to_str().unwrap());
        let gateway = site.serve().await;
        let (next, heard) = (Arc::new(AtomicU64::new(1)), Arc::new(Mutex::new(Vec::new())));
        let (pricing, until) = (gateway.quotes("pricing").await, Instant::now() + lasts);
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            callers.spawn(keep_asking(pricing.clone(), next.clone(), heard.clone(), until));
        }
        while let Some(ended) = callers.join_next().await {
            ended.unwrap();
        }
        assert!(gateway.stop().success());
        for variable in ["LD_PRELOAD", "POWERCUT_FILES", "POWERCUT_LOG", "FAILPOINTS"] {
            site.env.remove(variable);
        }
        let heard = heard.lock().unwrap().clone();
        Self { before, notes: disk::notes(&log), heard, site }
    }

    /// Puts on the disk what is left, opens the ledger as a gateway does, and holds what was told before against it.
    fn after(&self, left: Files, at: u64) -> Vec<String> {
        for path in ledger_files(&self.site).into_keys() {
            fs::remove_file(path).unwrap();
        }
        for (path, bytes) in left {
            fs::write(path, bytes).unwrap();
        }
        let place = Place {
            store: Kept::Sqlite(self.site.path("ledger.sqlite")),
            anchor: Some(self.site.path("ledger.anchor")),
        };
        if let Err(fault) = place.open(Environment::Development).map(drop) {
            return vec![format!("it does not open: {fault}")];
        }
        faults(&self.told_by(at), &Store::read(&self.site))
    }

    /// What was told until then. A refusal says of every moment that its quote is not there.
    fn told_by(&self, at: u64) -> Vec<Told> {
        let counts = |(told, when): &&Heard| *when <= at || matches!(told.answer, Answer::Refused);
        self.heard.iter().filter(counts).map(|(told, _)| told.clone()).collect()
    }

    /// Cuts the power at `count` moments of the run, and calls `each` with what each cut left.
    async fn cuts(&self, count: u64, dice: &mut Dice, mut each: impl AsyncFnMut(&Self, Files, u64)) {
        let mut moments: Vec<usize> =
            (0..count).map(|_| usize::try_from(dice.throw(self.notes.len() as u64)).unwrap()).collect();
        moments.sort_unstable();
        let (mut disk, mut done) = (Disk::with(self.before.clone()), 0);
        for moment in moments {
            // Two moments may be the same: then nothing is done between the two cuts.
            while done <= moment {
                disk.note(&self.notes[done]);
                done += 1;
            }
            each(self, disk.cut(dice), self.notes[moment].at).await;
        }
    }

    /// The same quotes again, through a gateway on what is left.
    async fn serves_again(&self, at: u64) {
        let gateway = self.site.serve().await;
        let pricing = gateway.quotes("pricing").await;
        let last = pricing.last().await;
        pricing.sign(&Quote::number(last + 1)).await.unwrap();
        assert_eq!(reason(&pricing.sign(&Quote::number(last)).await.unwrap_err()), "SEQUENCE_NOT_MONOTONIC", "{at}");
        assert!(gateway.stop().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_loses_nothing_that_was_answered() {
    let (trials, seed) = (number_from("TRIALS", 12).min(200), seed_from());
    println!("TRIALS={trials} SEED={seed}");
    let run = Run::new("", Duration::from_secs(if trials > 50 { 10 } else { 3 })).await;
    let mut dice = Dice::new(seed);
    let mut told = 0;
    let mut cut = 0;
    run.cuts(trials, &mut dice, async |run, left, at| {
        assert_eq!(run.after(left, at), Vec::<String>::new(), "SEED={seed}, at {at}");
        told += run.told_by(at).iter().filter(|told| matches!(told.answer, Answer::Signed { .. })).count();
        cut += 1;
        if cut % 10 == 0 {
            run.serves_again(at).await;
        }
    })
    .await;
    let signed = run.heard.iter().filter(|(told, _)| matches!(told.answer, Answer::Signed { .. })).count();
    println!("{cut} cuts of a run with {signed} quotes and {} notes; {told} answers held, 0 faults", run.notes.len());
    assert!(signed > 50, "too little happened to say anything");
}

/// The negative control: without the synchronisation of each commit, which no SIGKILL shows, answers must be found lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_does_not_synchronise_its_commits_is_found_out() {
    let run = Run::new("ledger::synchronous-normal=return", Duration::from_secs(3)).await;
    let mut dice = Dice::new(seed_from());
    let (mut faulty, mut cut) = (0, 0);
    run.cuts(30, &mut dice, async |run, left, at| {
        cut += 1;
        faulty += u32::from(!run.after(left, at).is_empty());
    })
    .await;
    println!("synchronous = NORMAL: {faulty} of {cut} cuts lost something that was answered");
    assert!(faulty > 0);
}

/// A disk that is full for a while: refused, nothing lost, and resumed by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_loses_nothing_and_goes_on_when_there_is_room() {
    let site = Site::new();
    let (anchor, full, noted) = (site.path("ledger.anchor"), site.path("disk-is-full"), site.path("ledger."));
    let site = site
        .with("QUOTESIGN__LEDGER__ANCHOR", anchor.to_str().unwrap())
        .with("POWERCUT_FILES", noted.to_str().unwrap())
        .with("POWERCUT_FULL", full.to_str().unwrap());
    let mut site = site.with("LD_PRELOAD", library().to_str().unwrap());
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let mut told = Vec::new();
    let quotes: Vec<_> = (1..=6).map(Quote::number).collect();
    for quote in &quotes[..3] {
        told.push(Told::signed(quote, &pricing.sign(quote).await.unwrap()));
    }
    for round in 0..2 {
        fs::write(&full, "").unwrap();
        for quote in &quotes[3..] {
            assert_eq!(reason(&pricing.sign(quote).await.unwrap_err()), "LEDGER_UNAVAILABLE", "round {round}");
        }
        until("health tells", async || !gateway.can_sign().await).await;
        fs::remove_file(&full).unwrap();
        gateway.signing().await;
        // What was signed is given again, and what was refused is signed.
        let again = pricing.sign(&quotes[0]).await.unwrap();
        assert!(again.replayed);
        told.push(Told::signed(&quotes[0], &again));
    }
    for quote in &quotes[3..] {
        told.push(Told::signed(quote, &pricing.sign(quote).await.unwrap()));
    }
    assert!(gateway.stop().success());
    site.env.remove("LD_PRELOAD");
    assert_eq!(faults(&told, &Store::read(&site)), Vec::<String>::new());
}
