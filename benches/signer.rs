//! What a token gives through the gateway's device, beside a raw loop over the same module with the same threads in
//! the same run: `cargo bench --bench signer`. SoftHSM with RSA-2048 and RSA-3072, and a waiting device, which takes
//! 5 ms and answers with signatures made beforehand. `threads` is a pool of threads in this very process, as the
//! gateway would have without a process for each module.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a benchmark that cannot go on fails"
)]

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use quotesign::{
    jwk::PublicKey,
    jws::SigningInput,
    signer::{
        Attributes, Device as _, Flow, Health, Order, Pinned, Signer,
        pkcs11::{Pin, Provisioner, Token, TokenConfig, init_token, raw::Raw},
        provision::{NewKey, Provision as _},
    },
};
use tokio::sync::oneshot;

const HOME: &str = "QUOTESIGN_BENCH_HOME";
const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
/// For a token that lives as long as this run.
const BENCH_PIN: &str = "bench-pin";
const ROUND: Duration = Duration::from_secs(2);
const ROUNDS: usize = 3;
/// A waiting device has a signature of each of these ready.
const INPUTS: usize = 64;

fn main() {
    let Some(home) = env::var_os(HOME) else { return run_in_own_process() };
    let bench = Bench::new(Path::new(&home));
    println!("two cores shared; medians of {ROUNDS} rounds of {} s each, taken in turn", ROUND.as_secs());
    println!(
        "| device | raw loop | threads | host process | host process, verified | one at a time: raw, threads, host |"
    );
    println!("|---|---|---|---|---|---|");
    for (bits, sessions) in [(2048, 1), (2048, 2), (3072, 1), (3072, 2)] {
        bench.row(
            &format!("SoftHSM, RSA-{bits}, {sessions} sessions"),
            Path::new(MODULE),
            bits,
            sessions,
            16 * sessions,
        );
    }
    fs::write(bench.home.join("control"), "C_Sign delay 5\nC_Sign cache\n").unwrap();
    bench.row("waiting 5 ms, RSA-2048, 64 sessions", &shim(), 2048, 64, 256);
}

/// SoftHSM and the shim find their files by variables of their process.
fn run_in_own_process() {
    let home = tempfile::tempdir().unwrap();
    let (conf, tokens) = (home.path().join("softhsm2.conf"), home.path().join("tokens"));
    fs::create_dir(&tokens).unwrap();
    fs::write(&conf, format!("directories.tokendir = {}\nobjectstore.backend = file\n", tokens.display())).unwrap();
    fs::write(home.path().join("pin"), BENCH_PIN).unwrap();
    let mut again = Command::new(env::current_exe().unwrap());
    again.env(HOME, home.path()).env("SOFTHSM2_CONF", conf);
    again.env("P11SHIM_MODULE", MODULE).env("P11SHIM_CONTROL", home.path().join("control"));
    assert!(again.status().unwrap().success());
}

