//! What several gateways have to agree on about keys, and what one does while nobody can agree on anything.

use std::{fs, process::Command, sync::Arc, time::Duration};

use quotesign::clock::{Clock as _, SystemClock};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::Replicas;
use crate::{
    commands::client,
    harness::{DAY, Gateway, PARTNER, Quote, Site, done, failed, reason, seconds, toml, until},
    server::Cluster,
    stops::kid,
};

async fn kids(gateway: &Gateway) -> Vec<String> {
    let set = gateway.client("pricing").jwks(&PARTNER.parse().unwrap()).await.unwrap();
    let set: serde_json::Value = serde_json::from_slice(&set).unwrap();
    set["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
}

/// The ledger's server is away: the gateway that was asked neither shows nor signs with the key, says that this is not yet
/// durable, and makes it so once the server is back; then the other follows.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_revoked_while_the_ledger_is_away() {
    let mut cluster = Cluster::new(&[]);
    let replicas = Replicas::new(cluster.empty(), 2, &[]).await;
    let kid = kid(&replicas.site);
    let gateways = [replicas.start(0), replicas.start(1)];
    for gateway in &gateways {
        gateway.signing().await;
    }
    let pricing = gateways[0].quotes("pricing").await;
    pricing.sign(&Quote::number(1)).await.unwrap();
    cluster.crash();
    let args = ["keys", "revoke", &kid, "--reason", "OPS-18", "--cause", "key-exposed-in-logs-or-source"];
    let told = client(&replicas.site, &gateways[0], &args);
    let report = String::from_utf8(told.stdout.clone()).unwrap();
    assert!(failed(told, 5).contains("not yet durable"));
    assert!(report.contains("NOT YET") && report.contains("the ledger is away"), "{report}");
    assert_eq!(kids(&gateways[0]).await, Vec::<String>::new());
    assert_eq!(kids(&gateways[1]).await, std::slice::from_ref(&kid), "nobody could tell it");
    let refused = pricing.sign(&Quote::number(2)).await.unwrap_err();
    assert!(["NO_ACTIVE_KEY", "LEDGER_UNAVAILABLE"].contains(&reason(&refused).as_str()), "{refused:?}");
    cluster.start(&[]);
    until("the other knows", async || kids(&gateways[1]).await.is_empty()).await;
    for gateway in &gateways {
        let pricing = gateway.quotes("pricing").await;
        until("it is refused", async || {
            let status = pricing.sign(&Quote::number(3)).await.unwrap_err();
            assert!(["NO_ACTIVE_KEY", "LEDGER_UNAVAILABLE", ""].contains(&reason(&status).as_str()), "{status:?}");
            reason(&status) == "NO_ACTIVE_KEY"
        })
        .await;
    }
    let record = "SELECT convert_from(record, 'UTF8') FROM audit WHERE event = 'key.revoked'";
    let record = replicas.database.sql(record);
    assert!(record.contains("key-exposed-in-logs-or-source: OPS-18"), "{record}");
    assert!(record.contains("spiffe://dev.quotesign.example/operator"), "who asked for it: {record}");
    for gateway in gateways {
        assert!(gateway.stop().success());
    }
}

/// What is stopped while the ledger is away stands at the gateway that was asked, also after a restart, and in the ledger once that is
/// back: with who did it, and why.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_stopped_while_the_ledger_is_away_outlives_a_restart_with_who_did_it() {
    let mut cluster = Cluster::new(&[]);
    let mut replicas = Replicas::new(cluster.empty(), 1, &[]).await;
    let (kid, anchor) = (kid(&replicas.site), replicas.site.path("anchor"));
    replicas.site.env.insert("QUOTESIGN__LEDGER__ANCHOR".to_owned(), anchor.display().to_string());
    done(replicas.site.run(&["ledger", "anchor", "adopt", "--if-missing", "--reason", "a test"]));
    let gateway = replicas.start(0);
    gateway.signing().await;
    gateway.quotes("pricing").await.sign(&Quote::number(1)).await.unwrap();
    cluster.crash();
    let auditor = "spiffe://dev.quotesign.example/auditor";
    for act in [&["halt", "--all"][..], &["callers", "suspend", auditor], &["keys", "revoke", &kid]] {
        let told = failed(client(&replicas.site, &gateway, &[act, &["--reason", "OPS-30"]].concat()), 5);
        assert!(told.contains("not yet durable"), "{told}");
    }
    gateway.kill();
    let gateway = replicas.start(0);
    let stands = |gateway: &Gateway| {
        let status = done(client(&replicas.site, gateway, &["admin", "status"]));
        ["halted/all", &format!("suspended/{auditor}"), &format!("revoked/{kid}")]
            .iter()
            .all(|stop| status.contains(&format!("STOPPED     {stop}")))
    };
    assert!(stands(&gateway));
    cluster.start(&[]);
    let waits = replicas.site.path("anchor.pending");
    until("it is durable", async || !waits.exists()).await;
    assert!(stands(&gateway));
    for (event, why) in [
        ("signing.halted", "OPS-30"),
        ("caller.suspended", "OPS-30"),
        ("key.revoked", "key-may-be-compromised: OPS-30"),
    ] {
        let records = format!("SELECT convert_from(record, 'UTF8') FROM audit WHERE event = '{event}'");
        let record: serde_json::Value = serde_json::from_str(&replicas.database.sql(&records)).unwrap();
        assert_eq!(record["context"]["caller"], "spiffe://dev.quotesign.example/operator", "{record}");
        assert_eq!(record["facts"]["detail"], why, "{record}");
    }
    done(client(&replicas.site, &gateway, &["resume", "--all", "--reason", "OPS-30"]));
    assert!(gateway.stop().success());
}

