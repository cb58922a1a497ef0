//! What this machine says of processes and disks: processor time by process and by thread, and how long a synchronisation takes.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::param::clock_ticks_per_second;

use crate::signer::pkcs11::raw::processor_time;

/// Processor time that was used so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Usage {
    /// By the gateway's own process.
    pub(super) gateway: Duration,
    /// By the processes that hold its PKCS#11 modules.
    pub(super) hosts: Duration,
    /// By this process.
    pub(super) client: Duration,
    /// Of the gateway's and the hosts' threads, by name.
    pub(super) threads: BTreeMap<String, Duration>,
}

impl Usage {
    /// What was used until now, where the gateway's process is known.
    pub(super) fn now(gateway: Option<u32>) -> Self {
        let mut usage = Self { client: processor_time(), ..Self::default() };
        let Some(gateway) = gateway else { return usage };
        usage.gateway = used(&stat(gateway));
        add_threads(gateway, "gateway", &mut usage.threads);
        for host in children(gateway) {
            usage.hosts += used(&stat(host));
            add_threads(host, "host", &mut usage.threads);
        }
        usage
    }

    /// What was used since.
    pub(super) fn since(&self, before: &Self) -> Self {
        let threads = self.threads.iter().map(|(name, used)| {
            let before = before.threads.get(name).copied().unwrap_or_default();
            (name.clone(), used.saturating_sub(before))
        });
        Self {
            gateway: self.gateway.saturating_sub(before.gateway),
            hosts: self.hosts.saturating_sub(before.hosts),
            client: self.client.saturating_sub(before.client),
            threads: threads.collect(),
        }
    }
}

fn stat(process: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{process}/stat"))
}

/// The fields of a `stat` file behind the command, of which the first is the state.
fn fields(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let after = text.rsplit_once(')').map_or("", |(_, after)| after);
    after.split_whitespace().map(str::to_owned).collect()
}

/// User and system time, which a `stat` file has in ticks.
pub(super) fn used(path: &Path) -> Duration {
    let fields = fields(path);
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or_default();
    Duration::from_millis((ticks(11) + ticks(12)) * 1000 / clock_ticks_per_second().max(1))
}

fn add_threads(process: u32, whose: &str, threads: &mut BTreeMap<String, Duration>) {
    for task in entries(&format!("/proc/{process}/task")) {
        let path = PathBuf::from(format!("/proc/{process}/task/{task}"));
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        *threads.entry(format!("{whose}: {}", name.trim())).or_default() += used(&path.join("stat"));
    }
}

fn entries(folder: &str) -> Vec<u32> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The processes that `parent` has started.
fn children(parent: u32) -> Vec<u32> {
    let is_child = |process: &u32| fields(&stat(*process)).get(1).is_some_and(|field| *field == parent.to_string());
    entries("/proc").into_iter().filter(is_child).collect()
}

/// How long it takes to append to a file in `folder` and have that durable, each time; the file is removed again.
pub(super) fn synchronisations(folder: &Path, times: usize) -> Result<Vec<Duration>, String> {
    let named = |fault: std::io::Error| format!("{}: {fault}", folder.display());
    let mut file = tempfile::Builder::new().prefix("quotesign-bench-").tempfile_in(folder).map_err(named)?;
    let append = |file: &mut File| {
        file.write_all(&[b'q'; 4096])?;
        let from = Instant::now();
        file.sync_data()?;
        Ok(from.elapsed())
    };
    (0..times).map(|_| append(file.as_file_mut())).collect::<std::io::Result<_>>().map_err(named)
}
