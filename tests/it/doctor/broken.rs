//! One thing after the other is broken in a site that was healthy.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::*;
use crate::faults::shim::Shim;

/// What breaks a site, and what must then turn: each check with the worst it comes to.
struct Break {
    what: &'static str,
    how: fn(&Healthy),
    turns: &'static [(&'static str, &'static str)],
    /// What the first of them says, evidence or remedy.
    says: &'static str,
}

const FAULT: &str = "fault";
const WARNING: &str = "warning";

/// A certificate for the server of these names, from and until so many days from now.
fn server(healthy: &Healthy, edit: impl FnOnce(&mut CertificateParams)) {
    let mut params = CertificateParams::new(["localhost", "127.0.0.1"].map(str::to_owned)).unwrap();
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - time::Duration::days(1), now + time::Duration::days(365));
    edit(&mut params);
    healthy.site.authority.issue(&healthy.site.path("tls"), "server", params);
    healthy.tidy();
}

fn until_days(days: i64) -> impl FnOnce(&mut CertificateParams) {
    move |params| params.not_after = OffsetDateTime::now_utc() + time::Duration::hours(days * 24 + 1)
}

fn signed(healthy: &Healthy, field: &str, value: &str) {
    healthy.site.edit_config(|config| config["signers"][0][field] = toml(value));
}

fn sql(healthy: &Healthy, statement: &str) {
    let path = healthy.site.path("ledger.sqlite");
    let ledger = Connection::open(path).unwrap();
    ledger.execute(statement, ()).unwrap();
}

fn append(path: &Path, text: &str) {
    fs::write(path, fs::read_to_string(path).unwrap() + text).unwrap();
}

/// The public JWK of a key that openssl made, under this kid.
fn jwk_of(key: &Path, kid: &str) -> Value {
    let modulus = Command::new("openssl").args(["rsa", "-noout", "-modulus", "-in"]).arg(key).output().unwrap();
    let modulus = hex::decode(done(modulus).trim().strip_prefix("Modulus=").unwrap()).unwrap();
    let n = URL_SAFE_NO_PAD.encode(modulus);
    json!({ "kty": "RSA", "kid": kid, "use": "sig", "alg": "RS256", "n": n, "e": "AQAB" })
}

