//! A gateway of the benchmark's own: a development environment in a temporary directory, with as many callers as wanted and quotas
//! that refuse nothing, served by this very executable. It goes with the run.

use std::{
    fs,
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use toml_edit::{DocumentMut, Item, value};

use super::{collector::Collector, stages};
use crate::{
    cli::{
        Failure,
        dev::{self, CONFIG, TRUST_DOMAIN, write_addresses, write_private},
        ledger::migrate,
    },
    client::ClientFile,
    config::Config,
};

const PATIENCE: Duration = Duration::from_mins(1);
/// How often addresses are chosen anew, where another process was faster.
const STARTS: usize = 3;

/// What kind of gateway it is.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) callers: usize,
    pub(super) in_flight: usize,
    pub(super) assigns: bool,
    pub(super) bits: u32,
    pub(super) sessions: usize,
    /// The device waits for so long, and answers with signatures made beforehand.
    pub(super) waits: Option<(Duration, PathBuf)>,
    /// The share of calls that are recorded; nothing is sent anywhere where there is none.
    pub(super) trace_ratio: Option<f64>,
}

/// The environment and, where it runs, its gateway.
pub(super) struct Own {
    dir: TempDir,
    plan: Plan,
    gateway: Option<Child>,
    collector: Option<Collector>,
}

