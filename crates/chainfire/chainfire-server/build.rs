//! Compiles proto/chainfire (the members' own protocol) with protox.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = "../../../proto/chainfire";
    println!("cargo:rerun-if-changed={root}");
    let fds = protox::compile(["peer.proto"], [root])?;
    tonic_prost_build::configure().bytes(".").compile_fds(fds)?;
    Ok(())
}
