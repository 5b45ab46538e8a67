//! The Rust crate `etcd-client`, unmodified, through everything that it offers, against three members: `tests/compat/etcd-client`
//! of the workspace. Skipped, with a line that says so, where protoc is not installed, which that crate needs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use common::Cluster;

/// Steps of the tour with `all`.
const STEPS: usize = 18;

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_tour() {
    let Some(program) = build() else {
        println!(
            "SKIPPED: the etcd-client crate needs protoc (apt-get install protobuf-compiler libprotobuf-dev)"
        );
        return;
    };
    let cluster = Cluster::start_with(3, "bcrypt_cost = 4\nauth_token_ttl_s = 3").await;
    // Its own limit on each step ends it.
    let out = Command::new(program)
        .arg(cluster.endpoints().join(","))
        .arg("all")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}{errors}\n{}", cluster.logs());
    assert_eq!(said.lines().count(), STEPS, "{said}");
}

/// A workspace of its own, because its crate wants protoc.
fn build() -> Option<PathBuf> {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("protoc").is_file()));
    if !found || !Path::new("/usr/include/google/protobuf/empty.proto").is_file() {
        return None;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(3).unwrap();
    let own = std::env::current_exe().unwrap();
    let target = own.ancestors().nth(3).unwrap().join("compat");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let out = Command::new(cargo)
        .args(["build", "--locked", "--quiet", "--manifest-path"])
        .arg(root.join("tests/compat/etcd-client/Cargo.toml"))
        .env("CARGO_TARGET_DIR", &target)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(target.join("debug/etcd-client-tour"))
}
