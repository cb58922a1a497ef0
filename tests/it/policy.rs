//! The bundles that are shipped, what is refused of them when it is broken, and the commands that read them.

mod mutants;
mod reload;
mod replayed;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use quotesign::clock::{Clock as _, SystemClock};

use crate::harness::{DAY, Site, done, failed, quotesign, seconds, toml};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const AT: &str = "2026-11-26T10:00:01Z";
const PRICING: &str = "spiffe://prod.quotesign.example/acme-pricing";

/// The example bundle, to be changed.
pub struct Copy(TempDir);

impl Copy {
    pub fn new() -> Self {
        let home = TempDir::with_prefix("quotesign-policy-").unwrap();
        copy(&Path::new(ROOT).join("policy"), home.path());
        Self(home)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn replace(&self, file: &str, find: &str, replace: &str) {
        let text = fs::read_to_string(self.path(file)).unwrap();
        assert!(text.contains(find), "{file} does not hold {find}");
        fs::write(self.path(file), text.replacen(find, replace, 1)).unwrap();
    }

    fn run(&self, args: &[&str]) -> std::process::Output {
        let (verb, rest) = args.split_first().unwrap();
        quotesign().args(["policy", verb]).arg(self.0.path()).args(rest).output().unwrap()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A file of `tests/fixtures/policy/reject/`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Broken {
    says: Vec<String>,
    edits: Vec<Edit>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    file: String,
    /// Absent where the file is taken away; empty where it is made.
    find: Option<String>,
    replace: Option<String>,
}

#[test]
fn each_broken_bundle_is_refused_with_the_lines_that_say_why() {
    let mut seen = 0;
    for entry in fs::read_dir(Path::new(ROOT).join("tests/fixtures/policy/reject")).unwrap() {
        let path = entry.unwrap().path();
        let broken: Broken = toml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let bundle = Copy::new();
        for Edit { file, find, replace } in &broken.edits {
            match (find.as_deref(), replace.as_deref()) {
                (None, None) => fs::remove_file(bundle.path(file)).unwrap(),
                (Some(""), Some(text)) => fs::write(bundle.path(file), text).unwrap(),
                (Some(find), Some(replace)) => bundle.replace(file, find, replace),
                _ => panic!("{}: an edit has `find` and `replace`, or neither", path.display()),
            }
        }
        let refused = failed(bundle.run(&["check", "--at", AT]), 2);
        let place = format!("quotesign: {}/", bundle.0.path().display());
        let lines: Vec<_> = refused.lines().map(|line| line.strip_prefix(&place).unwrap_or(line)).collect();
        assert_eq!(lines, broken.says, "{}", path.display());
        seen += 1;
    }
    assert!(seen >= 60, "{seen}");
    println!("{seen} broken bundles were refused");
}

#[test]
fn both_bundles_that_are_shipped_are_good_and_share_nothing() {
    let (production, development) = (format!("{ROOT}/policy"), format!("{ROOT}/examples/policy-development"));
    let run = |args: &[&str]| quotesign().arg("policy").args(args).output().unwrap();
    done(run(&["check", &production, "--apart-from", &development]));
    done(run(&["check", &development, "--apart-from", &production]));
    let shared = failed(run(&["check", &production, "--apart-from", &production]), 2);
    for what in ["`environment`", "the kid", "the public key", "the place of a key", "the caller", "the trust domain"] {
        assert!(shared.contains(what), "{what}: {shared}");
    }
    let told: Value =
        serde_json::from_str(&done(run(&["check", &production, "--at", AT, "--format", "json"]))).unwrap();
    assert!(told["good"] == true && told["partners"][0]["signs_now"] == "acme-quotes-2026-06", "{told}");
}

#[test]
fn what_runs_out_is_warned_of_ahead() {
    let bundle = Copy::new();
    let warned = |at: &str| -> Vec<String> {
        let told = done(bundle.run(&["check", "--at", at]));
        told.lines().filter_map(|line| line.strip_prefix("warning: ")).map(str::to_owned).collect()
    };
    assert_eq!(warned("2026-11-26T00:00:00Z"), Vec::<String>::new());
    assert_eq!(warned("2027-08-05T00:00:00Z"), Vec::<String>::new(), "34 days before");
    let [gap] = &warned("2027-08-10T00:00:00Z")[..] else { panic!() };
    assert_eq!(
        gap,
        "borealis-pay 2027-09-08T00:00:00Z: no key signs from 2027-09-08T00:00:00Z on; add one, published early enough"
    );
    bundle.replace("policy.toml", "standby = true\n\n# borealis", "\n# borealis");
    bundle.replace("policy.toml", "confirmed = { at = 2026-11-24T14:30:00Z, ref = \"KEY-0131\" }\n", "");
    fs::remove_dir_all(bundle.path("cases")).unwrap();
    let warned = warned("2026-11-20T00:00:00Z");
    assert!(
        warned.iter().any(|line| line.contains("were `acme-quotes-2026-06` revoked, nothing could sign")),
        "{warned:?}"
    );
    assert!(warned.iter().any(|line| line.contains("`acme-quotes-2026-12` is not confirmed")), "{warned:?}");
}

#[test]
fn what_would_happen_is_told_with_the_rule_the_key_and_what_is_missing() {
    let bundle = Copy::new();
    let quote = bundle.path("cases/quotes/gb-in.json");
    let quote = quote.to_str().unwrap();
    let explain = |caller: &str, at: &str, more: &[&str]| {
        let args = [&["explain", "--caller", caller, "--quote", quote, "--at", at], more].concat();
        bundle.run(&args)
    };
    let allowed = done(explain(PRICING, AT, &[]));
    for part in
        ["allow: ", "acme-signs-gb-in: acme sells", "key     acme-quotes-2026-06", "below 20417 and at most 1000"]
    {
        assert!(allowed.contains(part), "{part}: {allowed}");
    }
    let told: Value = serde_json::from_str(&done(explain(PRICING, AT, &["--format", "json"]))).unwrap();
    assert!(told["decision"] == "allow" && told["kid"] == "acme-quotes-2026-06", "{told}");
    let denied = explain("spiffe://prod.quotesign.example/security", AT, &[]);
    assert_eq!(denied.status.code(), Some(1));
    let denied = String::from_utf8(denied.stdout).unwrap();
    assert!(
        denied.contains("nearest acme-signs-gb-in") && denied.contains("principal in Role::\"acme-pricing\""),
        "{denied}"
    );
    // It would be refused before it has ended, and so it is here.
    let brief = explain(PRICING, "2026-11-26T10:09:57Z", &[]);
    assert_eq!(brief.status.code(), Some(1));
    assert!(String::from_utf8(brief.stdout).unwrap().contains("QUOTE_EXPIRED"));
    let late = explain(PRICING, "2026-11-26T10:10:00Z", &[]);
    assert_eq!(late.status.code(), Some(2));
    assert!(String::from_utf8(late.stdout).unwrap().contains("QUOTE_EXPIRED"));
    fs::write(quote, fs::read_to_string(quote).unwrap().replace("\"251.99\"", "\"251.98\"")).unwrap();
    let wrong = explain(PRICING, AT, &[]);
    assert_eq!(wrong.status.code(), Some(2));
    let wrong = String::from_utf8(wrong.stdout).unwrap();
    assert!(wrong.contains("/total_customer_cost") && !wrong.contains("251.98"), "{wrong}");
}

/// What a caller sends beside the payload a case says too, where the bundle asks for it.
#[test]
fn a_case_says_what_stands_beside_the_payload() {
    let bundle = Copy::new();
    bundle.replace("policy.toml", "values_fixed_at = \"optional\"", "values_fixed_at = \"required\"");
    bundle.replace("policy.toml", "\nquote_id = \"quote_id\"", "\n#");
    for file in ["acts.toml", "settings.toml"] {
        fs::remove_file(bundle.path("cases").join(file)).unwrap();
    }
    let case = |name: &str, more: &str, expect: &str| {
        format!(
            "[[case]]\nname = \"{name}\"\ncaller = \"{PRICING}\"\nat = {AT}\nquote = \"quotes/gb-in.json\"\n{more}\nexpect = {expect}\n"
        )
    };
    let said = "quote_id = \"q-1\"\nvalues_fixed_at = 2026-11-26T10:00:00Z";
    let allowed = "{ decision = \"allow\", rules = [\"acme-signs-gb-in\"], kid = \"acme-quotes-2026-06\" }";
    let cases = case("said", said, allowed) + &case("unsaid", "", "{ decision = \"invalid\" }");
    fs::write(bundle.path("cases/signing.toml"), cases).unwrap();
    let told = done(bundle.run(&["test"]));
    assert!(told.contains("said") && !told.contains("FAIL"), "{told}");
    let stranger = case("known", "stranger = true", "{ decision = \"invalid\" }");
    fs::write(bundle.path("cases/signing.toml"), stranger).unwrap();
    assert!(
        failed(bundle.run(&["test"]), 2)
            .contains("`stranger` is for a caller or partner that policy.toml does not have")
    );
}

#[test]
fn a_change_is_told_in_lines_that_a_reviewer_reads() {
    let (old, new) = (Copy::new(), Copy::new());
    let diff = |old: &Copy, new: &Copy| {
        quotesign().args(["policy", "diff"]).args([old.0.path(), new.0.path()]).output().unwrap()
    };
    assert_eq!(done(diff(&old, &new)), "nothing that either decides by has changed\n");
    fs::remove_dir_all(new.path("cases")).unwrap();
    new.replace("policy.toml", "serial = 7", "serial = 8");
    new.replace("policy.toml", "burst = 300", "burst = 600");
    new.replace(
        "policy.toml",
        "roles = [\"operator\", \"reader\"]",
        "roles = [\"operator\", \"reader\", \"acme-pricing\"]",
    );
    new.replace("policy.toml", "sign_until = 2026-12-08T00:00:00Z", "sign_until = 2026-12-07T00:00:00Z");
    new.replace("authorize.cedar", "context.send_minor <= 500000", "context.send_minor <= 900000");
    new.replace("schemas/quote-v1.schema.json", "\"maxLength\": 64", "\"maxLength\": 65");
    new.replace("currencies.csv", "AED,2\n", "");
    let told = done(diff(&old, &new));
    for line in [
        "~ serial: raised from 7 to 8",
        "~ quotas.signed_per_caller.burst: raised from 300 to 600",
        "~ caller `spiffe://prod.quotesign.example/security`.roles: [\"operator\", \"reader\"] -> [\"operator\", \"reader\", \"acme-pricing\"]",
        "~ key `acme-quotes-2026-06`.sign_until: 2026-12-08T00:00:00Z -> 2026-12-07T00:00:00Z",
        "~ schemas/quote-v1.schema.json /properties/subscription_id/maxLength: raised from 64 to 65",
        "- currency AED: 2 digits",
    ] {
        assert!(told.lines().any(|told| told == line), "{line}\n{told}");
    }
    let rule = told.lines().find(|line| line.starts_with("~ rule `acme-signs-gb-in` (permit): ")).unwrap();
    assert!(rule.contains("<= 500000") && rule.contains("<= 900000"), "{rule}");
    assert_eq!(told.lines().count(), 7, "{told}");
    // Where the keys stand in the file is of no matter.
    let moved = Copy::new();
    let text = fs::read_to_string(moved.path("policy.toml")).unwrap();
    let (head, keys) = text.split_once("[[keys]]").unwrap();
    let mut keys: Vec<&str> = keys.split("[[keys]]").collect();
    keys.reverse();
    let keys: Vec<String> = keys.iter().map(|key| format!("[[keys]]{key}\n")).collect();
    fs::write(moved.path("policy.toml"), head.to_owned() + &keys.concat()).unwrap();
    assert_eq!(done(diff(&old, &moved)), "nothing that either decides by has changed\n");
}

/// The prover, built from its own lock file.
fn prover() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let target = Path::new(env!("CARGO_BIN_EXE_quotesign")).parent().unwrap().parent().unwrap();
        let manifest = format!("{ROOT}/tools/policy-prove/Cargo.toml");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--locked", "--manifest-path", &manifest, "--target-dir"]).arg(target);
        assert!(build.status().unwrap().success(), "the prover does not build");
        target.join("debug/policy-prove")
    })
}

