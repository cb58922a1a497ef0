//! Faults of the device, one after another, under callers that go on asking: what they saw, how long it took until
//! the first good signature after the device was well again, and that no wrong signature left the gateway. The rows
//! of `docs/faults.md` are what these tests print.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use quotesign::jwk::PublicKey;
use serde_json::json;
use tokio::task::JoinSet;

use crate::harness::{Caller, Gateway, PATIENCE, Quote, Site, done, reason, toml, until};
use shim::Shim;

pub mod shim;

const CALLERS: usize = 4;
/// How long callers ask before the fault comes.
const BEFORE: Duration = Duration::from_millis(300);

/// What callers may see of a fault.
#[derive(Clone, Copy, PartialEq)]
enum Seen {
    /// Nothing.
    Nothing,
    /// Refusals that say when to come again, with one of these reasons.
    Refusals(&'static [&'static str]),
}

const AWAY: Seen = Seen::Refusals(&["SIGNER_UNAVAILABLE", "OVERLOADED"]);
const WRONG: Seen = Seen::Refusals(&["SIGNER_UNAVAILABLE", "OVERLOADED", "SIGNATURE_MISMATCH"]);

/// One answer.
struct Outcome {
    began: Instant,
    took: Duration,
    /// The reason of a refusal; nothing for a JWS that verifies.
    refused: Option<String>,
}

/// A gateway on a disturbed token, and callers that ask without end.
struct Trial {
    site: Site,
    shim: Shim,
    gateway: Gateway,
    outcomes: Arc<Mutex<Vec<Outcome>>>,
    over: Arc<AtomicBool>,
    callers: JoinSet<()>,
}

impl Trial {
    async fn start() -> Self {
        let site = Site::new();
        site.edit_signer("probe_interval_ms", 200.into());
        site.edit_signer("call_timeout_ms", 500.into());
        site.edit_policy(|policy| {
            policy["partners"][0]["sequence"]["mode"] = toml_edit::value("assign");
            for quota in ["attempts_per_caller", "signed_per_partner", "signed_per_caller", "signed_per_key"] {
                policy["quotas"][quota] = toml("{ per_second = 100000, burst = 100000 }");
            }
        });
        let shim = Shim::before(&site);
        let gateway = site.serve().await;
        let mut trial =
            Self { site, shim, gateway, outcomes: Arc::default(), over: Arc::default(), callers: JoinSet::new() };
        trial.call().await;
        trial
    }

    async fn call(&mut self) {
        let pinned = Arc::new(self.pinned());
        for _ in 0..CALLERS {
            let (pricing, pinned) = (self.gateway.quotes("pricing").await, Arc::clone(&pinned));
            let (outcomes, over) = (Arc::clone(&self.outcomes), Arc::clone(&self.over));
            self.callers.spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let outcome = ask(&pricing, &pinned).await;
                    let pause = outcome.refused.is_some();
                    outcomes.lock().unwrap().push(outcome);
                    if pause {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
            });
        }
    }

    /// The key as policy pins it.
    fn pinned(&self) -> PublicKey {
        let file = fs::read_dir(self.site.path("policy/keys")).unwrap().next().unwrap().unwrap();
        PublicKey::from_jwk(&fs::read(file.path()).unwrap()).unwrap()
    }

    /// One fault: it comes, lasts, goes; and callers are served again.
    async fn fault(&self, name: &str, lasts: Duration, seen: Seen, come: impl FnOnce(&Self), go: impl FnOnce(&Self)) {
        tokio::time::sleep(BEFORE).await;
        self.outcomes.lock().unwrap().clear();
        come(self);
        tokio::time::sleep(lasts).await;
        let well = Instant::now();
        go(self);
        let mut served = None;
        until(&format!("{name}: callers are served again"), async || {
            let outcomes = self.outcomes.lock().unwrap();
            served =
                outcomes.iter().find(|outcome| outcome.began >= well && outcome.refused.is_none()).map(|at| at.began);
            served.is_some()
        })
        .await;
        let again = first_good(&self.outcomes.lock().unwrap(), well);
        self.told(name, again, seen);
    }

    fn told(&self, name: &str, again: Duration, seen: Seen) {
        let mut refused: BTreeMap<String, usize> = BTreeMap::new();
        let outcomes = self.outcomes.lock().unwrap();
        for reason in outcomes.iter().filter_map(|outcome| outcome.refused.clone()) {
            *refused.entry(reason).or_default() += 1;
        }
        let told: Vec<_> = refused.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let told = if told.is_empty() { "nothing".to_owned() } else { told.join(", ") };
        let longest = outcomes.iter().map(|outcome| outcome.took).max().unwrap_or_default();
        let (count, longest, again) = (outcomes.len(), longest.as_millis(), again.as_millis());
        println!("| {name} | {count} | {told} | {longest} ms | {again} ms | 0 |");
        match seen {
            Seen::Nothing => assert!(refused.is_empty(), "{name}: {refused:?}"),
            Seen::Refusals(reasons) => {
                let other: Vec<_> = refused.keys().filter(|reason| !reasons.contains(&&***reason)).collect();
                assert!(other.is_empty(), "{name}: {refused:?}");
            }
        }
    }

    async fn end(mut self) {
        self.over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.callers.join_next().await {
            ended.unwrap();
        }
        assert!(self.gateway.stop().success());
        done(self.site.run(&["audit", "verify"]));
    }
}

