//! The evidence as one page that needs nothing but itself.

use std::fmt::Write as _;

use super::{Dossier, Outcome};

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5b6875; --line: #d9dfe5; --paper: #fff; --good: #1b7f4b; --bad: #c62828; --open: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --soft: #9aa7b4; --line: #34404c; --paper: #161c22; --good: #5ac18a; --bad: #ff7b72; --open: #e3b341; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 72rem; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2rem 0 .4rem; }
.soft { color: var(--soft); } code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere; }
.counts { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.2rem 0; }
.counts div { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem 1rem; min-width: 7rem; }
.counts b { display: block; font-size: 1.7rem; line-height: 1.2; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; } dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
table { width: 100%; border-collapse: collapse; } td { border-top: 1px solid var(--line); padding: .35rem .6rem .35rem 0; vertical-align: top; overflow-wrap: anywhere; }
td:first-child { width: 38%; } td:nth-child(2) { width: 8rem; white-space: nowrap; font-weight: 600; }
.passed { color: var(--good); } .failed { color: var(--bad); } .open { color: var(--open); } .people { color: var(--soft); }
figure { margin: 1.5rem 0; overflow-x: auto; background: #fff; border: 1px solid var(--line); border-radius: .5rem; } figure svg { min-width: 46rem; width: 100%; height: auto; display: block; }
@media print { body { margin: 0; } h2 { break-after: avoid; } tr { break-inside: avoid; } }
";

fn class_of(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed => "failed",
        Outcome::NotLooked => "open",
        Outcome::People => "people",
    }
}

/// The page, with the key calendar as an SVG.
#[must_use]
pub fn html(dossier: &Dossier, calendar: &str) -> String {
    let Dossier { environment, partner, made_at, version, policy_digest, policy_serial, .. } = dossier;
    let title = escaped(&format!("Go-live evidence: {partner} in {environment}"));
    let mut body = format!(
        "<h1>{title}</h1>\n<p class=\"soft\">Made at {} by quotesign {}.</p>\n<div class=\"counts\">",
        escaped(made_at),
        escaped(version)
    );
    // Writing to a String does not fail.
    for outcome in [Outcome::Passed, Outcome::Failed, Outcome::NotLooked, Outcome::People] {
        let (class, count, what) = (class_of(outcome), dossier.count(outcome), outcome.as_str().to_lowercase());
        let _written = write!(body, "<div><b class=\"{class}\">{count}</b>{what}</div>");
    }
    let _written = write!(body, "</div>\n<dl>");
    let serial = policy_serial.to_string();
    let told = [
        ("Key set", &dossier.jwks_url),
        ("Active kid", &dossier.active_kid),
        ("Policy serial", &serial),
        ("Policy digest", policy_digest),
    ];
    for (name, value) in told.into_iter().filter(|(_, value)| !value.is_empty()) {
        let _written = write!(body, "<dt>{name}</dt><dd><code>{}</code></dd>", escaped(value));
    }
    for (role, who) in &dossier.contacts {
        let _written = write!(body, "<dt>Contact, {}</dt><dd>{}</dd>", escaped(role), escaped(who));
    }
    let _written = write!(body, "</dl>\n<figure>{calendar}</figure>\n");
    let mut list = "";
    for answer in &dossier.answers {
        if answer.list != list {
            let end = if list.is_empty() { "" } else { "</table>\n" };
            list = answer.list;
            let _written = writeln!(body, "{end}<h2>{}</h2>\n<table>", escaped(list));
        }
        let _written = writeln!(
            body,
            "<tr><td>{}</td><td class=\"{}\">{}</td><td>{}</td></tr>",
            escaped(answer.asks).replace('`', ""),
            class_of(answer.outcome),
            answer.outcome.as_str().to_lowercase(),
            escaped(&answer.evidence)
        );
    }
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title}</title>\n<style>{STYLE}</style></head>\n<body>\n{body}</table>\n</body></html>\n"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
