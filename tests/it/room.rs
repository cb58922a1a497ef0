//! A disk that fills: warned of, then nothing is begun, and it heals by itself.

use std::{fs, path::PathBuf, process::Command};

use quotesign::ledger::step::Stage;
use tonic::Code;

use crate::{
    commands::client,
    harness::{Caller, Gateway, PARTNER, Quote, Site, done, failed, reason, refused, until},
};

/// More MiB than any disk has.
const ALL: &str = "100000000";

async fn serves(gateway: &Gateway, part: &str) -> bool {
    let (_, metrics) = gateway.operations("/metrics").await;
    metrics.contains(&format!("quotesign_component_serving{{component=\"{part}\"}} 1"))
}

async fn begins_nothing(pricing: &Caller, number: u64) {
    until("it is told", async || {
        pricing.sign(&Quote::number(number)).await.is_err_and(|status| reason(&status) == "LEDGER_UNAVAILABLE")
    })
    .await;
}
/// The thresholds against what is really free here: by them the disk begins to be full, is full, and has room again.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_is_warned_of_then_begins_nothing_and_the_rest_goes_on() {
    let disk = |warn: &str, min: &str| {
        Site::new()
            .with("QUOTESIGN__LEDGER__DISK_WARN_MB", warn)
            .with("QUOTESIGN__LEDGER__DISK_MIN_MB", min)
            .with("QUOTESIGN__LEDGER__SWEEP_S", "1")
    };
    // Warned of, and ready.
    let site = disk(ALL, "128");
    let gateway = site.serve().await;
    gateway.quotes("pricing").await.sign(&Quote::number(1)).await.unwrap();
    gateway.logged("MiB are free on the volume of the ledger").await;
    let (_, metrics) = gateway.operations("/metrics").await;
    assert!(metrics.contains("quotesign_component_serving{component=\"disk\"} 0"), "{metrics}");
    assert!(metrics.contains("quotesign_component_serving{component=\"signing\"} 1"), "{metrics}");
    assert!(metrics.contains("quotesign_ledger_disk_free_bytes{volume=\"ledger\"} "), "{metrics}");
    assert_eq!(gateway.operations("/readyz?for=signing").await.0, 200);
    let status = done(client(&site, &gateway, &["admin", "status"]));
    assert!(status.contains("disk") && status.contains("MiB are free"), "{status}");
    assert!(gateway.stop().success());

    // Full: nothing new, no number; what was signed is given, what expires is voided, operators act.
    let site = site.with("FAILPOINTS", "pipeline::before-sign=pause");
    let gateway = site.serve().await;
    let held = Quote::number(2).valid(0, 12);
    let (pricing, quote) = (gateway.quotes("pricing").await, held.clone());
    let call = tokio::spawn(async move { pricing.sign(&quote).await });
    site.until_stage(&held, "it is reserved", |_| true).await;
    gateway.kill();
    drop(call.await.unwrap());
    let mut site = site.with("QUOTESIGN__LEDGER__DISK_MIN_MB", ALL);
    site.env.remove("FAILPOINTS");
    let gateway = site.start();
    let pricing = gateway.quotes("pricing").await;
    begins_nothing(&pricing, 3).await;
    assert_eq!(pricing.last().await, 2, "no number was taken");
    assert!(!gateway.can_sign().await, "health tells");
    assert_eq!(gateway.operations("/readyz?for=jwks").await.0, 200);
    done(client(&site, &gateway, &["halt", "--partner", PARTNER, "--reason", "OPS-1"]));
    done(client(&site, &gateway, &["resume", "--partner", PARTNER, "--reason", "OPS-2"]));
    site.until_stage(&held, "it is voided", |stage| *stage == Stage::Voided).await;
    assert!(gateway.stop().success());

    let site = site.with("QUOTESIGN__LEDGER__DISK_WARN_MB", "0").with("QUOTESIGN__LEDGER__DISK_MIN_MB", "0");
    let gateway = site.serve().await;
    gateway.quotes("pricing").await.sign(&Quote::number(3)).await.unwrap();
    let upside_down = failed(site.with("QUOTESIGN__LEDGER__DISK_MIN_MB", "1").run(&["config", "check"]), 2);
    assert!(upside_down.contains("`ledger.disk_min_mb` = `1` is above `ledger.disk_warn_mb` = `0`"), "{upside_down}");
}