/// A quote is at its device while its key is revoked here, and the ledger, which was away, takes its signature before it hears of
/// that: nobody is given it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_revoked_here_is_not_released_before_the_ledger_knows() {
    let mut cluster = Cluster::new(&[]);
    let mut replicas = Replicas::new(cluster.empty(), 1, &[]).await;
    let points = "control::make-durable=return;pipeline::before-sign=1*off->1*sleep(6000)->off";
    replicas.site.env.insert("FAILPOINTS".to_owned(), points.to_owned());
    let (kid, gateway) = (kid(&replicas.site), replicas.start(0));
    gateway.signing().await;
    let pricing = gateway.quotes("pricing").await;
    pricing.sign(&Quote::number(1)).await.unwrap();
    let late = tokio::spawn({
        let pricing = gateway.quotes("pricing").await;
        async move { pricing.sign(&Quote::number(2)).await }
    });
    let reserved = "SELECT count(*) FROM audit WHERE event = 'quote.reserved'";
    until("it is reserved", async || replicas.database.sql(reserved) == "2").await;
    cluster.crash();
    let args = ["keys", "revoke", &kid, "--reason", "OPS-19", "--cause", "key-exposed-in-logs-or-source"];
    failed(client(&replicas.site, &gateway, &args), 5);
    cluster.start(&[]);
    let told = late.await.unwrap().unwrap_err();
    assert_eq!(reason(&told), "KEY_REVOKED", "{told:?}");
    assert_eq!(replicas.database.sql("SELECT count(*) FROM quote WHERE state = 2"), "2", "the ledger has it");
    assert_eq!(replicas.database.sql("SELECT count(*) FROM stop"), "0", "and does not know better");
    assert!(gateway.stop().success());
}

/// It starts while the ledger is away, with a bundle that others have left behind: once it can know that, it shows no set, and what it
/// exported before stays but for a key that is revoked.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_with_an_older_bundle_shows_no_set_and_takes_what_is_revoked_out_of_its_export() {
    let mut cluster = Cluster::new(&[]);
    let mut replicas = Replicas::new(cluster.empty(), 1, &[]).await;
    let (kid, anchor) = (kid(&replicas.site), replicas.site.path("anchor"));
    replicas.site.edit_config(|config| config["jwks"]["export"] = toml("'exported'"));
    replicas.site.env.insert("QUOTESIGN__LEDGER__ANCHOR".to_owned(), anchor.display().to_string());
    done(replicas.site.run(&["ledger", "anchor", "adopt", "--if-missing", "--reason", "a test"]));
    let exported = replicas.site.path(&format!("exported/{PARTNER}/jwks.json"));
    let is_exported = async || fs::read_to_string(&exported).is_ok_and(|set| set.contains(&kid));
    let old = fs::read_to_string(replicas.site.path("policy/policy.toml")).unwrap();
    replicas.site.edit_policy(|_| ());
    let gateway = replicas.start(0);
    gateway.signing().await;
    until("the set is exported", is_exported).await;
    assert!(gateway.stop().success());
    fs::write(replicas.site.path("policy/policy.toml"), old).unwrap();

    cluster.crash();
    let gateway = replicas.start(0);
    until("it shows the keys that it knows", async || {
        gateway.client("pricing").jwks(&PARTNER.parse().unwrap()).await.is_ok()
    })
    .await;
    cluster.start(&[]);
    let ready = async |what: &str| gateway.operations(&format!("/readyz?for={what}")).await.0;
    until("it knows that it is behind", async || ready("jwks").await == 503).await;
    let told = gateway.client("pricing").jwks(&PARTNER.parse().unwrap()).await.unwrap_err().to_string();
    assert!(told.contains("503"), "{told}");
    assert!(is_exported().await, "what was exported is newer than what it has");
    replicas.database.sql(&format!("INSERT INTO stop VALUES ('revoked/{kid}'); UPDATE meta SET stops = stops + 1"));
    until("the revoked key is gone from the export", async || !is_exported().await).await;
    // While the ledger is away again it is behind as before.
    cluster.crash();
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!((ready("jwks").await, ready("signing").await), (503, 503));
    assert!(gateway.stop().success());
}