fn shim() -> PathBuf {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--release", "--quiet", "--package", "quotesign-p11shim"]);
    assert!(build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
    Path::new(env!("CARGO_BIN_EXE_quotesign")).with_file_name("libp11shim.so")
}

struct Bench {
    home: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Bench {
    fn new(home: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { home: home.to_owned(), runtime }
    }

    fn config(&self, module: &Path, sessions: usize) -> TokenConfig {
        TokenConfig {
            name: "bench".to_owned(),
            host: PathBuf::from(env!("CARGO_BIN_EXE_quotesign")),
            module: module.to_owned(),
            token_label: "bench".to_owned(),
            token_serial: None,
            pin: Pin::File(self.home.join("pin")),
            environment: BTreeMap::new(),
            secret_variables: Vec::new(),
            sessions,
            queue_max: 1024,
            call_timeout: Duration::from_secs(5),
            probe_interval: Duration::from_mins(1),
        }
    }

    /// The key of this size, made if it is not there.
    fn key(&self, bits: u32) -> Arc<PublicKey> {
        let config = self.config(Path::new(MODULE), 1);
        self.runtime.block_on(async {
            // The first key finds no token.
            let _there_already = init_token(&config, &"so-bench-pin".into()).await;
            let provisioner = Provisioner::new(config);
            let kid = format!("bench-{bits}").parse().unwrap();
            let key = NewKey { kid, partner: "bench".to_owned(), bits };
            if let Ok(made) = provisioner.generate(&key).await {
                return Arc::new(made.public);
            }
            let locator = format!("pkcs11:token=bench;object=bench-{bits};type=private");
            Arc::new(provisioner.try_out(&key.kid, &locator, Attributes::Require).await.unwrap().public)
        })
    }

    fn row(&self, name: &str, module: &Path, bits: u32, sessions: usize, in_flight: usize) {
        let public = self.key(bits);
        let inputs: Arc<Vec<SigningInput>> = Arc::new((0..INPUTS).map(|_| SigningInput::fresh_probe()).collect());
        let pin = Pin::File(self.home.join("pin"));
        let raw = Raw::open(module, "bench", &pin, &format!("bench-{bits}")).unwrap();
        let bare = |threads, lasts| raw.run(threads, &inputs, lasts).unwrap().rate();
        let (token, key) = self.token(module, sessions, &public);
        let pool = Pool::start(&raw, sessions);
        // Everyone signs everything once, so that the waiting device has its answers ready.
        bare(sessions, Duration::from_millis(500));
        self.rate(&Via::Pool(&pool), in_flight, &inputs, Duration::from_millis(500));
        self.rate(&Via::Key(&key, false), in_flight, &inputs, Duration::from_millis(500));
        let mut rates = [(); 4].map(|()| Vec::new());
        let mut alone = [(); 3].map(|()| Vec::new());
        for _ in 0..ROUNDS {
            rates[0].push(bare(sessions, ROUND));
            rates[1].push(self.rate(&Via::Pool(&pool), in_flight, &inputs, ROUND));
            rates[2].push(self.rate(&Via::Key(&key, false), in_flight, &inputs, ROUND));
            rates[3].push(self.rate(&Via::Key(&key, true), in_flight, &inputs, ROUND));
            alone[0].push(1e6 / bare(1, ROUND / 4));
            alone[1].push(1e6 / self.rate(&Via::Pool(&pool), 1, &inputs, ROUND / 4));
            alone[2].push(1e6 / self.rate(&Via::Key(&key, false), 1, &inputs, ROUND / 4));
        }
        let [raw_rate, pool_rate, host, verified] = rates.map(median);
        let [a, b, c] = alone.map(median);
        let of = |rate: f64| format!("{rate:.0}/s, {:.3}", rate / raw_rate);
        let (pooled, hosted, verified) = (of(pool_rate), of(host), of(verified));
        println!("| {name} | {raw_rate:.0}/s | {pooled} | {hosted} | {verified} | {a:.0}, {b:.0}, {c:.0} µs |");
        self.runtime.block_on(token.close());
    }

    fn token(&self, module: &Path, sessions: usize, public: &Arc<PublicKey>) -> (Token, Arc<dyn Signer>) {
        self.runtime.block_on(async {
            let token = Token::start(self.config(module, sessions));
            let locator = format!("pkcs11:token=bench;object={};type=private", public.kid());
            let pinned = Pinned { public: Arc::clone(public), locator, attributes: Attributes::Require };
            let key = token.key(pinned).unwrap();
            while key.health() != Health::Serving {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            (token, key)
        })
    }

    /// Signatures a second with so many in flight.
    fn rate(&self, via: &Via<'_>, in_flight: usize, inputs: &Arc<Vec<SigningInput>>, lasts: Duration) -> f64 {
        let (done, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let began = Instant::now();
        self.runtime.block_on(async {
            let tasks: Vec<_> = (0..in_flight)
                .map(|at| {
                    let (via, inputs) = (via.owned(), Arc::clone(inputs));
                    let (done, over) = (Arc::clone(&done), Arc::clone(&over));
                    tokio::spawn(async move {
                        for input in inputs.iter().cycle().skip(at) {
                            if over.load(Ordering::Relaxed) {
                                return;
                            }
                            via.sign(input).await;
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            tokio::time::sleep(lasts).await;
            over.store(true, Ordering::Relaxed);
            for task in tasks {
                task.await.unwrap();
            }
        });
        done.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64()
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// By which way a signature is asked for.
enum Via<'v> {
    Pool(&'v Pool),
    Key(&'v Arc<dyn Signer>, bool),
}

enum OwnedVia {
    Pool(flume::Sender<PoolJob>),
    Key(Arc<dyn Signer>, bool),
}

impl Via<'_> {
    fn owned(&self) -> OwnedVia {
        match self {
            Self::Pool(pool) => OwnedVia::Pool(pool.jobs.clone()),
            Self::Key(key, verified) => OwnedVia::Key(Arc::clone(key), *verified),
        }
    }
}

impl OwnedVia {
    async fn sign(&self, input: &SigningInput) {
        match self {
            Self::Pool(jobs) => {
                let (reply, answer) = oneshot::channel();
                jobs.send_async((input.clone(), reply)).await.unwrap();
                answer.await.unwrap();
            }
            Self::Key(key, verified) => {
                let order = Order::new(Flow(1), Instant::now() + Duration::from_secs(10));
                let signature = key.sign(input, &order).await.unwrap();
                assert!(!verified || key.public_key().verifies(input.bytes(), signature.bytes()));
            }
        }
    }
}

type PoolJob = (SigningInput, oneshot::Sender<Vec<u8>>);

/// Threads with a session each behind a bounded channel, in this process.
struct Pool {
    jobs: flume::Sender<PoolJob>,
}

impl Pool {
    fn start(raw: &Raw, sessions: usize) -> Self {
        let (jobs, taken) = flume::bounded::<PoolJob>(256);
        for _ in 0..sessions {
            let (session, taken) = (raw.session().unwrap(), taken.clone());
            thread::spawn(move || {
                for (input, reply) in taken {
                    let signature = session.sign(&input).unwrap();
                    let _gone = reply.send(signature);
                }
            });
        }
        Self { jobs }
    }
}