/// A file system of its own for as long as a test takes.
pub struct Mounted(pub PathBuf);

impl Mounted {
    /// Where this machine lets one be mounted.
    pub fn try_new(at: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir(&at).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", size, "tmpfs"]).arg(&at).output();
        mount.is_ok_and(|ran| ran.status.success()).then_some(Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_disk_that_fills_and_is_emptied_again() {
    let site = Site::new();
    let Some(disk) = Mounted::try_new(site.path("disk"), "size=64m") else {
        println!("no file system can be mounted here: the thresholds alone are tried");
        return;
    };
    let ledger = disk.0.join("ledger.sqlite");
    let site = site
        .with("QUOTESIGN__LEDGER__SQLITE", ledger.to_str().unwrap())
        .with("QUOTESIGN__LEDGER__DISK_WARN_MB", "48")
        .with("QUOTESIGN__LEDGER__DISK_MIN_MB", "16");
    done(site.run(&["ledger", "migrate"]));
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let first = Quote::number(1);
    let signed = pricing.sign(&first).await.unwrap();
    until("there is room", async || serves(&gateway, "disk").await).await;
    let fill = |mib: usize| fs::write(disk.0.join("filler"), vec![1_u8; mib << 20]).unwrap();
    for round in 0..2_u64 {
        fill(24);
        until("it is warned", async || !serves(&gateway, "disk").await).await;
        assert!(serves(&gateway, "signing").await);
        pricing.sign(&Quote::number(2 + 2 * round)).await.unwrap();
        fill(52);
        until("health tells", async || !gateway.can_sign().await).await;
        begins_nothing(&pricing, 3 + 2 * round).await;
        let last = pricing.last().await;
        assert_eq!(last, 2 + 2 * round, "no number was taken");
        let status = refused(pricing.sign(&Quote::number(last + 1)).await, Code::Unavailable, "LEDGER_UNAVAILABLE");
        assert!(crate::harness::wait(&status) > std::time::Duration::ZERO, "it can be tried again");
        assert_eq!(pricing.sign(&first).await.unwrap().jws, signed.jws, "what was signed is given");
        fs::remove_file(disk.0.join("filler")).unwrap();
        gateway.signing().await;
        until("there is room", async || serves(&gateway, "disk").await).await;
        pricing.sign(&Quote::number(3 + 2 * round)).await.unwrap();
    }
    assert!(gateway.stop().success());
    done(site.run(&["audit", "verify"]));
}

/// The chart asks for a volume of this size: an anchor needs no more, and has bounds of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_volume_is_enough_for_an_anchor_until_it_is_really_full() {
    let values = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/helm/quotesign/values.yaml")).unwrap();
    let (_, anchor) = values.split_once("\n  anchor:\n").unwrap();
    let size = anchor.split_once("size: ").unwrap().1.split_once("Mi\n").unwrap().0;
    let site = Site::new();
    let Some(disk) = Mounted::try_new(site.path("disk"), &format!("size={size}m")) else {
        println!("no file system can be mounted here: the thresholds alone are tried");
        return;
    };
    let site = site
        .with("QUOTESIGN__LEDGER__ANCHOR", disk.0.join("ledger.anchor").to_str().unwrap())
        .with("QUOTESIGN__LEDGER__DISK_WARN_MB", "1024")
        .with("QUOTESIGN__LEDGER__DISK_MIN_MB", "128");
    done(site.run(&["ledger", "anchor", "adopt", "--if-missing", "--reason", "a test"]));
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    pricing.sign(&Quote::number(1)).await.unwrap();
    let told = |room: &str| gateway.log.lock().unwrap().iter().any(|line| line.contains(room));
    assert!(!told("MiB are free on the volume of the anchor"));
    // tmpfs takes what fits, and says that the rest does not.
    drop(fs::write(disk.0.join("filler"), vec![1_u8; size.parse::<usize>().unwrap() << 20]));
    until("health tells", async || !gateway.can_sign().await).await;
    begins_nothing(&pricing, 2).await;
    fs::remove_file(disk.0.join("filler")).unwrap();
    gateway.signing().await;
    pricing.sign(&Quote::number(2)).await.unwrap();
    assert!(gateway.stop().success());
}
