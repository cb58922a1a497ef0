//! The root file system of the image, without a container engine: the binary runs in it, and what it lacks is seen.

use std::{collections::BTreeSet, fs, process::Command};

use tempfile::TempDir;

use crate::harness::done;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const BINARY: &str = env!("CARGO_BIN_EXE_quotesign");

fn script(name: &str) -> Command {
    Command::new(format!("{ROOT}/scripts/{name}"))
}

#[test]
fn the_binary_serves_in_the_root_file_system_of_the_image_and_a_file_that_is_missing_is_found() {
    let home = TempDir::new().unwrap();
    let root = home.path().join("root");
    done(script("image-rootfs").arg(BINARY).arg(&root).output().unwrap());
    let told = done(script("image-check").arg(BINARY).arg(&root).output().unwrap());
    assert!(told.ends_with("image-check: ended by SIGTERM with 0\n"), "{told}");
    // The machine itself has both, which is what must not help.
    for (missing, says) in [
        ("etc/ssl/certs/ca-certificates.crt", "/etc/ssl/certs/ca-certificates.crt"),
        ("lib/x86_64-linux-gnu/libm.so.6", "libm.so.6"),
    ] {
        let file = root.join(missing.replace("x86_64", std::env::consts::ARCH));
        fs::remove_file(file).unwrap();
        let output = script("image-check").arg(BINARY).arg(&root).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && told.contains(says), "{told}");
    }
}

#[test]
fn the_image_is_what_the_script_makes_and_nothing_else() {
    let file = fs::read_to_string(format!("{ROOT}/Dockerfile")).unwrap();
    let (build, last) = file.split_once("\nFROM scratch\n").unwrap();
    assert!(build.ends_with("scripts/image-rootfs target/release/quotesign /rootfs\n"), "{build}");
    let copied: Vec<_> = last.lines().filter(|line| line.starts_with("COPY") || line.starts_with("ADD")).collect();
    assert_eq!(copied, ["COPY --from=build /rootfs/ /"]);
    assert!(!last.contains("RUN ") && last.contains("\nUSER 65532:65532\n"));
    let toolchain = fs::read_to_string(format!("{ROOT}/rust-toolchain.toml")).unwrap();
    let version = toolchain.split_once("channel = \"").unwrap().1.split_once('"').unwrap().0;
    assert!(build.contains(&format!("=rust:{version}-slim-")), "the image is built by another toolchain");
    // A path of the build is found in the binary by its name: it must not be called what such paths are renamed to.
    let folder = build.split_once("\nWORKDIR ").unwrap().1.lines().next().unwrap();
    let renames = fs::read_to_string(format!("{ROOT}/scripts/image-binary")).unwrap();
    let names: BTreeSet<&str> = renames
        .split("-prefix-map=")
        .chain(renames.split("--remap-path-prefix="))
        .skip(1)
        .filter_map(|rename| rename.split_once('=')?.1.split([' ', '"']).next())
        .filter(|name| name.starts_with('/'))
        .collect();
    assert_eq!(names.iter().copied().collect::<Vec<_>>(), ["/cargo", "/rust", "/src"]);
    assert!(names.iter().all(|name| !folder.starts_with(name)), "{folder} is what a path of the build is renamed to");
    // Who it runs as is the chart's, too.
    let chart = fs::read_to_string(format!("{ROOT}/helm/quotesign/templates/_names.tpl")).unwrap();
    assert!(chart.contains("runAsUser: 65532") && chart.contains("fsGroup: 65532"));
}