/// From when the device was well until an answer came that was asked for after that.
fn first_good(outcomes: &[Outcome], well: Instant) -> Duration {
    let good = outcomes.iter().filter(|outcome| outcome.refused.is_none() && outcome.began >= well);
    good.map(|outcome| outcome.began.duration_since(well)).min().unwrap()
}

/// Asks for a signature and verifies it with the pinned key: a wrong one fails the test whatever the fault.
async fn ask(pricing: &Caller, pinned: &PublicKey) -> Outcome {
    let began = Instant::now();
    let answer = pricing.sign(&Quote::number(1).without("quote_sequence")).await;
    let refused = match answer {
        Ok(signed) => {
            let (input, signature) = signed.jws.rsplit_once('.').unwrap();
            let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
            assert!(pinned.verifies(input.as_bytes(), &signature), "a wrong signature left the gateway");
            None
        }
        Err(status) => Some(reason(&status)),
    };
    Outcome { began, took: began.elapsed(), refused }
}

/// What concerns a session, or one call in a while, no caller sees.
#[tokio::test(flavor = "multi_thread")]
async fn faults_of_a_session_are_not_seen_by_callers() {
    let trial = Trial::start().await;
    for (name, rule, kind) in [
        ("session handle invalid, every 5th signature", "C_Sign err CKR_SESSION_HANDLE_INVALID every 5", "C_Sign err"),
        ("session closed underneath, every 7th", "C_SignInit close every 7", "C_SignInit close"),
        ("logged out behind our back, every 20th", "C_SignInit logout every 20", "C_SignInit logout"),
        ("an operation left active, every 6th", "C_SignInit err CKR_OPERATION_ACTIVE every 6", "C_SignInit err"),
        ("device error, every 9th", "C_Sign err CKR_DEVICE_ERROR every 9", "C_Sign err"),
        (
            "no session to be had for a while",
            "C_OpenSession err CKR_SESSION_COUNT\nC_Sign err 0xB3 times 1",
            "C_Sign err",
        ),
        (
            "an answer without a key, once in a while",
            "C_FindObjects empty every 3\nC_Sign err 0xB3 every 11",
            "C_FindObjects",
        ),
    ] {
        let seen = if rule.contains("C_OpenSession") { AWAY } else { Seen::Nothing };
        let before = trial.shim.faults(kind);
        let come = |trial: &Trial| trial.shim.rules(rule);
        trial.fault(name, Duration::from_millis(700), seen, come, |trial| trial.shim.rules("")).await;
        assert!(trial.shim.faults(kind) > before, "{name}: the shim did nothing");
    }
    trial.end().await;
}

/// A process that dies, or one session that hangs, is replaced while callers wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_crashes_or_a_session_that_hangs_is_replaced_unseen() {
    let trial = Trial::start().await;
    for (name, rule) in [
        ("the module crashes (SIGSEGV)", "C_Sign segv times 1"),
        ("the module aborts", "C_SignInit abort times 1"),
        ("the module ends its process", "C_Sign exit 3 times 1"),
        ("one call hangs for ever", "C_Sign hang-forever times 1"),
    ] {
        let come = |trial: &Trial| trial.shim.once(rule);
        trial.fault(name, Duration::from_millis(1500), Seen::Nothing, come, |trial| trial.shim.rules("")).await;
    }
    trial.gateway.logged("another stands in for it").await;
    trial.end().await;
}

