//! Configs that cannot be used: each is one line that names the place and the remedy, and exit code 2.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
};

use rusqlite::Connection;
use tempfile::TempDir;

use crate::harness::{Site, done, failed, quotesign};

/// A good config. Its lines are numbered in the expectations below.
const CONFIG: &str = r#"environment = "development"
policy = "policy"
[grpc]
listen = "127.0.0.1:18443"
certificate = "tls/server.pem"
private_key = "tls/server.key"
client_ca = "tls/ca.pem"
trust_domain = "dev.quotesign.example"
[admin]
listen = "127.0.0.1:18444"
certificate = "tls/server.pem"
private_key = "tls/server.key"
client_ca = "tls/ca.pem"
trust_domain = 'dev.quotesign.example'
[jwks]
listen = "127.0.0.1:18445"
certificate = "tls/server.pem"
private_key = "tls/server.key"
[operations]
listen = "127.0.0.1:19464"
[ledger]
sqlite = "ledger.sqlite"
[[signers]]
name = "hsm-primary"
module = "/usr/lib/softhsm/libsofthsm2.so"
token = "quotesign-dev"
pin_file = "pin"
[limits]
streams_max = 16
[log]
filter = "off"
"#;

/// A copy of a good site, to be broken.
struct Broken {
    dir: TempDir,
    config: String,
    env: Vec<(&'static str, &'static str)>,
}

impl Broken {
    fn of(site: &Site) -> Self {
        let dir = TempDir::with_prefix("quotesign-config-").unwrap();
        copy(&site.path(""), dir.path());
        Self { dir, config: CONFIG.to_owned(), env: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A database in the place of the file.
    fn postgres(&mut self, section: &str) {
        self.swap("sqlite = \"ledger.sqlite\"\n", &format!("[ledger.postgres]\n{section}\n"));
    }

    fn swap(&mut self, from: &str, to: &str) {
        assert!(self.config.contains(from), "{from}");
        self.config = self.config.replacen(from, to, 1);
    }

    fn add(&mut self, after: &str, line: &str) {
        self.swap(after, &format!("{after}\n{line}"));
    }

    fn swap_in(&self, file: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(file)).unwrap();
        assert!(text.contains(from), "{file}: {from}");
        self.write(file, &text.replacen(from, to, 1));
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.path(file), text).unwrap();
    }

    fn remove(&self, name: &str) {
        let path = self.path(name);
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }

