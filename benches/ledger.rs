//! What the ledger gives beside a raw log on the same disk in the same run: `cargo bench --bench ledger`. A pair is a
//! reservation and a commit, each durable when it returns. The raw log appends as many bytes as the ledger's records and JWS
//! have, and synchronises once for whatever waits, as the ledger does; SQLite alone writes them as rows. `-- postgres` has the database instead,
//! `-- large` the speed with many quotes.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::panic,
    missing_docs,
    reason = "a benchmark that cannot go on fails"
)]

use std::{
    env,
    fs::OpenOptions,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use quotesign::{
    domain::Environment,
    ledger::{Engine, Ledger, LedgerConfig, Reserved, sqlite::Sqlite},
};
use rustix::time::{ClockId, clock_gettime};
use tokio::{runtime::Runtime, sync::oneshot, task::JoinSet};

#[path = "../tests/ledger/ops.rs"]
#[allow(dead_code, reason = "the suite of the ledger uses the rest of it")]
mod ops;
#[path = "ledger/bare.rs"]
mod bare;
#[path = "ledger/large.rs"]
mod large;
#[path = "ledger/postgres.rs"]
mod postgres;
#[path = "../tests/ledger/server.rs"]
#[allow(dead_code, reason = "the suite of the ledger uses the rest of it")]
mod server;

/// The gateway's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const HOME: &str = "QUOTESIGN_BENCH_HOME";
const ROUND: Duration = Duration::from_secs(3);
/// As long as a JWS with RSA-2048.
const JWS_BYTES: usize = 1_100;
/// What a pair appends to the raw log: two records and the JWS.
const PAIR_BYTES: usize = 2 * 800 + JWS_BYTES;

fn main() {
    let which = env::args().nth(1).unwrap_or_default();
    if env::var_os(HOME).is_none() {
        // A whole process for each speed of the disk: the library that slows it is loaded at the start.
        let speeds: &[u32] = if which == "large" || which == "postgres" { &[0] } else { &[0, 1_000] };
        for sync_us in speeds {
            run_with(*sync_us, &which);
        }
        return;
    }
    match which.as_str() {
        "large" => large::run(),
        "killed" => large::be_killed(Path::new(&env::args().nth(2).unwrap())),
        "postgres" => postgres::run(),
        _ => small(),
    }
}

fn run_with(sync_us: u32, which: &str) {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--release", "--package", "quotesign-powercut"]);
    assert!(build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
    let library = Path::new(env!("CARGO_BIN_EXE_quotesign")).with_file_name("libpowercut.so");
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut again = Command::new(env::current_exe().unwrap());
    again.arg(which).env(HOME, home.path());
    if sync_us > 0 {
        again.env("LD_PRELOAD", library).env("POWERCUT_FILES", home.path().join("log"));
        again.env("POWERCUT_SYNC_US", sync_us.to_string());
    }
    println!("\nsynchronisation {}", if sync_us == 0 { "as it is" } else { "1 ms longer" });
    assert!(again.status().unwrap().success());
}

fn home() -> PathBuf {
    env::var_os(HOME).unwrap().into()
}

fn small() {
    println!(
        "| callers | ledger, pairs/s | CPU a pair | p50 | p99 | operations a commit | raw log, pairs/s | ratio \
         | bare SQLite, pairs/s | CPU a pair | p50 | p99 |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    // `CALLERS=64` measures that alone.
    let only = env::var("CALLERS").ok().map(|text| text.parse::<usize>().unwrap());
    for callers in [1, 8, 64, 256].into_iter().filter(|callers| only.is_none_or(|only| only == *callers)) {
        let path = home().join(format!("log-{callers}.sqlite"));
        Sqlite::migrate(&path, Environment::Sandbox).unwrap();
        let engine = Sqlite::open(&path, Environment::Sandbox).unwrap();
        let ledger = measure(vec![started(Box::new(engine))], callers, 1);
        let raw = raw(&home().join(format!("log-{callers}.raw")), callers);
        let bare = bare::measure(&home().join(format!("log-bare-{callers}.sqlite")), callers);
        println!(
            "| {callers} | {} | {:.0} | {raw:.0} | {:.2} | {} |",
            ledger.cells(),
            ledger.together,
            ledger.per_second / raw,
            bare.cells()
        );
    }
}

pub(crate) fn started(mut engine: Box<dyn Engine>) -> Ledger {
    ops::one(&mut *engine, quotesign::ledger::Op::Seed(ops::seed("GB-IN", 0))).ok();
    Ledger::start(engine, LedgerConfig { queue_max: 4_096, batch_max: 512 })
}

/// What pairs took.
pub(crate) struct Measured {
    per_second: f64,
    cpu_us: f64,
    p50: Duration,
    p99: Duration,
    /// Operations in a commit, on average.
    together: f64,
}

impl Measured {
    pub(crate) fn cells(&self) -> String {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        format!("{:.0} | {:.1} µs | {:.2} ms | {:.2} ms", self.per_second, self.cpu_us, ms(self.p50), ms(self.p99))
    }
}

/// Has `count` callers make pairs through the ledgers, with numbers from `first` on.
pub(crate) fn measure(ledgers: Vec<Ledger>, count: usize, first: u64) -> Measured {
    let next = Arc::new(AtomicU64::new(first));
    let measured = callers(count, |caller| {
        let (ledger, next) = (ledgers[caller % ledgers.len()].clone(), Arc::clone(&next));
        // Who comes too late for its number takes the next, as part of the same pair.
        move || {
            let (ledger, next) = (ledger.clone(), Arc::clone(&next));
            async move { while !pair(&ledger, next.fetch_add(1, Ordering::Relaxed)).await {} }
        }
    });
    let (mut ops, mut batches) = (0, 0);
    for ledger in ledgers {
        let load = ledger.load();
        (ops, batches) = (ops + load.ops, batches + load.batches);
        Runtime::new().unwrap().block_on(ledger.close());
    }
    Measured { together: ops as f64 / batches as f64, ..measured }
}

/// Has callers make one pair after another for a time. The processor time is that of this whole process, callers included.
pub(crate) fn callers<P, F>(count: usize, pair: impl Fn(usize) -> P) -> Measured
where
    P: Fn() -> F + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let (cpu, since) = (cpu_time(), Instant::now());
        let mut tasks = JoinSet::new();
        for caller in 0..count {
            let pair = pair(caller);
            tasks.spawn(async move {
                let mut took = Vec::new();
                while since.elapsed() < ROUND {
                    let began = Instant::now();
                    pair().await;
                    took.push(began.elapsed());
                }
                took
            });
        }
        let mut took: Vec<Duration> = tasks.join_all().await.into_iter().flatten().collect();
        let (lasted, cpu) = (since.elapsed(), cpu_time().saturating_sub(cpu));
        took.sort_unstable();
        Measured {
            per_second: took.len() as f64 / lasted.as_secs_f64(),
            cpu_us: cpu.as_secs_f64() * 1e6 / took.len() as f64,
            p50: took[took.len() / 2],
            p99: took[took.len() * 99 / 100],
            together: 1.0,
        }
    })
}