/// A device that is away is told at once, and serves within a moment of its return.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_was_away_serves_again_by_itself() {
    let trial = Trial::start().await;
    let lasts = Duration::from_millis(2500);
    let rules = |rules: &'static str| move |trial: &Trial| trial.shim.rules(rules);
    let every = "* err CKR_DEVICE_ERROR";
    trial.fault("device error on every call", lasts, AWAY, rules(every), rules("")).await;
    trial.fault("token not present", lasts, AWAY, rules("* err CKR_TOKEN_NOT_PRESENT"), rules("")).await;
    trial.fault("every signature hangs", lasts, AWAY, rules("C_Sign hang"), rules("")).await;
    trial.fault("no slot is listed", lasts, AWAY, rules("C_GetSlotList empty\nC_Sign err 0x30"), rules("")).await;
    let moved = |from: &'static str, to: &'static str| {
        move |trial: &Trial| fs::rename(trial.site.path(from), trial.site.path(to)).unwrap()
    };
    let (gone, back) = (moved("tokens", "tokens.away"), moved("tokens.away", "tokens"));
    trial.fault("token directory gone and back", lasts, AWAY, gone, back).await;
    let module_gone = |trial: &Trial| {
        fs::rename(&trial.shim.module, trial.site.path("module.away")).unwrap();
        trial.shim.rules("C_Sign exit 1 times 1 # with its file gone");
    };
    let module_back = |trial: &Trial| {
        trial.shim.rules("");
        fs::rename(trial.site.path("module.away"), &trial.shim.module).unwrap();
    };
    trial.fault("module missing and back", lasts, AWAY, module_gone, module_back).await;
    trial.end().await;
}

/// The token is there, and holds another key under the label; then the right one again.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_holds_another_key_under_the_label_signs_nothing() {
    let trial = Trial::start().await;
    make_other_token(&trial.site);
    let swap = |away: &'static str, here: &'static str| {
        move |trial: &Trial| {
            fs::rename(trial.site.path("tokens"), trial.site.path(away)).unwrap();
            fs::rename(trial.site.path(here), trial.site.path("tokens")).unwrap();
        }
    };
    let (come, go) = (swap("tokens.own", "tokens.other"), swap("tokens.other", "tokens.own"));
    let name = "token re-initialised with another key";
    trial.fault(name, Duration::from_millis(2500), AWAY, come, go).await;
    trial.gateway.logged("it is not the key that policy pins").await;
    trial.end().await;
}

/// Makes `tokens.other`: the same label and PIN, another key of the same label.
fn make_other_token(site: &Site) {
    let (other, conf) = (site.path("tokens.other"), site.path("other.conf"));
    fs::create_dir(&other).unwrap();
    let tokens = format!("directories.tokendir = {}\nobjectstore.backend = file\n", other.display());
    fs::write(&conf, tokens).unwrap();
    let pin = |name: &str| fs::read_to_string(site.path(name)).unwrap().trim().to_owned();
    let label = "quotesign-dev";
    let mut init = Command::new("softhsm2-util");
    init.args(["--init-token", "--free", "--label", label, "--so-pin", &pin("so-pin"), "--pin", &pin("pin")]);
    assert!(init.env("SOFTHSM2_CONF", &conf).output().unwrap().status.success());
    let own = fs::read_to_string(site.config()).unwrap();
    site.edit_config(|config| {
        config["signers"][0]["environment"]["SOFTHSM2_CONF"] = toml_edit::value(conf.to_str().unwrap());
    });
    let kid = kid(&site.path("policy/keys"));
    let out = site.path("other-keys");
    let args = ["keys", "generate", "--signer", "hsm-primary", "--partner", "acme-remit", "--kid", &kid];
    done(site.run(&[&args[..], &["--out", out.to_str().unwrap()]].concat()));
    fs::write(site.config(), own).unwrap();
}

fn kid(keys: &Path) -> String {
    let file = fs::read_dir(keys).unwrap().next().unwrap().unwrap().file_name();
    file.to_str().unwrap().strip_suffix(".jwk.json").unwrap().to_owned()
}

