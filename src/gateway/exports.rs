//! Where key sets are also served from files or through a CDN: writes each set anew when it changes, and has whoever caches it
//! forget the old one.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{
    clock::{Clock as _, SystemClock},
    disk,
    domain::PartnerId,
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

impl Exports {
    /// Keeps the exported sets as the served ones, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut done: BTreeMap<PartnerId, String> = BTreeMap::new();
        while self.folder.is_some() || !self.purge.is_empty() {
            let mut wait = EVERY;
            let policy = self.pipeline.policy.load_full();
            for partner in policy.partners() {
                let Pipeline { stopped, published, .. } = &*self.pipeline;
                let set = match jwks::set_of(&policy, &partner.id, stopped, published, SystemClock.now()) {
                    Ok(set) => set,
                    Err(NoSet::NotTold) => continue,
                    Err(fault) => {
                        tracing::error!(partner = %partner.id, %fault, "a key set was not exported");
                        continue;
                    }
                };
                if done.get(&partner.id) == Some(&set) {
                    continue;
                }
                let exported = self.export(partner, &set).await;
                self.pipeline.published.exported(partner.id.clone(), exported.clone().err());
                match exported {
                    Ok(()) => drop(done.insert(partner.id.clone(), set)),
                    Err(fault) => {
                        tracing::error!(partner = %partner.id, fault, "a key set that changed is not exported yet");
                        wait = AGAIN;
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn export(&self, partner: &Partner, set: &str) -> Result<(), String> {
        let file = self.folder.as_ref().map(|folder| folder.join(partner.id.as_str()).join("jwks.json"));
        if let Some(file) = &file {
            let (file, set) = (file.clone(), set.to_owned());
            tokio::task::spawn_blocking(move || write(&file, &set)).await.map_err(|fault| fault.to_string())??;
        }
        // Also after a start, and where the file is as it should be: whether the caches are is not known.
        if self.purge.is_empty() { Ok(()) } else { self.purge(partner, file.as_deref()).await }
    }

    async fn purge(&self, partner: &Partner, file: Option<&Path>) -> Result<(), String> {
        let Some((program, arguments)) = self.purge.split_first() else { return Ok(()) };
        let mut hook = tokio::process::Command::new(program);
        // Nothing of the gateway's own environment, where PINs may be, but where programs are.
        hook.args(arguments).env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        hook.env("QUOTESIGN_PARTNER", partner.id.as_str()).stdin(Stdio::null()).kill_on_drop(true);
        hook.env("QUOTESIGN_JWKS_URL", partner.jwks_url.as_deref().unwrap_or_default());
        hook.env("QUOTESIGN_JWKS_FILE", file.unwrap_or(Path::new("")));
        let ended = tokio::time::timeout(HOOK_MAX, hook.output()).await;
        let ended = ended.map_err(|_| format!("`{program}` has not ended in {} s", HOOK_MAX.as_secs()))?;
        let ended = ended.map_err(|fault| format!("`{program}` cannot be run: {fault}"))?;
        if ended.status.success() {
            tracing::info!(partner = %partner.id, program, "a key set has changed and its caches were purged");
            return Ok(());
        }
        Err(format!("`{program}` has failed: {}", ended.status))
    }
}

fn write(file: &Path, set: &str) -> Result<(), String> {
    let named = |fault: std::io::Error| format!("{}: {fault}", file.display());
    if std::fs::read_to_string(file).is_ok_and(|present| present == set) {
        return Ok(());
    }
    std::fs::create_dir_all(disk::folder_of(file)).map_err(named)?;
    disk::put(file, set.as_bytes()).map_err(named)
}
