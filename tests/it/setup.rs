//! The scripts that install what the tests need, on machines that are not as this one.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, Output},
};

use rustix::process::geteuid;
use tempfile::TempDir;

use crate::harness::{done, failed};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn the_tests_say_first_on_which_system_they_run() {
    let home = TempDir::new().unwrap();
    let setup = |system: &str| {
        let file = home.path().join("os-release");
        fs::write(&file, system).unwrap();
        Command::new(format!("{ROOT}/scripts/setup")).arg("test").env("OS_RELEASE", file).output().unwrap()
    };
    for (system, told) in [
        ("ID=ubuntu\nVERSION_ID=\"24.04\"\n", "this is ubuntu 24.04"),
        ("ID=debian\nVERSION_ID=\"13\"\n", "this is debian 13"),
    ] {
        let said = failed(setup(system), 1);
        assert!(said.contains("the tests need Debian 12") && said.contains(told), "{said}");
    }
}

/// Installs a package that is not there as somebody who is not root, with these commands in the place of the machine's.
fn install(commands: &[(&str, &str)]) -> Output {
    let home = TempDir::new().unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let put = |name: &str, text: &str| {
        let file = home.path().join(name);
        fs::write(&file, text).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
    };
    for (name, text) in commands {
        put(name, &format!("#!/bin/sh\n{text}\n"));
    }
    put("steps.sh", &fs::read_to_string(Path::new(ROOT).join("scripts/modules/steps.sh")).unwrap());
    let mut bash = Command::new("bash");
    bash.args(["-c", "source \"$0\"/steps.sh; install_packages no-such-package"]).arg(home.path());
    bash.current_dir("/").env("PATH", format!("{}:/usr/bin:/bin", home.path().display()));
    if geteuid().is_root() {
        bash.uid(65532).gid(65532);
    }
    bash.output().unwrap()
}

#[test]
fn a_module_s_packages_are_installed_by_whoever_may_become_root() {
    let apt = ("apt-get", "[ \"$AS_ROOT\" = yes ] || exit 1\necho \"apt-get $*\" >&2");
    let sudo = ("sudo", "[ \"$1\" = -n ] && shift\nAS_ROOT=yes exec \"$@\"");
    let output = install(&[apt, sudo]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    done(output);
    assert!(told.contains(" install --yes --no-install-recommends no-such-package"), "{told}");
    let said = failed(install(&[apt, ("sudo", "exit 1")]), 1);
    assert!(said.contains("missing: no-such-package; run") && said.contains("as root"), "{said}");
}
