//! Each invariant is broken on purpose in a fixture; the sound fixture has no finding.

use super::{layers, manifests, sizes, sources};

/// A small house in the form of `cargo metadata --no-deps`, without any fault.
fn sound() -> serde_json::Value {
    serde_json::from_str(include_str!("../../fixtures/sound.json")).unwrap()
}

fn findings_with(package: &str, dependency: &str, kind: Option<&str>) -> Vec<String> {
    let mut metadata = sound();
    let packages = metadata["packages"].as_array_mut().unwrap();
    let found = packages.iter_mut().find(|p| p["name"] == package).unwrap();
    found["dependencies"]
        .as_array_mut()
        .unwrap()
        .push(serde_json::json!({"name": dependency, "kind": kind}));
    layers::check(&layers::parse(&metadata.to_string()).unwrap())
}

#[track_caller]
fn breaks(package: &str, dependency: &str, words: &str) {
    let findings = findings_with(package, dependency, None);
    assert!(
        findings.iter().any(|f| f.contains(words)),
        "{package} -> {dependency}: {findings:?}"
    );
}

#[test]
fn the_sound_fixture_has_no_finding() {
    let packages = layers::parse(&sound().to_string()).unwrap();
    assert!(packages.len() > 10);
    assert_eq!(layers::check(&packages), Vec::<String>::new());
}

#[test]
fn invariant_1_an_arrow_that_points_up() {
    breaks("hearth-types", "hearth-service", "points up");
    breaks("hearth-service", "chainfire-client", "points up");
    breaks("chainfire-client", "chainfire-server", "points up");
    breaks("chainfire-core", "kv-engine", "points up");
    breaks("plasmavmc-server", "xtask", "points up");
}

#[test]
fn invariant_1_a_chain_that_is_too_long() {
    let names = [
        "hearth",
        "iam-client",
        "chainfire-client",
        "raft-host",
        "kv-engine",
        "hearth-service",
    ];
    let mut packages = vec![];
    for (index, name) in names.iter().chain(["iam-authz", "iam-authn"].iter()).enumerate() {
        let next = names
            .iter()
            .chain(["iam-authz", "iam-authn"].iter())
            .nth(index + 1);
        let dependencies: Vec<_> = next
            .iter()
            .map(|n| serde_json::json!({"name": n, "kind": null}))
            .collect();
        packages.push(
            serde_json::json!({"name": name, "manifest_path": "/x/Cargo.toml", "dependencies": dependencies}),
        );
    }
    let metadata = serde_json::json!({ "packages": packages }).to_string();
    let findings = layers::check(&layers::parse(&metadata).unwrap());
    assert!(
        findings.iter().any(|f| f.contains("chain of 8 crates")),
        "{findings:?}"
    );
}

#[test]
fn invariant_1_a_crate_nobody_placed() {
    let metadata = r#"{"packages":[{"name":"common","manifest_path":"/x/Cargo.toml","dependencies":[]}]}"#;
    let findings = layers::check(&layers::parse(metadata).unwrap());
    assert!(
        findings.iter().any(|f| f.contains("not in the layer table")),
        "{findings:?}"
    );
}

#[test]
fn invariant_2_a_pure_core_on_a_runtime() {
    for foreign in ["tokio", "tonic", "axum", "rand", "getrandom", "nix", "reqwest"] {
        breaks("chainfire-core", foreign, "is pure");
    }
    breaks("hearth-types", "tokio", "is pure");
    assert_eq!(
        findings_with("chainfire-core", "tokio", Some("dev")),
        Vec::<String>::new()
    );
}

#[test]
fn invariant_2_a_pure_core_that_touches_the_machine() {
    for line in [
        "let now = SystemTime::now();",
        "let t = std::time::Instant::now();",
        "std::fs::read(path)",
        "let s = std::net::TcpStream::connect(a)",
        "let r: u8 = rand::random();",
        "async fn step() {}",
    ] {
        let text = format!("fn f() {{\n    {line}\n}}\n");
        assert_eq!(sources::impure("core.rs", &text).len(), 1, "{line}");
    }
    let clean = "use std::net::Ipv4Addr;\n// SystemTime::now() is the shell's\nfn f(now: u64) {}\n";
    assert_eq!(sources::impure("core.rs", clean), Vec::<String>::new());
    let in_tests = "fn f() {}\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\nfn g() {}\n";
    assert_eq!(sources::impure("core.rs", in_tests), Vec::<String>::new());
    let after = "#[cfg(test)]\nmod tests;\nfn g() { std::fs::read(p) }\n";
    assert_eq!(sources::impure("core.rs", after).len(), 1);
}