fn openssl(healthy: &Healthy, line: &str) {
    let mut command = Command::new("openssl");
    let output = command.args(line.split(' ')).current_dir(healthy.site.path("tls")).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Puts another JWK in the place of the pinned one; everybody is shown that.
fn pin(healthy: &Healthy, jwk: &Value) {
    let kid = kid(&healthy.site);
    fs::write(healthy.site.path(&format!("policy/keys/{kid}.jwk.json")), jwk.to_string()).unwrap();
    healthy.publish();
}

/// A chain of leaf and intermediate, in this order.
fn with_intermediate(healthy: &Healthy, chain: impl FnOnce(String, String) -> String) {
    let (tls, mut params) = (healthy.site.path("tls"), CertificateParams::default());
    // The tests' own CA issues no other: a root of its own does.
    let (root_key, key, leaf_key) =
        (KeyPair::generate().unwrap(), KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.distinguished_name.push(DnType::CommonName, "a root");
    append(&tls.join("ca.pem"), &root.self_signed(&root_key).unwrap().pem());
    let root = Issuer::new(root, root_key);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.distinguished_name.push(DnType::CommonName, "an intermediate");
    let intermediate = params.signed_by(&key, &root).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let leaf = CertificateParams::new(["localhost", "127.0.0.1"].map(str::to_owned)).unwrap();
    let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap().pem();
    fs::write(tls.join("server.pem"), chain(leaf, intermediate)).unwrap();
    fs::write(tls.join("server.key"), leaf_key.serialize_pem()).unwrap();
    healthy.tidy();
}

const BREAKS: &[Break] = &[
    Break {
        what: "a private key that others can read",
        how: |healthy| chmod(&healthy.site.path("tls/server.key"), 0o644),
        turns: &[("files.secret", FAULT)],
        says: "chmod 0640 ",
    },
    Break {
        what: "a PIN that others can read",
        how: |healthy| chmod(&healthy.site.path("pin"), 0o604),
        turns: &[("files.secret", FAULT)],
        says: "mode 0604",
    },
    Break {
        what: "a reference key that is not there",
        how: |healthy| fs::remove_file(healthy.site.path("reference.key")).unwrap(),
        turns: &[("audit.reference_key", FAULT), ("files.secret", FAULT)],
        says: "No such file",
    },
    Break {
        what: "a config that the group can change",
        how: |healthy| chmod(&healthy.site.config(), 0o660),
        turns: &[("files.trusted", FAULT)],
        says: "chmod 0640 ",
    },
    Break {
        what: "a policy directory that anybody can write",
        how: |healthy| chmod(&healthy.site.path("policy"), 0o777),
        turns: &[("files.policy", FAULT)],
        says: "chmod 0755 ",
    },
    Break {
        what: "a schema that anybody can write",
        how: |healthy| chmod(&healthy.site.path("policy/schemas/quote-v1.schema.json"), 0o666),
        turns: &[("files.policy", FAULT)],
        says: "quote-v1.schema.json: mode 0666",
    },
    Break {
        what: "a ledger that others can read",
        how: |healthy| chmod(&healthy.site.path("ledger.sqlite"), 0o644),
        turns: &[("files.ledger", FAULT)],
        says: "chmod 0640 ",
    },
    Break {
        what: "a directory of certificates that anybody can write",
        how: |healthy| chmod(&healthy.site.path("tls"), 0o777),
        turns: &[("files.directory", FAULT)],
        says: "chmod 0775 ",
    },
    Break {
        what: "a certificate and another's key",
        how: |healthy| {
            fs::copy(healthy.site.path("tls/cdn.key"), healthy.site.path("tls/server.key")).unwrap();
        },
        turns: &[("tls.key", FAULT)],
        says: "is not the key of",
    },
    Break {
        what: "a certificate that has expired",
        how: |healthy| server(healthy, until_days(0 - 1)),
        turns: &[("tls.expiry", FAULT)],
        says: "has expired at",
    },
    Break {
        what: "a certificate that is not valid yet",
        how: |healthy| {
            server(healthy, |params| params.not_before = OffsetDateTime::now_utc() + time::Duration::days(1));
        },
        turns: &[("tls.expiry", FAULT)],
        says: "is valid from",
    },
    Break {
        what: "a certificate that ends in 20 days",
        how: |healthy| server(healthy, until_days(20)),
        turns: &[("tls.expiry", WARNING)],
        says: "in 20 days -> renew it: within 30 days",
    },
    Break {
        what: "a certificate that ends in 3 days",
        how: |healthy| server(healthy, until_days(3)),
        turns: &[("tls.expiry", WARNING)],
        says: "in 3 days -> renew it now",
    },
    Break {
        what: "a chain without its intermediate",
        how: |healthy| with_intermediate(healthy, |leaf, _| leaf),
        turns: &[("tls.chain", FAULT), ("tls.public", WARNING)],
        says: "put every certificate between",
    },
    Break {
        what: "a chain out of order",
        how: |healthy| {
            with_intermediate(healthy, |leaf, intermediate| format!("{leaf}{}{intermediate}", healthy_ca()));
        },
        turns: &[("tls.chain", WARNING)],
        says: "is not followed by its issuer",
    },
    Break {
        what: "a certificate without names",
        how: |healthy| server(healthy, |params| params.subject_alt_names.clear()),
        turns: &[("tls.names", FAULT), ("tls.public", WARNING)],
        says: "no alternative name",
    },
    Break {
        what: "a certificate for another name",
        how: |healthy| {
            server(healthy, |params| {
                let other = CertificateParams::new(["elsewhere.example".to_owned()]).unwrap();
                params.subject_alt_names = other.subject_alt_names;
            });
        },
        turns: &[("tls.names", FAULT), ("tls.public", WARNING)],
        says: "it is for elsewhere.example",
    },
    Break {
        what: "a server with a client's certificate",
        how: |healthy| {
            server(healthy, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
        },
        turns: &[("tls.usage", FAULT)],
        says: "lacks serverAuth",
    },
    Break {
        what: "a certificate that is signed over SHA-1",
        how: |healthy| {
            openssl(healthy, "req -x509 -newkey rsa:2048 -nodes -keyout own.key -out own.pem -subj /CN=own -days 100");
            openssl(healthy, "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=server");
            fs::write(healthy.site.path("tls/names"), "subjectAltName = DNS:localhost, IP:127.0.0.1\n").unwrap();
            openssl(
                healthy,
                "x509 -req -sha1 -in server.csr -CA own.pem -CAkey own.key -set_serial 7 -days 90 -extfile names -out server.pem",
            );
            append(&healthy.site.path("tls/ca.pem"), &fs::read_to_string(healthy.site.path("tls/own.pem")).unwrap());
            healthy.tidy();
        },
        turns: &[("tls.strength", FAULT)],
        says: "SHA-1",
    },
    Break {
        what: "a CA of callers that is none",
        how: |healthy| healthy.site.edit_config(|config| config["admin"]["client_ca"] = toml("'tls/pricing.pem'")),
        turns: &[("tls.client_ca", FAULT)],
        says: "it is no CA",
    },
    Break {
        what: "a CA of callers with a weak key",
        how: |healthy| {
            openssl(
                healthy,
                "req -x509 -newkey rsa:1024 -nodes -keyout weak.key -out weak.pem -subj /CN=weak -days 100",
            );
            healthy.tidy();
            healthy.site.edit_config(|config| config["admin"]["client_ca"] = toml("'tls/weak.pem'"));
        },
        turns: &[("tls.client_ca", FAULT)],
        says: "RSA 1024",
    },
    Break {
        what: "a bound that lets nothing through",
        how: |healthy| healthy.site.edit_config(|config| config["limits"]["payload_depth_max"] = toml("0")),
        turns: &[("config.loads", FAULT)],
        says: "`limits.payload_depth_max` = `0` lets nothing through",
    },
    Break {
        what: "an operations listener for all",
        how: |healthy| healthy.site.edit_config(|config| config["operations"]["listen"] = toml("'0.0.0.0:0'")),
        turns: &[("config.operations", WARNING)],
        says: "bind it to loopback",
    },
    Break {
        what: "a wrong PIN",
        how: |healthy| fs::write(healthy.site.path("pin"), "not the pin\n").unwrap(),
        turns: &[("signer.login", FAULT)],
        says: "This command made at most one try",
    },
    Break {
        what: "a token that is not there",
        how: |healthy| signed(healthy, "token", "'another'"),
        turns: &[("signer.reached", FAULT)],
        says: "no token is labelled `another`",
    },
    Break {
        what: "a module that is none",
        how: |healthy| signed(healthy, "module", "'tls/ca.pem'"),
        turns: &[("signer.reached", FAULT)],
        says: "cannot load the module",
    },
    Break {
        what: "a key that is not on the device",
        how: |healthy| {
            let locator = toml("'pkcs11:token=quotesign-dev;object=nowhere;type=private'");
            healthy.site.edit_policy(|policy| policy["keys"][0]["locator"] = locator);
        },
        turns: &[("key.found", FAULT)],
        says: "object=nowhere",
    },
    Break {
        what: "another key than policy pins",
        how: |healthy| {
            openssl(healthy, "genrsa -out other.pem 3072");
            pin(healthy, &jwk_of(&healthy.site.path("tls/other.pem"), &kid(&healthy.site)));
        },
        turns: &[("key.pinned", FAULT)],
        says: "the device holds",
    },
    Break {
        what: "a key that came from outside",
        how: |healthy| {
            let (site, key) = (&healthy.site, healthy.site.path("tls/imported.pem"));
            openssl(healthy, "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072 -out imported.pem");
            let pin_text = fs::read_to_string(site.path("pin")).unwrap();
            let mut import = Command::new("softhsm2-util");
            import.args(["--import"]).arg(&key).args(["--token", "quotesign-dev", "--label", "imported", "--id", "77"]);
            done(
                import
                    .args(["--pin", pin_text.trim()])
                    .env("SOFTHSM2_CONF", site.path("softhsm2.conf"))
                    .output()
                    .unwrap(),
            );
            pin(healthy, &jwk_of(&key, &kid(site)));
            let locator = toml("'pkcs11:token=quotesign-dev;object=imported;type=private'");
            site.edit_policy(|policy| policy["keys"][0]["locator"] = locator);
        },
        turns: &[("key.attributes", FAULT)],
        says: "it lacks: CKA_LOCAL",
    },
    Break {
        what: "no ledger",
        how: |healthy| fs::remove_file(healthy.site.path("ledger.sqlite")).unwrap(),
        turns: &[("ledger.opens", FAULT)],
        says: "run `quotesign ledger migrate`",
    },
    Break {
        what: "another environment's ledger",
        how: |healthy| sql(healthy, "UPDATE meta SET environment = 'sandbox'"),
        turns: &[("ledger.opens", FAULT)],
        says: "belongs to the environment `sandbox`",
    },
    Break {
        what: "a ledger of an older version",
        how: |healthy| sql(healthy, "UPDATE meta SET version = version - 1"),
        turns: &[("ledger.opens", FAULT)],
        says: "has an older schema",
    },
    Break {
        what: "a journal that does not end where its chain says",
        how: |healthy| {
            anchor(healthy, Environment::Development, 0);
            sql(healthy, "UPDATE chain SET next_idx = 7");
        },
        turns: &[("ledger.whole", FAULT)],
        says: "restore the newest backup",
    },
    Break {
        what: "a ledger that is behind its anchor",
        how: |healthy| anchor(healthy, Environment::Development, 9),
        turns: &[("ledger.anchor", FAULT)],
        says: "the journal stood at 9 and stands at 0",
    },
    Break {
        what: "another environment's anchor",
        how: |healthy| anchor(healthy, Environment::Sandbox, 0),
        turns: &[("ledger.anchor", FAULT)],
        says: "belongs to the environment `sandbox`",
    },
    Break {
        what: "a disk without room",
        how: |healthy| {
            healthy.site.edit_config(|config| {
                for bound in ["disk_warn_mb", "disk_min_mb"] {
                    config["ledger"][bound] = toml("1000000000");
                }
            });
        },
        turns: &[("ledger.room", FAULT)],
        says: "make room",
    },
    Break {
        what: "a disk with little room",
        how: |healthy| healthy.site.edit_config(|config| config["ledger"]["disk_warn_mb"] = toml("1000000000")),
        turns: &[("ledger.room", WARNING)],
        says: "MiB are free",
    },
    Break {
        what: "a clock behind the journal",
        how: |healthy| {
            let ahead = SystemClock.now().plus(DAY).millis();
            sql(healthy, &format!("UPDATE chain SET newest_at = {ahead}"));
        },
        turns: &[("clock.journal", FAULT)],
        says: "set the clock",
    },
    Break {
        what: "a collector that is not there",
        how: |healthy| {
            healthy.site.edit_config(|config| {
                config["otlp"]["endpoint"] = toml("'http://127.0.0.1:1'");
            });
        },
        turns: &[("collector.reached", FAULT)],
        says: "refused",
    },
    Break {
        what: "a collector that lets nobody in",
        how: |healthy| healthy.collector.store(401, Ordering::Relaxed),
        turns: &[("collector.reached", FAULT)],
        says: "401",
    },
    Break {
        what: "records that no collector takes",
        how: |healthy| sql(healthy, "INSERT INTO quarantine VALUES ('', 0, 'too odd')"),
        turns: &[("collector.behind", WARNING)],
        says: "`quotesign audit quarantine`",
    },
    Break {
        what: "a registered URL that shows something else",
        how: |healthy| fs::write(&healthy.cdn.file, "{\"keys\":[]}").unwrap(),
        turns: &[("jwks.published", FAULT)],
        says: "`quotesign jwks check ",
    },
    Break {
        what: "a registered URL that shows a key less",
        how: |healthy| {
            fs::remove_file(healthy.site.path(&format!("policy/keys/{STANDBY}.jwk.json"))).unwrap();
            healthy.publish();
            let jwk = healthy.site.path("unpublished.json");
            fs::copy(jwk, healthy.site.path(&format!("policy/keys/{STANDBY}.jwk.json"))).unwrap();
        },
        turns: &[("jwks.published", FAULT)],
        says: "is not shown as policy pins it",
    },
    Break {
        what: "a registered URL that shows a private key",
        how: |healthy| {
            let set = fs::read_to_string(&healthy.cdn.file).unwrap();
            fs::write(&healthy.cdn.file, set.replacen("\"kty\"", "\"dp\":\"AQAB\",\"kty\"", 1)).unwrap();
        },
        turns: &[("jwks.published", FAULT)],
        says: "rotate now",
    },
    Break {
        what: "a registered URL that nobody answers",
        how: |healthy| {
            healthy
                .site
                .edit_policy(|policy| policy["partners"][0]["jwks_url"] = toml("'https://127.0.0.1:1/jwks.json'"));
        },
        turns: &[("jwks.published", FAULT)],
        says: "https://127.0.0.1:1/jwks.json: ",
    },
    Break {
        what: "a bundle that does not load",
        how: |healthy| healthy.site.edit_policy(|policy| policy["partners"][0]["id"] = toml("'Not An Id'")),
        turns: &[("policy.loads", FAULT)],
        says: "policy.toml",
    },
    Break {
        what: "a key of a signer that the config has not",
        how: |healthy| healthy.site.edit_policy(|policy| policy["keys"][1]["signer"] = toml("'nobody'")),
        turns: &[("policy.fits", FAULT)],
        says: "no signer of the gateway's config is named `nobody`",
    },
    Break {
        what: "a case that comes out otherwise",
        how: |healthy| {
            let cases = healthy.site.path("policy/cases/settings.toml");
            fs::write(&cases, CASES.replace("deny", "allow")).unwrap();
        },
        turns: &[("policy.cases", FAULT)],
        says: "`quotesign policy test`",
    },
    Break {
        what: "a timeline upon which nobody signs",
        how: |healthy| {
            healthy.site.edit_policy(|policy| {
                for key in policy["keys"].as_array_of_tables_mut().unwrap().iter_mut() {
                    key["sign_from"] = toml(&seconds(SystemClock.now().plus(DAY)));
                }
            });
        },
        turns: &[("policy.ahead", WARNING), ("policy.signing", FAULT)],
        says: "no key signs from",
    },
    Break {
        what: "a timeline without a standby",
        how: |healthy| {
            healthy.site.edit_policy(|policy| {
                policy["keys"][1]["sign_from"] = toml(&seconds(SystemClock.now().plus(DAY)));
            });
        },
        turns: &[("policy.ahead", WARNING)],
        says: "add a key with `standby = true`",
    },
    Break {
        what: "a halt",
        how: |healthy| sql(healthy, "INSERT INTO stop VALUES ('halted/all')"),
        turns: &[("policy.signing", FAULT)],
        says: "`quotesign resume`",
    },
    Break {
        what: "a gateway that hangs",
        how: |healthy| {
            // The system takes connections, and nobody ever answers.
            let hangs = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = hangs.local_addr().unwrap();
            healthy.site.edit_config(|config| config["operations"]["listen"] = toml(&format!("'{address}'")));
            std::mem::forget(hangs);
        },
        turns: &[("gateway.live", FAULT)],
        says: "does not answer",
    },
    Break {
        what: "a reference key that is too short",
        how: |healthy| fs::write(healthy.site.path("reference.key"), "short").unwrap(),
        turns: &[("audit.reference_key", FAULT)],
        says: "32 to 1024 random bytes",
    },
    Break {
        what: "a key of checkpoints that is no JWK",
        how: |healthy| fs::write(healthy.site.path("checkpoint.jwk.json"), "{}").unwrap(),
        turns: &[("audit.checkpoints", FAULT), ("policy.fits", FAULT)],
        says: "`audit.checkpoint.public_key`",
    },
];

/// A certificate that belongs to no chain.
fn healthy_ca() -> String {
    crate::harness::Authority::named("a stranger").pem
}

fn anchor(healthy: &Healthy, environment: Environment, next_index: u64) {
    let link = if next_index == 0 { Position::GENESIS.link } else { [7; 32] };
    let heads = [(String::new(), Position { next_index, link })].into();
    Anchor::create(&healthy.site.path("anchor"), environment, &heads).unwrap();
}

/// A copy of the site that it can be put back from.
struct Before(tempfile::TempDir);

impl Before {
    fn of(healthy: &Healthy) -> Self {
        let dir = tempfile::TempDir::new().unwrap();
        copy(&healthy.site.path("."), dir.path());
        Self(dir)
    }

    fn put_back(&self, healthy: &Healthy) {
        let home = healthy.site.path("");
        for entry in fs::read_dir(&home).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() { fs::remove_dir_all(entry).unwrap() } else { fs::remove_file(entry).unwrap() }
        }
        copy(&self.0.path().join("."), &home);
        healthy.collector.store(200, Ordering::Relaxed);
    }
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_broken_is_found_by_its_own_check_with_the_remedy() {
    let healthy = Healthy::new().await;
    let standby = format!("policy/keys/{STANDBY}.jwk.json");
    fs::copy(healthy.site.path(&standby), healthy.site.path("unpublished.json")).unwrap();
    let before = Before::of(&healthy);
    assert_eq!(healthy.doctor().turned(), BTreeMap::new());
    let mut wrong = Vec::new();
    for Break { what, how, turns, says } in BREAKS {
        how(&healthy);
        let report = healthy.doctor();
        let expected: BTreeMap<String, String> =
            turns.iter().map(|(check, verdict)| ((*check).to_owned(), (*verdict).to_owned())).collect();
        let code = match () {
            () if expected.contains_key("config.loads") => 2,
            () if expected.values().any(|verdict| verdict == FAULT) => 1,
            () => 0,
        };
        let (turned, said) = (report.turned(), report.said(turns[0].0));
        if turned != expected || !said.contains(says) || report.output.status.code() != Some(code) {
            wrong.push(format!("{what}: {turned:?}, code {:?}, says: {said}", report.output.status.code()));
        }
        // Whatever is broken, every check is accounted for, and a remedy stands wherever one is due.
        let lacks = |found: &&Value| ["fault", "warning"].contains(&&*text(found, "verdict")) && found["remedy"] == "";
        assert!(!report.checks.iter().any(|found| lacks(&found)), "{what}");
        assert_eq!(report.names().len(), 46, "{what}");
        before.put_back(&healthy);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(healthy.doctor().turned(), BTreeMap::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_that_cannot_be_used_hides_nothing_of_the_files() {
    let healthy = Healthy::new().await;
    append(&healthy.site.config(), "\n[no_such_section]\n");
    chmod(&healthy.site.path("tls/server.key"), 0o644);
    server(&healthy, until_days(20));
    chmod(&healthy.site.path("tls/server.key"), 0o644);
    let report = healthy.doctor();
    let turned: Vec<_> = report.turned().into_iter().map(|(check, verdict)| format!("{check} {verdict}")).collect();
    assert_eq!(turned, ["config.loads fault", "files.secret fault", "tls.expiry warning"]);
    assert!(report.made().contains("policy.cases") && !report.made().contains("signer.reached"));
    assert!(failed(report.output, 2).contains("what could be looked at without it was"));
    // One that is no TOML names no file.
    fs::write(healthy.site.config(), "what is this").unwrap();
    let report = healthy.doctor();
    assert_eq!(report.turned().into_keys().collect::<Vec<_>>(), ["config.loads"]);
    failed(report.output, 2);
}

/// Whoever owns a file can change it.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_another_user_is_told() {
    let healthy = Healthy::new().await;
    let ca = healthy.site.path("tls/ca.pem");
    if !rustix::process::getuid().is_root() {
        // Nobody else can give a file away; then there is root's own, which is trusted.
        assert!(chown(&ca, Some(0), None).is_err());
        return;
    }
    chown(&ca, Some(65_534), None).unwrap();
    let report = healthy.doctor();
    assert_eq!(report.turned().into_keys().collect::<Vec<_>>(), ["files.trusted"]);
    assert!(report.said("files.trusted").contains("`chown` it"));
    // The gateway's own user is the one that owns the ledger.
    chown(healthy.site.path("ledger.sqlite"), Some(65_534), None).unwrap();
    assert_eq!(healthy.doctor().turned(), BTreeMap::new());
}

/// A client's certificate with no names needs none, and what is shown to the collector is looked at, too.
#[tokio::test(flavor = "multi_thread")]
async fn the_certificates_that_the_gateway_itself_shows_are_looked_at() {
    let healthy = Healthy::new().await;
    let mut params = client_certificate(&[], &[]);
    params.not_after = OffsetDateTime::now_utc() - time::Duration::hours(1);
    healthy.site.issue("sender", params);
    healthy.tidy();
    healthy.site.edit_config(|config| {
        config["otlp"] = toml(
            "{ endpoint = 'https://127.0.0.1:1', protocol = 'http/protobuf', ca = 'tls/ca.pem', \
             certificate = 'tls/sender.pem', private_key = 'tls/sender.key' }",
        );
    });
    let report = healthy.doctor();
    let turned: Vec<_> = report.turned().into_keys().collect();
    assert_eq!(turned, ["collector.reached", "tls.expiry"]);
    assert!(report.checks.iter().any(|found| found["of"] == "otlp" && found["verdict"] == "fault"));
}

/// One more wrong PIN would lock the token, so that not even a right one is tried.
#[tokio::test(flavor = "multi_thread")]
async fn a_pin_is_not_tried_where_the_token_says_that_it_could_be_the_last() {
    let healthy = Healthy::new().await;
    let shim = Shim::before(&healthy.site);
    assert_eq!(healthy.doctor().turned(), BTreeMap::new());
    shim.rules("* pin-final-try\nC_Login err CKR_PIN_LOCKED\n");
    let report = healthy.doctor();
    assert_eq!(report.turned().into_keys().collect::<Vec<_>>(), ["signer.login"]);
    let said = report.said("signer.login");
    assert!(said.contains("CKF_USER_PIN_FINAL_TRY") && said.contains("it was not tried"), "{said}");
    assert_eq!(shim.faults("C_Login"), 0);
}