    /// What a command of this config says, with names for the directory and the key.
    fn says(&self, command: &[&str], kid: &str) -> String {
        self.write("quotesign.toml", &self.config);
        let mut command = {
            let mut run = quotesign();
            run.args(command).arg("--config").arg(self.path("quotesign.toml"));
            run
        };
        let said = failed(command.envs(self.env.iter().copied()).output().unwrap(), 2);
        said.replace(&format!("{}/", self.dir.path().display()), "").replace(kid, "<kid>")
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

type Case = (&'static str, fn(&mut Broken));

const UNREADABLE: &[Case] = &[
    (
        "quotesign.toml: line 9: `grpc.reflexion`: unknown field `reflexion`, expected one of `listen`, `certificate`, `private_key`, `client_ca`, `trust_domain`, `reflection`",
        |it| {
            it.add("trust_domain = \"dev.quotesign.example\"", "reflexion = true");
        },
    ),
    (
        "quotesign.toml: line 28: `limit`: unknown field `limit`, expected one of `environment`, `policy`, `policy_key`, `grpc`, `admin`, `jwks`, `operations`, `ledger`, `signers`, `aws_kms`, `limits`, `clock`, `drain`, `log`, `audit`, `otlp`",
        |it| {
            it.swap("[limits]", "[limit]");
        },
    ),
    (
        "quotesign.toml: line 27: `signers[0].pin`: unknown field `pin`, expected one of `name`, `module`, `token`, `serial`, `pin_file`, `pin_env`, `sessions`, `queue_max`, `call_timeout_ms`, `probe_interval_ms`, `environment`",
        |it| {
            it.swap("pin_file = \"pin\"", "pin = \"4711\"");
        },
    ),
    ("quotesign.toml: line 27: `signers[0].pin_file`: is of the wrong type; give a text, and no PIN", |it| {
        it.swap("pin_file = \"pin\"", "pin_file = 98765432");
    }),
    ("quotesign.toml: line 9: `grpc.reflection` = `\"yes\"`: invalid type: string \"yes\", expected a boolean", |it| {
        it.add("trust_domain = \"dev.quotesign.example\"", "reflection = \"yes\"");
    }),
    (
        "quotesign.toml: line 29: `limits.streams_max` = `\"many\"`: invalid type: string \"many\", expected a whole number that is not negative",
        |it| {
            it.swap("streams_max = 16", "streams_max = \"many\"");
        },
    ),
    (
        "quotesign.toml: line 29: `limits.streams_max` = `-1`: invalid value: integer `-1`, expected a whole number that is not negative",
        |it| {
            it.swap("streams_max = 16", "streams_max = -1");
        },
    ),
    (
        "quotesign.toml: line 20: `operations.listen` = `\"localhost:9464\"`: not an address and port; write it as `127.0.0.1:8443`",
        |it| {
            it.swap("127.0.0.1:19464", "localhost:9464");
        },
    ),
    (
        "quotesign.toml: line 1: `environment` = `\"staging\"`: unknown variant `staging`, expected one of `development`, `sandbox`, `production`",
        |it| {
            it.swap("\"development\"", "\"staging\"");
        },
    ),
    ("quotesign.toml: line 31: `log.format` = `\"xml\"`: unknown variant `xml`, expected `json` or `text`", |it| {
        it.add("[log]", "format = \"xml\"");
    }),
    ("quotesign.toml: line 21: unclosed table, expected `]`", |it| it.swap("[ledger]", "[ledger")),
    ("quotesign.toml: line 3: duplicate key", |it| it.add("policy = \"policy\"", "policy = \"other\"")),
    ("quotesign.toml: line 1: missing field `policy`", |it| it.swap("policy = \"policy\"\n", "")),
    ("quotesign.toml: line 1: missing field `operations`", |it| {
        it.swap("[operations]\nlisten = \"127.0.0.1:19464\"\n", "");
    }),
    (
        "quotesign.toml: the environment variable `QUOTESIGN__GRPC__LISTEN`: `grpc.listen` = `\"everywhere\"`: not an address and port; write it as `127.0.0.1:8443`",
        |it| {
            it.env.push(("QUOTESIGN__GRPC__LISTEN", "everywhere"));
        },
    ),
    (
        "quotesign.toml: the environment variable `QUOTESIGN__DRAIN__GRACE`: `drain.grace`: unknown field `grace`, expected `grace_ms` or `timeout_ms`",
        |it| {
            it.env.push(("QUOTESIGN__DRAIN__GRACE", "1"));
        },
    ),
    (
        "quotesign.toml: the environment variable `QUOTESIGN__SIGNERS__NAME` names no field that can be set; lists such as signers are set in the file",
        |it| {
            it.env.push(("QUOTESIGN__SIGNERS__NAME", "hsm"));
        },
    ),
];

const UNFIT: &[Case] = &[
    (
        "quotesign.toml: `grpc.listen` = `127.0.0.1:18443` is also `jwks.listen`; give each listener an address of its own",
        |it| {
            it.swap("127.0.0.1:18445", "127.0.0.1:18443");
        },
    ),
    ("quotesign.toml: `limits.streams_max` = `0` lets nothing through; raise it", |it| {
        it.swap("streams_max = 16", "streams_max = 0");
    }),
    ("quotesign.toml: `limits.handshake_timeout_ms` = `0` lets nothing through; raise it", |it| {
        it.add("[limits]", "handshake_timeout_ms = 0");
    }),
    ("quotesign.toml: `limits.deadline_ms_max` = `0` lets nothing through; raise it", |it| {
        it.env.push(("QUOTESIGN__LIMITS__DEADLINE_MS_MAX", "0"));
    }),
    ("quotesign.toml: `limits.payload_bytes_max` = `2000000` is above 65536; a quote is small, lower it", |it| {
        it.add("[limits]", "payload_bytes_max = 2000000");
    }),
    (
        "quotesign.toml: `ledger.postgres.address` cannot be read; write it as `postgresql://user@host:5432/database`",
        |it| it.postgres(r#"address = "127.0.0.1""#),
    ),
    (
        "quotesign.toml: `ledger.postgres.address` holds a password; put it into the file that `password_file` names",
        |it| it.postgres(r#"address = "postgresql://gw:not-a-real-one@127.0.0.1/ledger""#),
    ),
    (
        "quotesign.toml: `ledger.postgres.address` lacks a part; write it as `postgresql://user@host:5432/database`",
        |it| it.postgres(r#"address = "postgresql://127.0.0.1/ledger""#),
    ),
    ("quotesign.toml: `ledger.postgres.address` sets options; the gateway sets its own, leave them out", |it| {
        it.postgres(r#"address = "postgresql://gw@127.0.0.1/ledger?options=-cfsync%3Doff""#);
    }),
    (
        "quotesign.toml: `ledger.postgres.ca`: give the CA of the server's certificate; only a server on this machine is talked to without TLS",
        |it| it.postgres(r#"address = "postgresql://gw@db.example/ledger""#),
    ),
    ("quotesign.toml: `ledger.postgres`: give `certificate`, `private_key` and `ca` together", |it| {
        it.postgres(
            r#"address = "postgresql://gw@127.0.0.1/ledger"
certificate = "tls/server.pem""#,
        );
    }),
    (
        "quotesign.toml: `ledger.postgres.replica` = `a b` is no name; give 1 to 63 letters, digits, `-`, `.` or `_`",
        |it| {
            it.postgres(
                r#"address = "postgresql://gw@127.0.0.1/ledger"
replica = "a b""#,
            );
        },
    ),
    ("quotesign.toml: `ledger.postgres.timeout_ms` = `0` is out of range; give 1 to 60000", |it| {
        it.postgres(
            r#"address = "postgresql://gw@127.0.0.1/ledger"
timeout_ms = 0"#,
        );
    }),
    ("quotesign.toml: `ledger`: give the ledger's place by `sqlite` or by `postgres`, one of them", |it| {
        it.swap("sqlite = \"ledger.sqlite\"\n", "");
    }),
    ("quotesign.toml: `ledger.queue_max` = `0` lets nothing through; raise it", |it| {
        it.add("[ledger]", "queue_max = 0");
    }),
    ("quotesign.toml: `signers[0].sessions` of `hsm-primary` = `0` lets nothing through; raise it", |it| {
        it.add("pin_file = \"pin\"", "sessions = 0");
    }),
    (
        "quotesign.toml: `signers[0].environment` of `hsm-primary`: `A=B` cannot be the name of a variable; mend it",
        |it| {
            it.add("pin_file = \"pin\"", "environment = { \"A=B\" = \"c\" }");
        },
    ),
    (
        "quotesign.toml: `signers[0]`: `hsm-primary` and `hsm-again` are one token; name it once, and raise its `sessions`",
        |it| {
            let module = "/usr/lib/softhsm/libsofthsm2.so";
            let signer = format!(
                "[[signers]]\nname = \"hsm-again\"\nmodule = \"{module}\"\ntoken = \"quotesign-dev\"\npin_file = \"pin\""
            );
            it.swap("[limits]", &format!("{signer}\n[limits]"));
        },
    ),
    ("quotesign.toml: `signers[0].call_timeout_ms` of `hsm-primary` = `0` lets nothing through; raise it", |it| {
        it.add("pin_file = \"pin\"", "call_timeout_ms = 0");
    }),
    ("quotesign.toml: `signers[0]`: give the PIN of `hsm-primary` by `pin_file` or by `pin_env`, one of them", |it| {
        it.add("pin_file = \"pin\"", "pin_env = \"PIN\"");
    }),
    ("quotesign.toml: `signers[0]`: give the PIN of `hsm-primary` by `pin_file` or by `pin_env`, one of them", |it| {
        it.swap("pin_file = \"pin\"\n", "");
    }),
    (
        "quotesign.toml: `signers[0].name` = `hsm-primary` stands there twice; give each signer a name of its own",
        |it| {
            let signer = "[[signers]]\nname = \"hsm-primary\"\nmodule = \"m\"\ntoken = \"t\"\npin_file = \"pin\"";
            it.swap("[limits]", &format!("{signer}\n[limits]"));
        },
    ),
    (
        "quotesign.toml: `grpc.trust_domain` = `spiffe://dev.example` is no SPIFFE trust domain; write it as `prod.example`",
        |it| {
            it.swap("\"dev.quotesign.example\"", "\"spiffe://dev.example\"");
        },
    ),
    (
        "quotesign.toml: `log.filter` = `quotesign=loud`: error parsing level filter: expected one of \"off\", \"error\", \"warn\", \"info\", \"debug\", \"trace\", or a number 0-5; write it as `info` or `quotesign=debug,info`",
        |it| {
            it.swap("\"off\"", "\"quotesign=loud\"");
        },
    ),
];

const AROUND: &[Case] = &[
    (
        "[grpc]: `tls/server.pem`: cannot be read: No such file or directory (os error 2); give a file with certificates in PEM",
        |it| {
            it.remove("tls/server.pem");
        },
    ),
    ("[grpc]: `tls/ca.pem`: holds none; give a file with certificates in PEM", |it| it.write("tls/ca.pem", "\n")),
    ("[grpc]: `tls/server.key`: holds none; give a file with a private key in PEM", |it| {
        it.write("tls/server.key", "no key");
    }),
    ("[admin]: `tls/pricing.key`: is not the key of `tls/server.pem`; give the one that belongs to it", |it| {
        let section = "[admin]\nlisten = \"127.0.0.1:18444\"\ncertificate = \"tls/server.pem\"\nprivate_key = ";
        it.swap(&format!("{section}\"tls/server.key\""), &format!("{section}\"tls/pricing.key\""));
    }),
    (
        "the PIN of `hsm-primary`: the file that `pin_file` names cannot be read: No such file or directory (os error 2); write the PIN there",
        |it| {
            it.remove("pin");
        },
    ),
    ("the PIN of `hsm-primary`: the file that `pin_file` names is empty; write the PIN there", |it| {
        it.write("pin", "\n");
    }),
    ("the PIN of `hsm-primary`: set the environment variable that `pin_env` names", |it| {
        it.swap("pin_file = \"pin\"", "pin_env = \"NO_SUCH_PIN\"");
    }),
    ("nowhere/ cannot be read: No such file or directory (os error 2); give the directory of a policy bundle", |it| {
        it.swap("policy = \"policy\"", "policy = \"nowhere\"");
    }),
    ("policy/keys/<kid>.jwk.json: is missing; write it with `quotesign keys jwk`", |it| {
        it.remove("policy/keys");
        fs::create_dir(it.path("policy/keys")).unwrap();
    }),
    ("policy/policy.toml: `environment` = `development`, and this gateway is for sandbox; use its own bundle", |it| {
        it.swap("\"development\"", "\"sandbox\"");
    }),
    (
        "policy/policy.toml: key `<kid>`: no signer of the gateway's config is named `hsm-primary`; add it or mend the name",
        |it| {
            it.swap("\"hsm-primary\"", "\"hsm-other\"");
        },
    ),
    ("policy/policy.toml: the partner `acme-remit` stands there twice; remove one", |it| {
        let partner = "[[partners]]\nid = \"acme-remit\"\ncontracts = []\njwks_hosts = []\ncontacts = {}\n\
                       sequence = { scope = [\"partner\"], jump_max = 1 }\n";
        it.swap_in("policy/policy.toml", "[[partners]]", &format!("{partner}[[partners]]"));
    }),
    (
        "the ledger `ledger.sqlite` does not exist: run `quotesign ledger migrate`, or, where it was lost, `quotesign ledger restore`",
        |it| it.remove("ledger.sqlite"),
    ),
    ("the ledger `ledger.sqlite` was never migrated: run `quotesign ledger migrate`", |it| {
        it.write("ledger.sqlite", "");
    }),
    (
        "the ledger `ledger.sqlite` belongs to the environment `sandbox`, not to `development`: name that environment's own",
        |it| {
            let ledger = Connection::open(it.path("ledger.sqlite")).unwrap();
            ledger.execute("UPDATE meta SET environment = 'sandbox'", ()).unwrap();
        },
    ),
    ("the ledger's file is damaged: file is not a database; restore it from a backup", |it| {
        it.write("ledger.sqlite", &"x".repeat(8192));
    }),
];

#[test]
fn each_bad_config_is_one_line_with_its_remedy_and_starts_nothing() {
    let site = Site::new();
    let keys = fs::read_dir(site.path("policy/keys")).unwrap().next().unwrap().unwrap().file_name();
    let kid = keys.to_str().unwrap().strip_suffix(".jwk.json").unwrap();
    for (line, spoil) in [UNREADABLE, UNFIT, AROUND].concat() {
        let mut broken = Broken::of(&site);
        spoil(&mut broken);
        let expected = format!("quotesign: {line}\n");
        assert_eq!(broken.says(&["config", "check"], kid), expected);
        assert_eq!(broken.says(&["serve"], kid), expected);
        File::open(broken.path("ledger.sqlite.lock")).unwrap().try_lock().unwrap();
    }
    let good = Broken::of(&site);
    good.write("quotesign.toml", &good.config);
    let said = quotesign().args(["config", "check", "--config"]).arg(good.path("quotesign.toml")).output().unwrap();
    assert!(done(said).contains("quotesign.toml: good\nenvironment development, policy serial 1, digest "));
    let nowhere = quotesign().args(["serve", "--config", "nowhere.toml"]).output().unwrap();
    let line = "nowhere.toml: cannot be read: No such file or directory (os error 2); name the file with --config";
    assert_eq!(failed(nowhere, 2), format!("quotesign: {line}\n"));
}

#[test]
fn an_address_in_use_is_named_and_the_others_are_let_go() {
    let site = Site::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut serve = site.command();
    serve.args(["serve", "--config"]).arg(site.config()).env("QUOTESIGN__LOG__FILTER", "off");
    serve.env("QUOTESIGN__GRPC__LISTEN", free.to_string()).env("QUOTESIGN__ADMIN__LISTEN", &address);
    let why = "cannot be bound: Address already in use (os error 98); free it or give another";
    assert_eq!(failed(serve.output().unwrap(), 2), format!("quotesign: `admin.listen` = `{address}` {why}\n"));
    drop(TcpListener::bind(free).unwrap());
    done(site.run(&["ledger", "migrate"]));
}
