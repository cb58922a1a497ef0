//! The gateway that runs here, where one does.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use tonic_health::pb::health_check_response::ServingStatus;

use crate::{
    cli::{Failure, admin::gateway, block_on, health},
    client::{self, ClientFile},
    proto::GetStatusRequest,
};

use super::{
    Site,
    report::{Check, Report},
};

const ASKED_AS_A_CALLER: [Check; 3] = [Check::GatewayVersion, Check::GatewayPolicy, Check::GatewayHealth];

/// On one machine.
const CONNECTS_WITHIN: Duration = Duration::from_secs(1);

/// Says whether one answers.
pub(super) fn look(site: &Site<'_>, report: &mut Report) -> bool {
    let runs = look_at_operations(site, report);
    match (runs, site.client) {
        (false, _) => report.all_skipped(&ASKED_AS_A_CALLER, "", "no gateway runs here"),
        (true, None) => {
            report.all_skipped(&ASKED_AS_A_CALLER, "", "give --client, an operator's, to ask it as a caller");
        }
        (true, Some(client)) => {
            look_at_health(client, report);
            look_at_status(site, client, report);
        }
    }
    runs
}

/// Where a listener is reached from this host.
fn here(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn look_at_operations(site: &Site<'_>, report: &mut Report) -> bool {
    let (live, ready, address) = (Check::GatewayLive, Check::GatewayReady, here(site.config.operations.listen));
    if address.port() == 0 {
        report.all_skipped(&[live, ready], "", "`operations.listen` is a port of the system's choice");
        return false;
    }
    let asked = block_on(async { client::plain(address, "/livez").await.map_err(Failure::failed) });
    match asked {
        Err(failure) if TcpStream::connect_timeout(&address, CONNECTS_WITHIN).is_ok() => {
            let remedy = "a gateway that hangs is to be restarted: keep its log, it is a fault to report";
            report.fault(live, "", format!("who listens there does not answer: {}", failure.text), remedy);
            report.skipped(ready, "", "who listens there does not answer");
            return false;
        }
        Err(failure) => {
            report.all_skipped(&[live, ready], "", &format!("no gateway runs here: {}", failure.text));
            return false;
        }
        Ok((200, body)) if body.starts_with(b"live") => report.ok(live, "", format!("{address} is alive")),
        Ok((status, _)) => {
            let evidence = format!("{address} answers {status}, and not as a gateway does");
            report.fault(live, "", evidence, "find out who listens there, or mend `operations.listen`");
            report.skipped(ready, "", "what listens there is no gateway");
            return false;
        }
    }
    for purpose in ["signing", "jwks"] {
        let target = format!("/readyz?for={purpose}");
        match block_on(async { client::plain(address, &target).await.map_err(Failure::failed) }) {
            Ok((200, _)) => report.ok(ready, purpose, "ready"),
            Ok((status, body)) => {
                let parts: BTreeMap<String, String> = serde_json::from_slice(&body).unwrap_or_default();
                let down = parts.iter().filter(|(_, state)| *state != "serving");
                let down: Vec<_> = down.map(|(part, why)| format!("{part}: {why}")).collect();
                let evidence = format!("it answers {status}; {}", down.join("; "));
                report.fault(ready, purpose, evidence, "mend what is named: `quotesign admin status` tells the same");
            }
            Err(failure) => report.fault(ready, purpose, failure.text, "look at its log"),
        }
    }
    true
}

fn look_at_health(client: &ClientFile, report: &mut Report) {
    let check = Check::GatewayHealth;
    let remedy = "see that this client's certificate is of a CA in `grpc.client_ca` and its name a caller of policy";
    match block_on(health::ask(client, None)) {
        Ok(ServingStatus::Serving) => report.ok(check, "", format!("SERVING, over mutual TLS at {}", client.grpc.url)),
        Ok(status) => {
            let evidence = format!("{} at {}", status.as_str_name(), client.grpc.url);
            report.fault(check, "", evidence, "`quotesign admin status` says why");
        }
        Err(failure) => report.fault(check, "", failure.text, remedy),
    }
}

fn look_at_status(site: &Site<'_>, client: &ClientFile, report: &mut Report) {
    let (version, policy) = (Check::GatewayVersion, Check::GatewayPolicy);
    if client.admin.is_none() {
        return report.all_skipped(&[version, policy], "", "the client file is no operator's: it has no [admin]");
    }
    let asked = block_on(async {
        let mut gateway = gateway(client).await?;
        let answer = gateway.get_status(GetStatusRequest {}).await.map_err(|status| Failure::refused(&status))?;
        Ok(answer.into_inner())
    });
    let told = match asked {
        Ok(told) => told,
        Err(failure) => {
            report.fault(version, "", failure.text, "give the client file of an operator of this gateway");
            return report.skipped(policy, "", "the gateway does not tell it");
        }
    };
    let own = env!("CARGO_PKG_VERSION");
    if told.version == own {
        report.ok(version, "", format!("{own}, as this command is"));
    } else {
        let evidence = format!("the gateway is {}, and this command {own}", told.version);
        report.warning(version, "", evidence, "start the gateway anew, or use the command that belongs to it");
    }
    match site.bundle {
        None => report.skipped(policy, "", "the bundle does not load"),
        Some(bundle) if bundle.digest.to_string() == told.policy_digest => {
            report.ok(policy, "", format!("serial {} is in force", bundle.serial));
        }
        Some(bundle) => {
            let evidence = format!("serial {} is in force, and serial {} on disk", told.policy_serial, bundle.serial);
            report.warning(policy, "", evidence, "`quotesign admin reload-policy`");
        }
    }
}
