//! From nothing to the first quote in production, by the very commands of `docs/first-start.md`, with a moved
//! clock; each step that can be skipped is skipped once and refused. And what a moved clock does to a gateway.

use std::{
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Command, Output},
};

use quotesign::clock::{Clock as _, SystemClock, UtcTime};
use rcgen::CertificateParams;
use serde_json::json;
use time::macros::datetime;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::{Gateway, PARTNER, Quote, Site, client_certificate, reason, seconds, until};

pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The time of day of everything that runs in a site. Even clocks are left alone.
pub struct Hands(PathBuf);

impl Hands {
    /// Gives `site` a time of day of its own: so far the machine's.
    pub fn of(site: &mut Site) -> Self {
        let libraries = fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
        let found = libraries.map(|dir| dir.join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
        let library = found.expect("libfaketime is not installed; on Debian: apt-get install faketime");
        let hands = Self(site.path("hands"));
        hands.turn(0);
        for (name, value) in [
            ("LD_PRELOAD", library.to_str().unwrap()),
            ("FAKETIME_TIMESTAMP_FILE", hands.0.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ] {
            site.env.insert(name.to_owned(), value.to_owned());
        }
        hands
    }

    /// Turns to the machine's time and so many seconds.
    pub fn turn(&self, ahead_s: i64) {
        let new = self.0.with_extension("new");
        fs::write(&new, format!("{ahead_s:+}\n")).unwrap();
        fs::rename(new, &self.0).unwrap();
    }

    fn turn_to(&self, at: &str) {
        self.turn((UtcTime::parse(at).unwrap().millis() - SystemClock.now().millis()) / 1000);
    }
}

/// A development site with such hands, and a key that has signed since long ago.
fn with_hands(site: Site) -> (Site, Hands) {
    let mut site = site;
    site.edit_policy(|policy| {
        for time in ["publish_at", "sign_from"] {
            policy["keys"][0][time] = toml_edit::value("2026-01-01T00:00:00Z".parse::<toml_edit::Datetime>().unwrap());
        }
        policy["rotation"]["key_age_max_days"] = toml_edit::value(4000);
    });
    let hands = Hands::of(&mut site);
    (site, hands)
}

/// A quote whose times are from now and so many seconds.
fn quote_ahead(number: u64, ahead_s: i64) -> Quote {
    let at = |after_s: i64| seconds(UtcTime::from_millis(SystemClock.now().millis() + (ahead_s + after_s) * 1000));
    Quote::number(number).with("issued_at", json!(at(0))).with("expires_at", json!(at(600)))
}

/// What stands between two headings of `docs/first-start.md`.
struct Step(String);

impl Step {
    fn number(number: u32) -> Self {
        let page = fs::read_to_string(format!("{ROOT}/docs/first-start.md")).unwrap();
        let heading = format!("\n## {number}. ");
        let (_, rest) = page.split_once(&heading).unwrap_or_else(|| panic!("the page has no step {number}"));
        Self(rest.split("\n## ").next().unwrap().to_owned())
    }

    fn blocks(&self, language: &str) -> Vec<String> {
        let fence = format!("```{language}\n");
        let after_fence = self.0.split(&fence).skip(1);
        after_fence.map(|text| text.split("```").next().unwrap().to_owned()).collect()
    }

    fn block(&self, language: &str, nth: usize) -> String {
        self.blocks(language).get(nth).cloned().unwrap_or_else(|| panic!("{language} block {nth} is missing"))
    }

    fn commands(&self) -> Vec<String> {
        self.blocks("sh").concat().lines().map(str::to_owned).collect()
    }
}

/// A site in production as the page has it, before its second step.
pub struct Production {
    /// Another volume than the site's.
    _volume: tempfile::TempDir,
    pub site: Site,
    hands: Hands,
}

const BEFORE: &str = "2026-12-01T08:00:00Z";
const PUBLISHED: &str = "2026-12-01T09:00:05Z";
const CONFIRMED: &str = "2026-12-02T10:31:00Z";
pub const SIGNING: &str = "2026-12-04T09:00:05Z";

impl Production {
    pub fn new() -> Self {
        let mut site = Site::new();
        let softhsm = site.path("softhsm2.conf");
        site.env.insert("SOFTHSM2_CONF".to_owned(), softhsm.display().to_string());
        for name in ["ledger.sqlite", "ledger.sqlite.lock"] {
            fs::remove_file(site.path(name)).unwrap();
        }
        fs::remove_dir_all(site.path("policy")).unwrap();
        let step = Step::number(1);
        fs::write(site.config(), step.block("toml", 0)).unwrap();
        for caller in ["operator", "pricing"] {
            let mut params: CertificateParams =
                client_certificate(&[&format!("spiffe://prod.acme-remit.example/{caller}")], &[]);
            params.not_before = datetime!(2026-01-01 0:00 UTC);
            site.issue(caller, params);
        }
        let initialised = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", "quotes", "--so-pin", "87654321", "--pin", "12345678"])
            .env("SOFTHSM2_CONF", site.path("softhsm2.conf"))
            .output()
            .unwrap();
        assert!(initialised.status.success());
        fs::write(site.path("pin"), "12345678\n").unwrap();
        let copied = Command::new("cp")
            .arg("-r")
            .arg(format!("{ROOT}/examples/policy-development"))
            .arg(site.path("policy"))
            .status();
        assert!(copied.unwrap().success());
        for jwk in fs::read_dir(site.path("policy/keys")).unwrap() {
            fs::remove_file(jwk.unwrap().path()).unwrap();
        }
        symlink(format!("{ROOT}/examples"), site.path("examples")).unwrap();
        let volume = tempfile::TempDir::new_in("/dev/shm").unwrap();
        symlink(volume.path(), site.path("anchor")).unwrap();
        let hands = Hands::of(&mut site);
        hands.turn_to(BEFORE);
        let production = Self { _volume: volume, site, hands };
        production.policy("dev.quotesign.example", "prod.acme-remit.example");
        production.policy("environment = \"development\"", "environment = \"production\"");
        production.policy("propagation_s = 0", "propagation_s = 86400");
        production.site.edit_policy(|policy| drop(policy.remove("keys")));
        production.policy("serial = 2", "serial = 1");
        production
    }

    /// Replaces a text of `policy.toml`.
    fn policy(&self, from: &str, to: &str) {
        let path = self.site.path("policy/policy.toml");
        let policy = fs::read_to_string(&path).unwrap();
        assert!(policy.contains(from), "policy.toml has no `{from}`");
        fs::write(path, policy.replace(from, to)).unwrap();
    }

    /// Runs a line of the page in the site's directory.
    pub fn line(&self, line: &str) -> Output {
        let command = self.site.command();
        let bin = PathBuf::from(command.get_program());
        let path = format!("{}:{}", bin.parent().unwrap().display(), std::env::var("PATH").unwrap());
        let mut shell = Command::new("sh");
        shell.args(["-c", line]).current_dir(self.site.path(".")).env("PATH", path);
        for (name, value) in command.get_envs() {
            shell.env(name, value.unwrap());
        }
        shell.output().unwrap()
    }

    /// Runs a line that must end well, and gives what it printed.
    pub fn good(&self, line: &str) -> String {
        let output = self.line(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a line that must fail with this code, and gives what it said.
    pub fn bad(&self, line: &str, code: i32) -> String {
        let output = self.line(line);
        assert_eq!(output.status.code(), Some(code), "{line}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Steps 2, 4 and the first half of 5.
    pub fn with_key(self) -> Self {
        self.good(&Step::number(2).commands().join("\n"));
        self.good(&Step::number(4).commands().join("\n"));
        let entry = Step::number(5).block("toml", 0);
        let path = self.site.path("policy/policy.toml");
        fs::write(&path, fs::read_to_string(&path).unwrap() + "\n" + &entry).unwrap();
        self.policy("serial = 1", "serial = 2");
        self
    }

    /// Step 8 without its commands.
    pub fn confirm(&self) {
        self.policy("sign_until =", &format!("{}sign_until =", Step::number(8).block("toml", 0)));
        self.policy("serial = 2", "serial = 3");
    }

    /// All of the page but its last step: a key that was served since it was published, and is confirmed.
    pub async fn signing() -> Self {
        let production = Self::new().with_key();
        production.confirm();
        let gateway = production.serve(PUBLISHED);
        production.site.journalled("key.served", 1).await;
        production.good(&Step::number(9).commands().join("\n"));
        assert!(gateway.stop().success());
        production
    }

    /// Serves from `at` on, and writes the client files of step 1 with its addresses.
    pub fn serve(&self, at: &str) -> Gateway {
        self.hands.turn_to(at);
        let line = Step::number(6).block("sh", 0);
        let arguments = line.trim().strip_prefix("quotesign ").unwrap().split(' ');
        let mut command = self.site.command();
        command.args(arguments).current_dir(self.site.path("."));
        let gateway = Gateway::spawn(command, &self.site);
        let mut operator = Step::number(1).block("toml", 1);
        for (port, front) in [("8443", "grpc"), ("8444", "admin"), ("8445", "jwks")] {
            operator = operator.replace(&format!("127.0.0.1:{port}"), &gateway.address(front).to_string());
        }
        let pricing = operator.split("[admin]").next().unwrap().replace("operator", "pricing");
        fs::write(self.site.path("operator.toml"), operator).unwrap();
        fs::write(self.site.path("pricing.toml"), pricing).unwrap();
        gateway
    }

    /// What a quote of the pricing service gets that is not filled in by `--fill`.
    pub fn refusal(&self, number: u64, at: &str) -> String {
        let ahead = (UtcTime::parse(at).unwrap().millis() - SystemClock.now().millis()) / 1000;
        fs::write(self.site.path("quote.json"), quote_ahead(number, ahead).0.to_string()).unwrap();
        let said = self.bad("quotesign sign quote.json --client pricing.toml", 1);
        said.strip_prefix("quotesign: ").unwrap().split(':').next().unwrap().to_owned()
    }
}

async fn until_key_signs(gateway: &Gateway) {
    until("the key is proven", async || {
        gateway.operations("/readyz?for=jwks").await.1.contains(r#""key/quote-signing-2026-12":"serving""#)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_leads_from_nothing_to_the_first_quote() {
    let production = Production::new();
    let checks = Step::number(3).commands();
    let said = production.bad(&checks[1], 2);
    assert!(said.contains("does not exist: run `quotesign ledger migrate`"), "{said}");
    let [migrate] = &Step::number(2).commands()[..] else { panic!("step 2 is one command") };
    assert!(production.good(migrate).ends_with("ledger.sqlite: ready for production\n"));
    assert!(production.good(migrate).ends_with("ledger.sqlite: ready for production\n"), "again");
    assert!(production.good(&checks[0]).contains("no key may sign now"));
    assert!(production.good(&checks[1]).starts_with("quotesign.toml: good"));

    let [generate] = &Step::number(4).commands()[..] else { panic!("step 4 is one command") };
    let printed = production.good(generate);
    for line in Step::number(5).block("toml", 0).lines().take(5) {
        assert!(printed.contains(line), "`{line}` is not in {printed}");
    }
    production.bad(generate, 1);
    let entry = Step::number(5).block("toml", 0);
    let policy = production.site.path("policy/policy.toml");
    fs::write(&policy, fs::read_to_string(&policy).unwrap() + "\n" + &entry).unwrap();
    production.policy("serial = 1", "serial = 2");
    let [check, config, digest] = &Step::number(5).commands()[..] else { panic!("step 5 is three commands") };
    let checked = production.good(check);
    assert!(checked.contains("Planned") && checked.contains("no key may sign now"), "{checked}");
    production.good(config);
    let digest = production.good(digest);
    assert!(checked.contains(digest.trim()));

    let gateway = production.serve(PUBLISHED);
    until_key_signs(&gateway).await;
    let [_, jwks, status, health] = &Step::number(6).commands()[..] else { panic!("step 6 is four commands") };
    assert!(production.good(jwks).contains("quote-signing-2026-12"));
    let told = production.good(status);
    assert!(told.contains("PRODUCTION") && told.contains("NOT SERVING signing: no"), "{told}");
    for part in ["clock", "ledger", "signer/hsm-primary", "key/quote-signing-2026-12"] {
        assert!(told.lines().any(|line| line.starts_with("serving ") && line.ends_with(part)), "{part}: {told}");
    }
    assert_eq!(production.line(health).stdout, b"NOT_SERVING\n");
    production.bad(health, 1);
    assert_eq!(production.refusal(1, PUBLISHED), "NO_ACTIVE_KEY");
    let [_, fill, ..] = &Step::number(10).commands()[..] else { panic!() };
    assert!(production.bad(fill, 1).contains("SEQUENCE_SCOPE_UNKNOWN"));
    assert!(gateway.stop().success());

    let gateway = production.serve(CONFIRMED);
    let [check, reload] = &Step::number(8).commands()[..] else { panic!("step 8 is two commands") };
    production.confirm();
    production.policy("serial = 3", "serial = 2");
    assert!(production.bad(reload, 1).contains("BUNDLE_REFUSED"));
    production.policy("serial = 2", "serial = 3");
    production.good(check);
    assert!(production.good(reload).contains("policy serial 3"));
    let [seed] = &Step::number(9).commands()[..] else { panic!("step 9 is one command") };
    assert!(production.good(seed).starts_with("the sequence was created with the floor 0"));
    assert!(production.bad(seed, 1).contains("FLOOR_NOT_RAISED"));
    assert_eq!(production.refusal(1, CONFIRMED), "NO_ACTIVE_KEY");
    assert!(gateway.stop().success());

    let gateway = production.serve(SIGNING);
    gateway.signing().await;
    let [health, first, again, verify, tail] = &Step::number(10).commands()[..] else { panic!("step 10 is five") };
    assert_eq!(production.good(health), "SERVING\n");
    let jws = production.good(first);
    let replay = production.good(again);
    assert!(replay.contains("\"replayed\": true") && replay.contains(jws.trim()));
    assert!(production.good(verify).contains("vouched for"));
    let tail = production.good(tail);
    assert!(tail.contains("quote.committed") && tail.contains("quote.replayed"), "{tail}");
    assert!(gateway.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_operator_did_not_confirm_does_not_sign() {
    let production = Production::new().with_key();
    let gateway = production.serve(SIGNING);
    until_key_signs(&gateway).await;
    production.good(&Step::number(9).commands().join("\n"));
    assert_eq!(production.refusal(1, SIGNING), "NO_ACTIVE_KEY");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_that_nobody_seeded_takes_no_number() {
    let production = Production::new().with_key();
    production.confirm();
    let gateway = production.serve(PUBLISHED);
    production.site.journalled("key.served", 1).await;
    assert!(gateway.stop().success());
    let gateway = production.serve(SIGNING);
    gateway.signing().await;
    assert_eq!(production.refusal(1, SIGNING), "SEQUENCE_SCOPE_UNKNOWN");
}

/// Whatever the file says: a key that was first served half a day ago is not known to caches. That is told before `sign_from`.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_not_served_for_the_propagation_time_does_not_sign() {
    let production = Production::new().with_key();
    production.confirm();
    let gateway = production.serve("2026-12-03T12:00:00Z");
    production.site.journalled("key.served", 1).await;
    assert!(gateway.stop().success());
    let gateway = production.serve("2026-12-03T12:01:00Z");
    gateway.logged("will not sign from 2026-12-04T09:00:00Z on: its propagation time ends at 2026-12-04T1").await;
    until("monitoring is told", async || {
        let metrics = gateway.operations("/metrics").await.1;
        let line = metrics.lines().find(|line| line.starts_with("quotesign_timeline_warnings{")).unwrap_or_default();
        line.rsplit_once(' ').is_some_and(|(_, count)| count.parse::<u32>().unwrap() >= 1)
    })
    .await;
    production.good(&Step::number(9).commands().join("\n"));
    assert!(gateway.stop().success());
    let gateway = production.serve(SIGNING);
    assert_eq!(production.refusal(1, SIGNING), "NO_ACTIVE_KEY");
    until_key_signs(&gateway).await;
    let told = production.good(&Step::number(6).commands()[2]);
    let why = "NOT SERVING signing/acme-remit: `quote-signing-2026-12` may not sign yet: its propagation time ends at";
    assert!(told.contains(why), "{told}");
    assert!(gateway.stop().success());
    let gateway = production.serve("2026-12-04T12:00:30Z");
    gateway.signing().await;
    production.good(&Step::number(10).commands()[1]);
    assert!(gateway.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_was_not_migrated_is_not_served() {
    let production = Production::new();
    let said = production.bad("quotesign serve", 2);
    assert!(said.contains("does not exist: run `quotesign ledger migrate`"), "{said}");
}

/// What production does not take, and the one line that says so.
#[tokio::test(flavor = "multi_thread")]
async fn production_takes_no_relaxation() {
    let mut production = Production::new().with_key();
    production.site.env.insert("QUOTESIGN__LEDGER__KEEP_DAYS".to_owned(), "1".to_owned());
    let forgotten = production.bad("quotesign config check", 2);
    assert!(forgotten.contains("the ledger keeps it for 86400 s; make `ledger.keep_days` greater"), "{forgotten}");
    production.site.env.remove("QUOTESIGN__LEDGER__KEEP_DAYS");
    let policy = |from: &str, to: &str, wanted: &str| {
        production.policy(from, to);
        for command in ["quotesign config check", "quotesign serve"] {
            let said = production.bad(command, 2);
            let lines: Vec<_> = said.lines().filter(|line| line.starts_with("quotesign: ")).collect();
            assert!(lines.len() == 1 && lines[0].contains(wanted), "{command}: {said}");
        }
        production.policy(to, from);
    };
    policy("propagation_s = 86400", "propagation_s = 0", "`publication.propagation_s` = 0 is for development alone");
    policy(
        "sign_from  = 2026-12-04",
        "sign_from  = 2026-12-02T08:59:59Z #",
        "`sign_from` must be at least 86400 s after",
    );
    policy("environment = \"production\"", "environment = \"sandbox\"", "this gateway is for production");
    let kept = "partner    = \"acme-remit\"";
    let relaxed = |line: &str| format!("{kept}\n{line}");
    policy(kept, &relaxed("attributes = \"off\""), "`attributes` = \"off\" is for development alone");
    policy(kept, &relaxed("attributes = \"warn\""), "needs `attributes_reason` in production");
    policy(kept, &relaxed("attributes_reason = \"none\""), "goes with `attributes` = \"warn\"; remove it");
    production.policy(
        kept,
        &relaxed("attributes = \"warn\"\nattributes_reason = \"the module says LOCAL=false of its own keys\""),
    );
    production.good("quotesign config check");
}

fn is_untrusted(refused: &Status) -> bool {
    (refused.code(), reason(refused).as_str()) == (Code::Unavailable, "CLOCK_UNTRUSTED")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_the_clock_stops_signing_alone_and_undone_it_heals_at_once() {
    let (site, hands) = with_hands(Site::new());
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    pricing.sign(&Quote::number(1)).await.unwrap();
    for ahead in [3600, -3600] {
        hands.turn(ahead);
        let refused = pricing.sign(&quote_ahead(2, ahead)).await.unwrap_err();
        assert!(is_untrusted(&refused) && refused.get_details_retry_info().is_some(), "{ahead}: {refused}");
        until("health tells", async || !gateway.can_sign().await).await;
        assert_eq!(gateway.operations("/readyz?for=jwks").await.0, 200);
        let client = gateway.client("pricing");
        assert!(String::from_utf8_lossy(&client.jwks(&PARTNER.parse().unwrap()).await.unwrap()).contains("kid"));
        hands.turn(0);
        pricing.sign(&Quote::number(if ahead > 0 { 3 } else { 4 })).await.unwrap();
        gateway.signing().await;
    }
    // What was refused under a wrong clock does not make the right one wrong.
    hands.turn(3600);
    assert!(is_untrusted(&pricing.sign(&quote_ahead(5, 3600)).await.unwrap_err()));
    assert!(gateway.stop().success());
    hands.turn(0);
    let gateway = site.serve().await;
    gateway.quotes("pricing").await.sign(&Quote::number(5)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_lasts_heals_once_it_has_settled() {
    let (site, hands) = with_hands(Site::new().with("QUOTESIGN__CLOCK__SETTLE_S", "2"));
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    hands.turn(3600);
    let quote = quote_ahead(1, 3600);
    assert!(is_untrusted(&pricing.sign(&quote).await.unwrap_err()));
    until("the step has settled", async || {
        let answer = pricing.sign(&quote).await;
        assert!(answer.as_ref().err().is_none_or(is_untrusted), "{answer:?}");
        answer.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_settles_behind_the_journal_is_not_trusted() {
    let (site, hands) = with_hands(Site::new().with("QUOTESIGN__CLOCK__SETTLE_S", "2"));
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    pricing.sign(&Quote::number(1)).await.unwrap();
    hands.turn(-3600);
    until("the step has settled", async || {
        let refused = pricing.sign(&quote_ahead(2, -3600)).await.unwrap_err();
        assert!(is_untrusted(&refused), "{refused}");
        refused.message().contains("behind the newest journal record")
    })
    .await;
    hands.turn(0);
    let quote = Quote::number(2);
    until("the right time has settled", async || pricing.sign(&quote).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_behind_the_journal_is_not_trusted_however_often_the_gateway_is_started() {
    let (site, hands) = with_hands(Site::new());
    let gateway = site.serve().await;
    gateway.quotes("pricing").await.sign(&Quote::number(1)).await.unwrap();
    assert!(gateway.stop().success());
    hands.turn(-3600);
    for start in 1..=3 {
        let gateway = site.start();
        let pricing = gateway.quotes("pricing").await;
        let refused = pricing.sign(&quote_ahead(2, -3600)).await.expect_err(&format!("start {start}"));
        assert!(is_untrusted(&refused), "start {start}: {refused}");
        assert!(gateway.stop().success());
    }
    hands.turn(0);
    site.serve().await.quotes("pricing").await.sign(&Quote::number(2)).await.unwrap();
}

/// A restart takes no bundle that a reload would not: a key that has ended does not begin again.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_has_ended_does_not_begin_again() {
    let production = Production::signing().await;
    let gateway = production.serve("2027-06-12T09:00:05Z");
    production.site.journalled("key.turned", 2).await;
    assert!(gateway.stop().success());
    production.policy("2027-06-04T09:00:00Z", "2027-07-04T09:00:00Z");
    production.policy("2027-06-11T09:00:00Z", "2027-07-11T09:00:00Z");
    production.policy("serial = 3", "serial = 4");
    let said = production.bad("quotesign serve", 2);
    let why =
        "the key `quote-signing-2026-12` was retired and would be active again; put its times back, or make a new key";
    assert!(said.contains(why), "{said}");
}
