//! Compiles proto/etcd with protox: no protoc on the machine is needed. The descriptors are kept for who maps the
//! messages to JSON.

use protox::prost::Message;

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
    let mut plain = fds.clone();
    plain
        .file
        .iter_mut()
        .for_each(|file| file.source_code_info = None);
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    std::fs::write(out.join("etcd.bin"), plain.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(fds)?;
    Ok(())
}