#[test]
fn that_a_change_allows_more_is_proved_with_a_request() {
    let prove = |change: &dyn Fn(&Copy)| {
        let (old, new) = (Copy::new(), Copy::new());
        fs::remove_dir_all(new.path("cases")).unwrap();
        change(&new);
        let mut diff = quotesign();
        diff.env("QUOTESIGN_POLICY_PROVE", prover()).args(["policy", "diff", "--prove"]);
        let told = diff.args([old.0.path(), new.0.path()]).output().unwrap();
        let lines = String::from_utf8(told.stdout).unwrap();
        (told.status.code().unwrap(), lines, String::from_utf8(told.stderr).unwrap())
    };
    let rule =
        |find: &'static str, replace: &'static str| move |new: &Copy| new.replace("authorize.cedar", find, replace);
    let (code, told, _) = prove(&|_| ());
    assert!(code == 0 && told.contains("of 18 kinds of request none is allowed now that was not before"), "{told}");
    let (code, told, _) = prove(&rule("context.send_minor <= 500000", "context.send_minor <= 400000"));
    assert!(code == 0 && told.contains("none is allowed now"), "tighter: {told}");
    // What comes from KP is behind no permit, so that a rule less about it allows nothing.
    let (code, told, _) = prove(&rule("context.corridor like \"*-KP\" || ", ""));
    assert!(code == 0 && told.contains("none is allowed now"), "{told}");
    for (find, replace, shown) in [
        ("context.send_minor <= 500000", "context.send_minor <= 500001", "\"send_minor\":500001"),
        ("context.validity_seconds > 900", "context.validity_seconds > 901", "\"validity_seconds\":901"),
        (
            "Role::\"operator\",\n  action == Action::\"SeedSequence\"",
            "Role::\"reader\",\n  action == Action::\"SeedSequence\"",
            "in Role::\"reader\"",
        ),
    ] {
        let (code, told, _) = prove(&rule(find, replace));
        assert!(code == 1 && told.contains("allowed now and not before") && told.contains(shown), "{shown}: {told}");
    }
    let overflow = rule("context.send_minor < 1", "context.send_minor * 9223372036854775807 < 1");
    let (code, told, _) = prove(&overflow);
    assert!(code == 1 && told.contains("the rule `no-empty-transfer` fails, which denies"), "{told}");
    // Without the prover or the solver nothing is claimed.
    let bundle = Copy::new();
    for (variable, value) in [("QUOTESIGN_POLICY_PROVE", "/nowhere/policy-prove"), ("CVC5", "/nowhere/cvc5")] {
        let mut diff = quotesign();
        diff.env("QUOTESIGN_POLICY_PROVE", prover()).env(variable, value).args(["policy", "diff", "--prove"]);
        let told = failed(diff.args([bundle.0.path(), bundle.0.path()]).output().unwrap(), 2);
        assert!(told.contains("nothing was proved") && told.contains("/nowhere/"), "{told}");
    }
}

