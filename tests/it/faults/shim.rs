//! A site whose token stands behind the shim of `tests/p11shim`, so that its module can be disturbed at will.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use crate::harness::{PATIENCE, Site};

/// The shim, built by the cargo that runs the tests.
fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--locked", "--package", "quotesign-p11shim"]);
        let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
        assert!(built.success(), "the shim does not build");
        let beside = Path::new(env!("CARGO_BIN_EXE_quotesign")).parent().unwrap();
        beside.join("libp11shim.so")
    })
}

/// What disturbs a site's token.
pub struct Shim {
    control: PathBuf,
    log: PathBuf,
    /// The module's file as the gateway's config has it; a copy, so that it can be taken away.
    pub module: PathBuf,
}

impl Shim {
    /// Puts the shim before the site's module.
    pub fn before(site: &Site) -> Self {
        let shim = Self { control: site.path("faults"), log: site.path("faults.log"), module: site.path("module.so") };
        fs::copy(library(), &shim.module).unwrap();
        site.edit_config(|config| {
            let signer = &mut config["signers"][0];
            let real = signer["module"].as_str().unwrap().to_owned();
            signer["module"] = toml_edit::value(shim.module.to_str().unwrap());
            for (name, value) in [
                ("MODULE", real.as_str()),
                ("CONTROL", shim.control.to_str().unwrap()),
                ("LOG", shim.log.to_str().unwrap()),
            ] {
                signer["environment"][format!("P11SHIM_{name}")] = toml_edit::value(value);
            }
        });
        shim
    }

    /// Has these rules hold from now on, and no others. Renamed into place, so that none is read half.
    pub fn rules(&self, rules: &str) {
        let new = self.control.with_extension("new");
        fs::write(&new, rules).unwrap();
        fs::rename(&new, &self.control).unwrap();
    }

    /// Has this rule act once. It is gone before the next process of the module comes, which would count anew.
    pub fn once(&self, rule: &str) {
        let function = rule.split(' ').next().unwrap();
        let (before, since) = (self.faults(function), Instant::now());
        self.rules(rule);
        while self.faults(function) == before {
            assert!(since.elapsed() < PATIENCE, "`{rule}` never acted");
            thread::sleep(Duration::from_micros(200));
        }
        self.rules("");
    }

    /// How many faults of this kind there were.
    pub fn faults(&self, kind: &str) -> usize {
        fs::read_to_string(&self.log).unwrap_or_default().lines().filter(|line| line.starts_with(kind)).count()
    }
}
