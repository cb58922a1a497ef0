//! Pairs through one, two and three gateways' ledgers in one database, on the same machine as the server.

use quotesign::ledger::Ledger;

use crate::{measure, server::Cluster, started};

pub(crate) fn run() {
    let cluster = Cluster::new(&[]);
    println!("| gateways | callers in all | ledger, pairs/s | CPU a pair, without the server's | p50 | p99 |");
    println!("|---|---|---|---|---|---|");
    for gateways in 1..=3 {
        for callers in [1, 8, 64, 256] {
            let database = cluster.database();
            let ledgers: Vec<Ledger> =
                (0..gateways).map(|at| started(Box::new(database.open(&format!("gw-{at}"))))).collect();
            println!("| {gateways} | {callers} | {} |", measure(ledgers, callers, 1).cells());
        }
    }
}