impl Own {
    /// Makes the environment.
    pub(super) fn prepare(plan: Plan) -> Result<Self, Failure> {
        let dir = TempDir::with_prefix("quotesign-bench-").map_err(Failure::failed)?;
        let callers: Vec<String> = (0..plan.callers).map(caller).collect();
        dev::prepare(dir.path(), &callers, plan.bits)?;
        let collector = plan.trace_ratio.map(|_| Collector::start()).transpose().map_err(Failure::failed)?;
        let own = Self { dir, plan, gateway: None, collector };
        own.write_policy()?;
        edit(&own.path(CONFIG), |config| own.configure(config))?;
        Ok(own)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn config(&self) -> Result<Config, Failure> {
        Config::load(&self.path(CONFIG)).map_err(Failure::unfit)
    }

    /// How each caller reaches it.
    pub(super) fn clients(&self) -> Result<Vec<ClientFile>, Failure> {
        let file = ClientFile::load(&self.path("client.toml")).map_err(Failure::unfit)?;
        let client = |at: usize| {
            let mut file = file.clone();
            file.grpc.certificate = self.path(&format!("tls/{}.pem", caller(at)));
            file.grpc.private_key = self.path(&format!("tls/{}.key", caller(at)));
            file
        };
        Ok((0..self.plan.callers).map(client).collect())
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.gateway.as_ref().map(Child::id)
    }

    /// The processor time that its collector took of this very process.
    pub(super) fn collector_time(&self) -> Duration {
        self.collector.as_ref().map_or(Duration::ZERO, Collector::processor_time)
    }

    /// What the waiting device does from now on: nothing but keep what it signs, or wait and answer with that.
    pub(super) fn device(&self, waits: bool) -> Result<(), Failure> {
        let Some((wait, _)) = &self.plan.waits else { return Ok(()) };
        let delay = if waits { format!("C_Sign delay {}\n", wait.as_millis()) } else { String::new() };
        write_private(&self.path("control"), format!("{delay}C_Sign cache\n").as_bytes())
    }

    /// Takes the ledger away, so that the same quotes can be asked for afresh.
    pub(super) fn forget(&self) -> Result<(), Failure> {
        for ending in ["", "-wal", "-shm", ".lock"] {
            let path = self.path(&format!("ledger.sqlite{ending}"));
            match fs::remove_file(&path) {
                Err(fault) if fault.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Failure::failed(format!("{}: {fault}", path.display())));
                }
                _ => {}
            }
        }
        migrate(&self.config()?).map(drop)
    }

    /// Starts the gateway and waits until it can sign.
    pub(super) async fn serve(&mut self) -> Result<(), Failure> {
        let mut last = String::new();
        for _ in 0..STARTS {
            match self.start().await {
                Ok(()) => return Ok(()),
                Err(why) => last = why,
            }
            self.stop();
            write_addresses(self.dir.path())?;
            edit(&self.path(CONFIG), |config| self.configure(config))?;
        }
        Err(Failure::failed(format!("the benchmark's own gateway does not start: {last}")))
    }

    async fn start(&mut self) -> Result<(), String> {
        let log = fs::File::create(self.path("gateway.log")).map_err(|fault| fault.to_string())?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("quotesign").arg("serve").arg("--config").arg(self.path(CONFIG));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        // Held from now on, so that it goes with this whatever happens while it starts.
        self.gateway = Some(child.map_err(|fault| fault.to_string())?);
        let address = self.operations().map_err(|failure| failure.text)?;
        let began = Instant::now();
        let ended = loop {
            if self.gateway.as_mut().and_then(|child| child.try_wait().ok().flatten()).is_some() {
                break "it ended";
            }
            if stages::get(address, "/readyz?for=signing").await.is_ok_and(|(status, _)| status == 200) {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                break "it cannot sign";
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let log = fs::read_to_string(self.path("gateway.log")).unwrap_or_default();
        let last: Vec<_> = log.lines().rev().take(3).collect();
        Err(format!("{ended}: {}", last.join(" / ")))
    }

    pub(super) fn operations(&self) -> Result<SocketAddr, Failure> {
        Ok(self.config()?.operations.listen)
    }

    /// Ends the gateway, where it runs.
    pub(super) fn stop(&mut self) {
        let Some(mut gateway) = self.gateway.take() else { return };
        let _it_may_have_ended =
            rustix::process::kill_process(rustix::process::Pid::from_child(&gateway), rustix::process::Signal::TERM);
        let began = Instant::now();
        while gateway.try_wait().ok().flatten().is_none() {
            if began.elapsed() > PATIENCE {
                let _it_may_have_ended = gateway.kill();
                let _reaped = gateway.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The shipped bundle with these callers, for corridors of the benchmark's own.
    fn write_policy(&self) -> Result<(), Failure> {
        let rules = self.path("policy/authorize.cedar");
        let text = fs::read_to_string(&rules).map_err(Failure::failed)?;
        let text = text.replace(r#"context.corridor == "GB-IN""#, r#"context.corridor like "GB-*""#);
        write_private(&rules, text.as_bytes())?;
        edit(&self.path("policy/policy.toml"), |policy| self.write_callers(policy))
    }

    fn write_callers(&self, policy: &mut DocumentMut) -> Option<()> {
        for quota in ["attempts_per_caller", "signed_per_partner", "signed_per_caller", "signed_per_key"] {
            let text = "{ per_second = 1000000, burst = 1000000 }";
            *policy.get_mut("quotas")?.get_mut(quota)? = value(text.parse::<toml_edit::Value>().ok()?);
        }
        let mode = if self.plan.assigns { "assign" } else { "verify" };
        let scope = if self.plan.assigns { r#"["partner"]"# } else { r#"["partner", "corridor"]"# };
        let sequence = format!("{{ scope = {scope}, mode = \"{mode}\", jump_max = 1000 }}");
        let partner = policy.get_mut("partners")?.as_array_of_tables_mut()?.get_mut(0)?;
        partner.insert("sequence", value(sequence.parse::<toml_edit::Value>().ok()?));
        let callers = policy.get_mut("callers")?.as_array_of_tables_mut()?;
        for at in 0..self.plan.callers {
            let mut table = callers.get(0)?.clone();
            table.insert("id", value(format!("spiffe://{TRUST_DOMAIN}/{}", caller(at))));
            callers.push(table);
        }
        Some(())
    }

    fn configure(&self, config: &mut DocumentMut) -> Option<()> {
        let number = |count: usize| i64::try_from(count).ok().map(value);
        let lanes = self.plan.callers * self.plan.in_flight;
        config.get_mut("log")?.as_table_like_mut()?.insert("format", value("json"));
        // Each caller of several has a share of it.
        let signer = config.get_mut("signers")?.as_array_of_tables_mut()?.get_mut(0)?;
        signer.insert("sessions", number(self.plan.sessions)?);
        signer.insert("queue_max", number((4 * lanes).max(1024))?);
        if let Some((_, shim)) = &self.plan.waits {
            let real = signer.insert("module", value(shim.to_str()?))?;
            let environment = signer.get_mut("environment")?.as_inline_table_mut()?;
            let path = |name: &str| Some(toml_edit::Value::from(self.path(name).to_str()?));
            environment.insert("P11SHIM_MODULE", real.as_str()?.into());
            environment.insert("P11SHIM_CONTROL", path("control")?);
            environment.insert("P11SHIM_SIGNATURES", path("signatures")?);
        }
        let limits = config.entry("limits").or_insert(toml_edit::table());
        limits.as_table_like_mut()?.insert("streams_max", number(self.plan.in_flight.max(128))?);
        if let (Some(ratio), Some(collector)) = (self.plan.trace_ratio, &self.collector) {
            let endpoint = format!("http://{}", collector.address());
            let otlp = format!("{{ endpoint = '{endpoint}', protocol = 'http/protobuf', trace_ratio = {ratio:?} }}");
            config.insert("otlp", Item::Value(otlp.parse().ok()?));
        }
        Some(())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.stop();
    }
}

fn caller(at: usize) -> String {
    format!("bench-{at}")
}

fn edit(path: &Path, edit: impl FnOnce(&mut DocumentMut) -> Option<()>) -> Result<(), Failure> {
    let named = |fault: &dyn std::fmt::Display| Failure::failed(format!("{}: {fault}", path.display()));
    let text = fs::read_to_string(path).map_err(|fault| named(&fault))?;
    let mut document: DocumentMut = text.parse().map_err(|fault: toml_edit::TomlError| named(&fault))?;
    edit(&mut document).ok_or_else(|| named(&"is not what `quotesign dev` makes"))?;
    write_private(path, document.to_string().as_bytes())
}