#[test]
fn the_timeline_is_drawn_and_told() {
    let bundle = Copy::new();
    let picture = bundle.path("keys.svg");
    let text = done(bundle.run(&["calendar", "--at", AT, "--svg", picture.to_str().unwrap()]));
    assert!(text.contains("2026-12-01T00:00:00Z to 2027-12-08T00:00:00Z: acme-quotes-2026-12 signs"), "{text}");
    assert!(text.contains("2027-12-08T00:00:00Z on: NOBODY SIGNS"), "{text}");
    // Another reader of XML, which refuses what is not well-formed, counts the bars of who signs and of who does not.
    let script = "import sys, xml.etree.ElementTree as e\n\
        bars = [b.get('fill') for b in e.parse(sys.argv[1]).getroot().iter('{http://www.w3.org/2000/svg}rect')]\n\
        print(bars.count('#1b7f4b'), bars.count('#c62828'), bars.count('#4a7fb5'))";
    let counted = Command::new("python3").args(["-c", script]).arg(&picture).output().unwrap();
    assert_eq!(done(counted), "3 2 5\n");
    let svg = fs::read_to_string(&picture).unwrap();
    assert!(
        !svg.contains("href") && !svg.contains("<script") && svg.matches("http").count() == 1,
        "it needs nothing else"
    );
    let spans: Value = serde_json::from_str(&done(bundle.run(&["calendar", "--at", AT, "--format", "json"]))).unwrap();
    assert_eq!(spans["partners"][0]["partner"], "acme-remit");
}

