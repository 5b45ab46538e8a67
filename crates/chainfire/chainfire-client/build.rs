//! Compiles proto/etcd with protox: no protoc on the machine is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = "../../../proto/etcd";
    println!("cargo:rerun-if-changed={root}");
    let fds = protox::compile(
        [
            "rpc.proto",
            "kv.proto",
            "auth.proto",
            "election.proto",
            "lock.proto",
        ],
        [root],
    )?;
    tonic_prost_build::configure().bytes(".").compile_fds(fds)?;
    Ok(())
}
