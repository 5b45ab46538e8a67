//! Compiles the agent protocol with protox, so that a build needs no `protoc`.

use std::path::Path;

const PROTO_ROOT: &str = "../../../proto";
const AGENT: &str = "../../../proto/hearth/agent/v1/agent.proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed={AGENT}");
    let descriptors = protox::compile([Path::new(AGENT)], [Path::new(PROTO_ROOT)])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
