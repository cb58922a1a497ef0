//! Compiles `proto/` without `protoc`; the same descriptor bytes serve gRPC reflection.

use std::{env, error::Error, fs, path::PathBuf};

use protox::prost::Message as _;

const FILES: [&str; 4] = [
    "quotesign/v1/reason.proto",
    "quotesign/v1/quote_signing.proto",
    "quotesign/v1/key_directory.proto",
    "quotesign/v1/admin.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(true).include_imports(true);
    compiler.open_files(FILES)?;
    let descriptors = compiler.file_descriptor_set();
    fs::write(out.join("quotesign.descriptors"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
