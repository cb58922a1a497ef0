//! Marks the module as one that is never unloaded, so that the counts of its rules outlive a caller that drops the
//! module and loads it again, and a thread that hangs inside it keeps its code.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo::rerun-if-changed=build.rs");
}
