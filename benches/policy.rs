//! What a decision costs with few rules and with many, and how long a bundle takes to load. `cargo bench --bench policy`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a benchmark that cannot go on fails, and prints what it found"
)]

use std::{fs, hint::black_box, path::Path, time::Instant};

use quotesign::{
    clock::UtcTime,
    config::LimitsSection,
    domain::Caller,
    policy::{
        Bundle,
        authority::{Action, Resource},
    },
    review::forecast::{Decision, Question, forecast},
    terms::Terms,
};
use tempfile::TempDir;

/// Rounds of each, taken in turn.
const ROUNDS: usize = 7;
const CALLS: u32 = 20_000;

/// The development bundle with `partners` partners and as many rules, shared out among them.
fn bundle(rules: usize, partners: usize) -> Bundle {
    let home = TempDir::new().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/policy-development");
    for folder in ["", "keys", "schemas"] {
        fs::create_dir_all(home.path().join(folder)).unwrap();
        for entry in fs::read_dir(from.join(folder)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), home.path().join(folder).join(entry.file_name())).unwrap();
            }
        }
    }
    let policy = home.path().join("policy.toml");
    let mut text = fs::read_to_string(&policy).unwrap();
    let mut cedar = fs::read_to_string(home.path().join("authorize.cedar")).unwrap();
    let own = cedar.matches("@id(").count();
    let name = |at: usize| if at == 0 { "acme-remit".to_owned() } else { format!("partner-{at}") };
    for at in 1..partners {
        let entry = format!(
            "[[partners]]\nid = \"{}\"\ncontracts = [\"quote-v1\"]\njwks_hosts = [\"p{at}.example\"]\n\
             sequence = {{ scope = [\"partner\"], jump_max = 1000 }}\ncontacts = {{}}\n\n",
            name(at)
        );
        text = text.replacen("# Callers:", &(entry + "# Callers:"), 1);
    }
    for at in own..rules {
        let rule = format!(
            "\n@id(\"rule-{at}\")\n@reason(\"One of many.\")\npermit (\n  principal in Role::\"pricing\",\n  \
             action == Action::\"SignQuote\",\n  resource == Partner::\"{}\"\n)\nwhen {{ context.corridor == \"X{at}-IN\" && \
             context.send_minor <= 500000 }};\n",
            name(at % partners)
        );
        cedar += &rule;
    }
    fs::write(policy, text).unwrap();
    fs::write(home.path().join("authorize.cedar"), cedar).unwrap();
    Bundle::load(home.path()).unwrap_or_else(|problems| panic!("{problems:?}"))
}

fn terms(bundle: &Bundle, caller: &Caller) -> Terms {
    let payload = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/quote.json")).unwrap();
    let at = UtcTime::parse("2026-06-15T10:00:01Z").unwrap();
    let caller = caller.clone();
    let question = Question {
        caller,
        payload,
        quote_id: String::new(),
        values_fixed_at: None,
        at,
        is_reserved: false,
        signed_before: 0,
    };
    let found = forecast(bundle, &LimitsSection::default().payload(), &question);
    assert_eq!(found.decision, Decision::Allow);
    found.terms.unwrap()
}

fn main() {
    let caller: Caller = "spiffe://dev.quotesign.example/pricing".parse().unwrap();
    let sizes = [(14, 1), (100, 10), (400, 40), (400, 1)];
    let bundles: Vec<_> = sizes.iter().map(|(rules, partners)| bundle(*rules, *partners)).collect();
    let terms = terms(&bundles[0], &caller);
    let mut took = vec![Vec::new(); sizes.len()];
    for _ in 0..ROUNDS {
        for (bundle, took) in bundles.iter().zip(&mut took) {
            let begun = Instant::now();
            for _ in 0..CALLS {
                let resource = Resource::Partner(&terms.partner);
                black_box(bundle.authority.decide(&caller, Action::SignQuote, resource, Some(&terms)));
            }
            took.push(begun.elapsed() / CALLS);
        }
    }
    println!("| rules | partners | a decision |\n|---|---|---|");
    for ((rules, partners), took) in sizes.iter().zip(&mut took) {
        took.sort();
        println!("| {rules} | {partners} | {:.1} µs |", took[ROUNDS / 2].as_secs_f64() * 1e6);
    }
    for (rules, partners) in sizes {
        let begun = Instant::now();
        black_box(bundle(rules, partners));
        println!("loading {rules} rules over {partners} partners: {:.0} ms", begun.elapsed().as_secs_f64() * 1e3);
    }
}