#[test]
fn two_environments_share_no_ca_no_domain_no_ledger_and_no_token() {
    let (one, other) = (Site::new(), Site::new());
    let check =
        |site: &Site, other: &Site| site.run(&["config", "check", "--apart-from", other.config().to_str().unwrap()]);
    let shared = failed(check(&one, &one), 2);
    for what in
        ["both are for development", "the CA of callers", "the trust domain", "the ledger", "the token", "the kid"]
    {
        assert!(shared.contains(what), "{what}: {shared}");
    }
    // Another environment, with all that it has its own but for the CA.
    other.edit_config(|config| {
        config["environment"] = toml("'sandbox'");
        for listener in ["grpc", "admin"] {
            config[listener]["trust_domain"] = toml("'sandbox.quotesign.example'");
        }
        config["signers"][0]["token"] = toml("'quotesign-sandbox'");
    });
    let text = fs::read_to_string(other.path("policy/policy.toml")).unwrap();
    let kid = text.split("kid = \"").nth(1).unwrap().split('"').next().unwrap();
    let text = text.replace(kid, "sandbox-2026").replace("spiffe://dev.", "spiffe://sandbox.");
    let text = text.replace("environment = \"development\"", "environment = \"sandbox\"");
    let text = text
        .replace("propagation_s = 0", "propagation_s = 300")
        .replace("token=quotesign-dev", "token=quotesign-sandbox");
    fs::write(other.path("policy/policy.toml"), text).unwrap();
    let later = seconds(SystemClock.now().plus(DAY));
    other.edit_policy(|policy| policy["keys"][0]["sign_from"] = toml(&later));
    let jwk = fs::read_to_string(other.path(&format!("policy/keys/{kid}.jwk.json"))).unwrap();
    fs::remove_file(other.path(&format!("policy/keys/{kid}.jwk.json"))).unwrap();
    fs::write(other.path("policy/keys/sandbox-2026.jwk.json"), jwk.replace(kid, "sandbox-2026")).unwrap();
    fs::copy(one.path("tls/ca.pem"), other.path("tls/ca.pem")).unwrap();
    let shared = failed(check(&one, &other), 2);
    assert!(shared.lines().count() == 1 && shared.contains("the CA of callers with the SHA-256"), "{shared}");
    fs::write(other.path("tls/ca.pem"), &other.authority.pem).unwrap();
    done(check(&one, &other));
    // One key under which customers stand in the records of both.
    for site in [&one, &other] {
        fs::write(site.path("reference.key"), [7; 32]).unwrap();
        site.edit_config(|config| config["audit"]["reference_key"] = toml("'reference.key'"));
    }
    let shared = failed(check(&one, &other), 2);
    assert!(shared.lines().count() == 1 && shared.contains("the key of customers' references"), "{shared}");
}
