//! A rolling restart: each of three gateways is ended and started again, one after another, while a client in another language
//! calls them by the service config of the documentation and has no retries of its own.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use super::Replicas;
use crate::{
    harness::{Gateway, toml, until},
    kills::number_from,
    server::Cluster,
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Starts the gateway `at` where it listened before, or anywhere.
fn start(replicas: &Replicas, at: usize, listen: Option<String>) -> Gateway {
    let mut command = replicas.command(at);
    if let Some(listen) = listen {
        command.env("QUOTESIGN__GRPC__LISTEN", listen);
    }
    Gateway::spawn(command, &replicas.site)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_fails_no_call_of_a_client_with_the_usual_retry_policy() {
    let rounds = number_from("TRIALS", 1).clamp(1, 10);
    let cluster = Cluster::new(&[]);
    let replicas = Replicas::new(cluster.empty(), 3, &[]).await;
    replicas.site.edit_policy(|policy| policy["partners"][0]["sequence"]["mode"] = toml("'assign'"));
    let mut gateways = Vec::new();
    for at in 0..3 {
        gateways.push(start(&replicas, at, None));
    }
    for gateway in &gateways {
        gateway.signing().await;
    }
    let addresses: Vec<_> = gateways.iter().map(|gateway| gateway.address("grpc").to_string()).collect();
    let mut client = Command::new(format!("{ROOT}/.tools/py/bin/python"))
        .arg(format!("{ROOT}/tests/external/rolling_client.py"))
        .arg(format!("{ROOT}/clients/service-config.json"))
        .arg(replicas.site.path("tls"))
        .arg("60")
        .arg(format!("{ROOT}/examples/quote.json"))
        .args(&addresses)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    for _ in 0..rounds {
        for (at, address) in addresses.iter().enumerate() {
            let gateway = gateways.remove(0);
            tokio::task::block_in_place(|| assert!(gateway.stop().success()));
            let again = start(&replicas, at, Some(address.clone()));
            again.signing().await;
            gateways.push(again);
            tokio::time::sleep(Duration::from_millis(1_500)).await;
        }
    }
    client.stdin.take().unwrap().flush().unwrap();
    let output = tokio::task::block_in_place(|| client.wait_with_output()).unwrap();
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    println!("{} restarts: {told}", 3 * rounds);
    assert_eq!(told["failed"], serde_json::json!([]), "{told}");
    assert_eq!((&told["lost"], &told["signed"]), (&0.into(), &told["calls"]), "{told}");
    let signed = told["signed"].as_u64().unwrap();
    assert!(signed > 300, "too little happened to say anything: {told}");
    let committed = "SELECT count(*) FROM audit WHERE event = 'quote.committed'";
    until("all is in the ledger", async || replicas.database.sql(committed) == signed.to_string()).await;
}