/// Gateways are restarted one after the other while verifiers fetch, as a balancer leads them: to whoever is ready. No request is
/// lost, neither by a new connection each time nor by one that is kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_drops_no_request_for_the_keys() {
    let mut replicas = Replicas::new(Cluster::shared().empty(), 2, &[]).await;
    replicas.site.env.insert("QUOTESIGN__DRAIN__GRACE_MS".to_owned(), "2000".to_owned());
    let mut gateways = [replicas.start(0), replicas.start(1)].map(Arc::new);
    for gateway in &gateways {
        gateway.signing().await;
    }
    let (lead, led) = watch::channel(gateways.clone());
    let over = CancellationToken::new();
    let mut fetchers = JoinSet::new();
    for at in 0..4 {
        let (led, over) = (led.clone(), over.clone());
        fetchers.spawn(async move {
            let mut fetched = 0;
            while !over.is_cancelled() {
                let gateway = led.borrow()[at % 2].clone();
                assert_eq!(kids(&gateway).await.len(), 1);
                fetched += 1;
            }
            fetched
        });
    }
    for at in 0..2 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        // Health turns, the balancer leads elsewhere, and the one that is asked to end goes on answering meanwhile.
        let other = gateways[1 - at].clone();
        let leaving = std::mem::replace(&mut gateways[at], other);
        leaving.signal(rustix::process::Signal::TERM);
        until("its health has turned", async || leaving.operations("/readyz?for=signing").await.0 == 503).await;
        lead.send(gateways.clone()).unwrap();
        while Arc::strong_count(&leaving) > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(Arc::into_inner(leaving).unwrap().wait().success());
        gateways[at] = Arc::new(replicas.start(at));
        gateways[at].signing().await;
        lead.send(gateways.clone()).unwrap();
    }
    over.cancel();
    let fetched: usize = fetchers.join_all().await.into_iter().sum();
    assert!(fetched > 100, "{fetched} are too few to say anything");
}

/// Gives `replica` a bundle of its own.
fn with_own_bundle(replicas: &Replicas, at: usize) -> Command {
    let own = replicas.site.path(&format!("policy-{at}"));
    let copied = Command::new("cp").arg("-r").arg(replicas.site.path("policy")).arg(&own).status();
    assert!(copied.unwrap().success());
    let mut command = replicas.command(at);
    command.env("QUOTESIGN__POLICY", own);
    command
}

/// A new key is served once the last gateway that counts has followed; one that is gone is not waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_served_when_every_gateway_that_counts_serves_it() {
    let replicas = Replicas::new(Cluster::shared().empty(), 3, &[]).await;
    let commands = [with_own_bundle(&replicas, 0), with_own_bundle(&replicas, 1), with_own_bundle(&replicas, 2)];
    let [first, second, third] = commands.map(|command| Gateway::spawn(command, &replicas.site));
    replicas.key_is_known().await;
    let serving = |kid: &str| {
        let sql = format!("SELECT coalesce(served_since, 0) FROM kid WHERE kid = '{kid}'");
        !["", "0"].contains(&replicas.database.sql(&sql).as_str())
    };

    let new = "quote-signing-later";
    let out = replicas.site.path("new");
    let args = ["keys", "generate", "--signer", "hsm-primary", "--partner", PARTNER, "--kid", new, "--bits", "2048"];
    done(replicas.site.run(&[&args[..], &["--out", out.to_str().unwrap()]].concat()));
    let bundle = |at: usize| {
        let dir = replicas.site.path(&format!("policy-{at}"));
        fs::copy(out.join(format!("{new}.jwk.json")), dir.join(format!("keys/{new}.jwk.json"))).unwrap();
        let path = dir.join("policy.toml");
        let mut policy: toml_edit::DocumentMut = fs::read_to_string(&path).unwrap().parse().unwrap();
        policy["serial"] = toml("9");
        let mut key = policy["keys"][0].as_table().unwrap().clone();
        key["kid"] = toml(&format!("'{new}'"));
        key["locator"] = toml(&format!("'pkcs11:token=quotesign-dev;object={new};type=private'"));
        key["publish_at"] = toml(&seconds(SystemClock.now()));
        for (field, days) in [("sign_from", 1), ("sign_until", 30), ("retire_at", 40)] {
            key[field] = toml(&seconds(SystemClock.now().plus(DAY * days)));
        }
        policy["keys"].as_array_of_tables_mut().unwrap().push(key);
        fs::write(path, policy.to_string()).unwrap();
    };
    let reload = |site: &Site, gateway: &Gateway| done(client(site, gateway, &["admin", "reload-policy"]));
    bundle(0);
    reload(&replicas.site, &first);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!serving(new), "two have not followed");
    bundle(1);
    reload(&replicas.site, &second);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!serving(new), "one has not followed");
    let status = done(client(&replicas.site, &first, &["admin", "status"]));
    assert_eq!(status.lines().filter(|line| line.starts_with("gateway ")).count(), 3, "{status}");
    // It hangs: after its lease it is not waited for.
    third.signal(rustix::process::Signal::STOP);
    until("it is not waited for", async || serving(new)).await;
    third.signal(rustix::process::Signal::CONT);
    for gateway in [first, second, third] {
        gateway.kill();
    }
}