/// Whatever the device answers, what does not verify stays here, and its key does not sign until it has proved itself.
#[tokio::test(flavor = "multi_thread")]
async fn no_wrong_signature_leaves_the_gateway() {
    let trial = Trial::start().await;
    for (name, rule) in [
        ("a bit is flipped, every 10th", "C_Sign corrupt every 10"),
        ("the signature of another message, every 10th", "C_Sign stale every 10"),
        ("a signature of zeros, every 10th", "C_Sign zero every 10"),
        ("a signature cut short, every 10th", "C_Sign truncate 1 every 10"),
        ("every signature is wrong", "C_Sign corrupt"),
    ] {
        let before = trial.shim.faults("C_Sign");
        let come = |trial: &Trial| trial.shim.rules(rule);
        trial.fault(name, Duration::from_millis(700), WRONG, come, |trial| trial.shim.rules("")).await;
        assert!(trial.shim.faults("C_Sign") > before, "{name}: the shim did nothing");
    }
    trial.end().await;
}

/// A refused PIN is tried once, however long it stays in its place, and until the gateway is started anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_was_changed_stops_the_token_after_one_attempt() {
    let trial = Trial::start().await;
    tokio::time::sleep(BEFORE).await;
    trial.shim.rules("C_Login err CKR_PIN_INCORRECT\nC_Sign exit 1 times 1 # so that it must log in anew");
    trial.gateway.logged("the token is given up; correct its PIN").await;
    until("signing is not serving", async || !trial.gateway.can_sign().await).await;
    trial.shim.rules("");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!trial.gateway.can_sign().await, "it was tried again");
    assert_eq!(trial.shim.faults("C_Login"), 1);
    let refused = ask(&trial.gateway.quotes("pricing").await, &trial.pinned()).await.refused;
    assert_eq!(refused.as_deref(), Some("SIGNER_UNAVAILABLE"));
    println!("| PIN changed | | SIGNER_UNAVAILABLE until the PIN is corrected | | | 0 |");
    let Trial { site, gateway, mut callers, .. } = trial;
    callers.shutdown().await;
    assert!(gateway.stop().success());
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let quote = Quote::number(1).without("quote_sequence").with("subscription_id", json!("sub_1"));
    assert!(tokio::time::timeout(PATIENCE, pricing.sign(&quote)).await.unwrap().is_ok());
}

/// The processes that a gateway has started.
fn children(gateway: &Gateway) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap();
    let children = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("children")).ok());
    children.collect::<String>().split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// A module that hangs while it is opened holds neither a gateway that is to end, nor its own process when the
/// gateway is no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_hangs_holds_nobody_when_the_gateway_ends() {
    let site = Site::new();
    let shim = Shim::before(&site);
    for is_killed in [false, true] {
        shim.rules("C_Login hang-forever");
        let gateway = site.start();
        let mut hosts = Vec::new();
        let logins = shim.faults("C_Login");
        until("the module hangs", async || {
            hosts = children(&gateway);
            shim.faults("C_Login") > logins
        })
        .await;
        assert!(!hosts.is_empty());
        if is_killed {
            gateway.kill();
        } else {
            assert!(gateway.stop().success());
        }
        let is_gone = |pid: &i32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        };
        until("its process has ended", async || hosts.iter().all(is_gone)).await;
    }
}

/// A module is left by nobody while a call is inside: it waits for the call, or ends with its process unfinalised.
#[tokio::test(flavor = "multi_thread")]
async fn no_module_is_left_while_a_call_is_inside() {
    let site = Site::new();
    site.edit_signer("call_timeout_ms", 400.into());
    site.edit_signer("probe_interval_ms", 100.into());
    let shim = Shim::before(&site);
    for (rule, leaves) in [("", true), ("C_Sign delay 250", true), ("C_Sign hang-forever", false)] {
        shim.rules("");
        let gateway = site.serve().await;
        let pricing = gateway.quotes("pricing").await;
        shim.rules(rule);
        let calls: Vec<_> = (0..4)
            .map(|_| {
                let (pricing, last) = (pricing.clone(), Quote::number(1));
                tokio::spawn(async move { drop(pricing.sign(&last).await) })
            })
            .collect();
        let (acted, left) = (shim.faults("C_Sign"), shim.faults("C_Finalize with nobody inside"));
        if !rule.is_empty() {
            until("a call is inside", async || shim.faults("C_Sign") > acted).await;
        }
        assert!(gateway.stop().success());
        for call in calls {
            call.await.unwrap();
        }
        let left = shim.faults("C_Finalize with nobody inside") > left;
        assert!(left || !leaves, "`{rule}`: the module was not left");
    }
    assert_eq!(shim.faults("C_Finalize while"), 0);
}