async fn pair(ledger: &Ledger, number: u64) -> bool {
    // As random as the ids of quotes are.
    let id = uuid::Uuid::new_v4().to_string();
    let Ok(Reserved::Pending(held)) = ledger.reserve(ops::reserve(&id, number)).await else { return false };
    ledger.commit(ops::commit(&held, &"j".repeat(JWS_BYTES))).await.unwrap();
    true
}

/// Of this process.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
}

/// Pairs a second of a log that is only appended to.
fn raw(path: &Path, callers: usize) -> f64 {
    let (queue, waiting) = mpsc::sync_channel::<oneshot::Sender<()>>(4_096);
    let mut file = OpenOptions::new().create_new(true).append(true).open(path).unwrap();
    let writer = thread::spawn(move || {
        while let Ok(first) = waiting.recv() {
            let batch: Vec<_> = std::iter::once(first).chain(waiting.try_iter().take(511)).collect();
            file.write_all(&vec![b'x'; batch.len() * PAIR_BYTES / 2]).unwrap();
            file.sync_data().unwrap();
            for answer in batch {
                let _gone = answer.send(());
            }
        }
    });
    let runtime = Runtime::new().unwrap();
    let since = Instant::now();
    let pairs = runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for _ in 0..callers {
            let queue = queue.clone();
            tasks.spawn(async move {
                let mut pairs = 0_u64;
                while since.elapsed() < ROUND {
                    for _ in 0..2 {
                        let (answer, answered) = oneshot::channel();
                        queue.send(answer).unwrap();
                        answered.await.unwrap();
                    }
                    pairs += 1;
                }
                pairs
            });
        }
        tasks.join_all().await.into_iter().sum::<u64>()
    });
    let lasted = since.elapsed();
    drop(queue);
    writer.join().unwrap();
    pairs as f64 / lasted.as_secs_f64()
}