#[test]
fn invariant_3_a_service_on_anothers_inside() {
    breaks("plasmavmc-server", "iam-authz", "another one's -client only");
    breaks("flashdns-server", "chainfire-core", "another one's -client only");
    breaks("iam-server", "chainfire-server", "servers are processes");
    breaks(
        "chainfire-server",
        "iam-client",
        "Chainfire knows nothing of Aegis",
    );
    breaks(
        "chainfire-client",
        "iam-client",
        "Chainfire knows nothing of Aegis",
    );
    breaks("hearth", "plasmavmc-server", "clients only");
}

#[test]
fn a_simulation_is_for_xtask() {
    breaks("hearthd", "chainfire-sim", "for xtask only");
}

#[test]
fn testkit_is_for_tests() {
    breaks("raft-host", "testkit", "dev-dependency only");
    breaks("raft-host", "test-ports", "dev-dependency only");
    assert_eq!(
        findings_with("raft-host", "testkit", Some("dev")),
        Vec::<String>::new()
    );
}

#[test]
fn manifests_take_lints_and_versions_from_the_workspace() {
    let sound = "[package]\nname='a'\nversion.workspace=true\nedition.workspace=true\nlicense.workspace=true\n\
                 [lints]\nworkspace=true\n[dependencies]\nserde.workspace=true\n";
    assert_eq!(manifests::check("a", sound).unwrap(), Vec::<String>::new());
    let faults = [
        ("serde.workspace=true", "serde='1'", "states its own version"),
        ("[lints]\nworkspace=true\n", "", "lacks `[lints]"),
        ("edition.workspace=true", "edition='2021'", "package.edition"),
    ];
    for (from, to, words) in faults {
        let findings = manifests::check("a", &sound.replace(from, to)).unwrap();
        assert!(
            findings.iter().any(|f| f.contains(words)),
            "{words}: {findings:?}"
        );
    }
}

#[test]
fn foreign_crates_are_explained() {
    let root = "[workspace.dependencies]\nserde='1'\nbytes='1'\nours={path='x'}\nbad={git='y'}\n";
    let document = "| `serde` | why | who | how |\n| `bad` | | | |\n";
    let findings = manifests::undocumented(root, document).unwrap();
    assert_eq!(findings.len(), 2, "{findings:?}");
    assert!(findings.iter().any(|f| f.contains("`bytes` has no line")));
    assert!(findings.iter().any(|f| f.contains("`bad` comes from git")));
}

#[test]
fn crates_explain_themselves() {
    let sound = "//! Places guests on nodes by capacity.\n//!\n//! Does not know: the network.\n\
                 //! Entry points: `place`.\n//! Invariants: never oversubscribes.\n\npub fn place() {}\n";
    assert_eq!(sources::header("a", sound), Vec::<String>::new());
    for word in ["Does not know", "Entry points", "Invariants"] {
        assert_eq!(sources::header("a", &sound.replace(word, "x")).len(), 1, "{word}");
    }
    assert_eq!(sources::header("a", "//! skeleton\n").len(), 1);
}

#[test]
fn a_to_do_names_its_issue() {
    let word = concat!("TO", "DO");
    assert_eq!(sources::unowned("a.rs", &format!("// {word}: later")).len(), 1);
    assert_eq!(
        sources::unowned("a.rs", &format!("// {word}(#12): later")),
        Vec::<String>::new()
    );
}

#[test]
fn function_lengths_follow_the_layout() {
    let text = "pub(crate) fn one() {\n    a();\n}\n\nimpl X {\n    async fn two(\n        a: u8,\n    ) {\n        b();\n    }\n}\n";
    assert_eq!(
        sizes::function_lengths(text),
        [("one".to_owned(), 3), ("two".to_owned(), 5)]
    );
}
