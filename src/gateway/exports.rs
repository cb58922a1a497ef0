//! Where key sets are also served from files or through a CDN: keeps each file as the set is, and has whoever caches a set forget
//! the old one. Files are written for all partners before any program is run, and no program waits for another's.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{Clock as _, SystemClock},
    disk,
    domain::PartnerId,
    key_set,
    pipeline::Pipeline,
    policy::Partner,
    service::jwks::{self, NoSet},
};

/// How often the sets are looked at: a revoked key must be gone within a second.
const EVERY: Duration = Duration::from_millis(500);
/// How long after a failure it is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// How long the hook may take.
const HOOK_MAX: Duration = Duration::from_secs(30);

/// What is done with a set that has changed.
pub(super) struct Exports {
    pub pipeline: Arc<Pipeline>,
    /// Where the sets are written, each as `<partner>/jwks.json`.
    pub folder: Option<PathBuf>,
    /// The program that purges caches, with its arguments.
    pub purge: Vec<String>,
}

/// How far one partner's set has come.
#[derive(Default)]
struct Way {
    /// The set that caches were last made to forget others for.
    purged: Option<String>,
    /// Whether the program runs.
    is_running: bool,
    /// Not before then.
    next: Option<Instant>,
}

/// The end of a program: whose it was, for which set, and why it failed.
type Ended = (PartnerId, String, Result<(), String>);

impl Exports {
    /// Keeps the exported sets as the served ones, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let (mut ways, mut hooks) = (BTreeMap::<PartnerId, Way>::new(), JoinSet::<Ended>::new());
        while self.folder.is_some() || !self.purge.is_empty() {
            self.look(&mut ways, &mut hooks).await;
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
                Some(Ok(ended)) = hooks.join_next() => self.take(&mut ways, ended),
            }
        }
    }

    async fn look(&self, ways: &mut BTreeMap<PartnerId, Way>, hooks: &mut JoinSet<Ended>) {
        let policy = self.pipeline.policy.load_full();
        let Pipeline { stopped, published, .. } = &*self.pipeline;
        published.exporting(&policy.partners().map(|partner| partner.id.clone()).collect());
        for partner in policy.partners() {
            let set = match jwks::set_of(&policy, &partner.id, stopped, published, SystemClock.now()) {
                Ok(set) => set,
                // One of a bundle that others have left behind is not to be written over theirs: of what is there, whatever was
                // revoked goes.
                Err(NoSet::Behind(_)) => match self.without_revoked(partner).await {
                    Some(set) => set,
                    None => continue,
                },
                Err(NoSet::NotTold) => continue,
                Err(fault) => {
                    tracing::error!(partner = %partner.id, %fault, "a key set was not exported");
                    continue;
                }
            };
            if let Err(fault) = self.write(partner, &set).await {
                self.told(&partner.id, Some(fault));
                continue;
            }
            let way = ways.entry(partner.id.clone()).or_default();
            if way.purged.as_ref() == Some(&set) || way.is_running || way.next.is_some_and(|next| Instant::now() < next)
            {
                continue;
            }
            if self.purge.is_empty() {
                way.purged = Some(set);
                self.told(&partner.id, None);
                continue;
            }
            way.is_running = true;
            hooks.spawn(purge(self.purge.clone(), partner.clone(), self.file_of(&partner.id), set));
        }
    }

    fn take(&self, ways: &mut BTreeMap<PartnerId, Way>, (partner, set, ended): Ended) {
        let way = ways.entry(partner.clone()).or_default();
        way.is_running = false;
        match &ended {
            Ok(()) => (way.purged, way.next) = (Some(set), None),
            Err(_) => way.next = Some(Instant::now() + AGAIN),
        }
        self.told(&partner, ended.err());
    }

    fn told(&self, partner: &PartnerId, fault: Option<String>) {
        let published = &self.pipeline.published;
        if let Some(fault) = fault.as_ref().filter(|_| published.exports().get(partner) != Some(&fault)) {
            tracing::error!(%partner, fault, "a key set that changed is not exported yet");
        }
        published.exported(partner.clone(), fault);
    }

    fn file_of(&self, partner: &PartnerId) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(partner.as_str()).join("jwks.json"))
    }

    /// The exported set without the keys that were revoked; nothing where it has none of those, and caches were made to forget them.
    async fn without_revoked(&self, partner: &Partner) -> Option<String> {
        let file = self.file_of(&partner.id)?;
        let present = tokio::task::spawn_blocking(move || std::fs::read_to_string(file)).await.ok()?.ok()?;
        let is_waited_for = self.pipeline.published.exports().get(&partner.id).is_some_and(Option::is_some);
        let stops = self.pipeline.stopped.known();
        let left = key_set::without(&present, |kid| kid.parse().is_ok_and(|kid| stops.is_revoked(&kid)))?;
        (left != present || is_waited_for).then_some(left)
    }

    async fn write(&self, partner: &Partner, set: &str) -> Result<(), String> {
        let Some(file) = self.file_of(&partner.id) else { return Ok(()) };
        let set = set.to_owned();
        tokio::task::spawn_blocking(move || write(&file, &set)).await.map_err(|fault| fault.to_string())?
    }
}

/// Runs the program. What it says goes to the gateway's own standard error.
async fn purge(purge: Vec<String>, partner: Partner, file: Option<PathBuf>, set: String) -> Ended {
    let run = async {
        let Some((program, arguments)) = purge.split_first() else { return Ok(()) };
        let mut hook = tokio::process::Command::new(program);
        // Nothing of the gateway's own environment, where PINs may be, but where programs are.
        hook.args(arguments).env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        hook.env("QUOTESIGN_PARTNER", partner.id.as_str())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        hook.env("QUOTESIGN_JWKS_URL", partner.jwks_url.as_deref().unwrap_or_default());
        hook.env("QUOTESIGN_JWKS_FILE", file.as_deref().unwrap_or(Path::new("")));
        let mut child = hook.spawn().map_err(|fault| format!("`{program}` cannot be run: {fault}"))?;
        let ended = tokio::time::timeout(HOOK_MAX, child.wait()).await;
        let ended = ended.map_err(|_| format!("`{program}` has not ended in {} s", HOOK_MAX.as_secs()))?;
        let ended = ended.map_err(|fault| format!("`{program}`: {fault}"))?;
        if ended.success() { Ok(()) } else { Err(format!("`{program}` has failed: {ended}")) }
    };
    let ended = run.await;
    if ended.is_ok() {
        tracing::info!(partner = %partner.id, "a key set has changed and its caches were purged");
    }
    (partner.id, set, ended)
}

fn write(file: &Path, set: &str) -> Result<(), String> {
    let named = |fault: std::io::Error| format!("{}: {fault}", file.display());
    if std::fs::read_to_string(file).is_ok_and(|present| present == set) {
        return Ok(());
    }
    std::fs::create_dir_all(disk::folder_of(file)).map_err(named)?;
    disk::put(file, set.as_bytes()).map_err(named)
}
