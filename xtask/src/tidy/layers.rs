//! Invariants 1 to 3 as far as the dependency graph tells: who may depend on whom.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use serde::Deserialize;

use super::Finding;

/// Longest allowed chain of our own crates.
const LONGEST_CHAIN: usize = 7;

/// Where a crate stands; arrows point from higher to lower or stay on a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    Types,
    Core,
    Frame,
    Client,
    Server,
    Top,
}

/// Every crate of the house: layer and the service that it belongs to (empty: nobody's own).
/// A new crate is entered here, which makes its place a decision.
const TABLE: &[(&str, Layer, &str)] = &[
    ("hearth-types", Layer::Types, ""),
    ("chainfire-core", Layer::Core, "chainfire"),
    ("iam-authn", Layer::Core, "aegis"),
    ("iam-authz", Layer::Core, "aegis"),
    ("flashdns-core", Layer::Core, "flashdns"),
    ("plasmavmc-core", Layer::Core, "plasmavmc"),
    ("kv-engine", Layer::Frame, ""),
    ("raft-host", Layer::Frame, ""),
    ("hearth-service", Layer::Frame, ""),
    ("test-ports", Layer::Frame, ""),
    ("testkit", Layer::Frame, ""),
    ("plasmavmc-hypervisor", Layer::Frame, "plasmavmc"),
    // For development only: the suite over the hypervisors, and the imitation of one.
    ("plasmavmc-contract", Layer::Frame, "plasmavmc"),
    ("chainfire-client", Layer::Client, "chainfire"),
    ("iam-client", Layer::Client, "aegis"),
    ("flashdns-client", Layer::Client, "flashdns"),
    ("plasmavmc-client", Layer::Client, "plasmavmc"),
    ("chainfire-server", Layer::Server, "chainfire"),
    // For development only: nothing but xtask and its own tests may stand on it.
    ("chainfire-sim", Layer::Server, "chainfire"),
    ("plasmavmc-sim", Layer::Server, "plasmavmc"),
    ("iam-server", Layer::Server, "aegis"),
    ("flashdns-server", Layer::Server, "flashdns"),
    ("plasmavmc-agent", Layer::Server, "plasmavmc"),
    ("plasmavmc-guard", Layer::Server, "plasmavmc"),
    ("plasmavmc-server", Layer::Server, "plasmavmc"),
    ("hearth", Layer::Top, ""),
    ("hearthd", Layer::Top, ""),
    ("hearth-tests", Layer::Top, ""),
    ("xtask", Layer::Top, ""),
];

/// The simulation of a server: it links that server and testkit, and only xtask links it.
const SIMULATIONS: &[(&str, &str)] = &[
    ("chainfire-sim", "chainfire-server"),
    ("plasmavmc-sim", "plasmavmc-core"),
];

/// What only tests stand on.
const FOR_TESTS: &[&str] = &["testkit", "test-ports"];

/// What a pure core may not stand on: run time, network, files, clock, randomness.
const IMPURE: &[&str] = &[
    "tokio",
    "tokio-util",
    "tokio-stream",
    "async-std",
    "smol",
    "futures",
    "tonic",
    "axum",
    "hyper",
    "hyper-util",
    "tower",
    "reqwest",
    "rand",
    "rand_chacha",
    "getrandom",
    "socket2",
    "nix",
    "libc",
    "tempfile",
    "fjall",
    "raft-engine",
];

/// One workspace member, as `cargo metadata --no-deps` describes it.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    #[serde(rename = "manifest_path")]
    pub(crate) manifest: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// None: ordinary; "dev" or "build" else.
    kind: Option<String>,
}

impl Package {
    /// What ends up in the built crate; tests may depend on what they like.
    fn built_on(&self) -> impl Iterator<Item = &str> {
        self.dependencies
            .iter()
            .filter(|d| d.kind.as_deref() != Some("dev"))
            .map(|d| d.name.as_str())
    }
}

pub(crate) fn parse(metadata: &str) -> Result<Vec<Package>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    Ok(serde_json::from_str::<Metadata>(metadata)?.packages)
}

pub(crate) fn is_pure_core(name: &str) -> bool {
    matches!(place(name), Some((Layer::Types | Layer::Core, _)))
}

fn place(name: &str) -> Option<(Layer, &'static str)> {
    TABLE
        .iter()
        .find(|(n, ..)| *n == name)
        .map(|(_, layer, service)| (*layer, *service))
}

pub(crate) fn check(packages: &[Package]) -> Vec<Finding> {
    let mut findings = vec![];
    for package in packages {
        let Some((layer, service)) = place(&package.name) else {
            findings.push(format!(
                "`{}` is not in the layer table (xtask/src/tidy/layers.rs): say where it stands",
                package.name
            ));
            continue;
        };
        for dependency in package.built_on() {
            if layer <= Layer::Core && IMPURE.contains(&dependency) {
                findings.push(format!(
                    "`{}` is pure (invariant 2) and may not depend on `{dependency}`",
                    package.name
                ));
            }
            if let Some(below) = place(dependency) {
                findings.extend(edge(&package.name, (layer, service), dependency, below));
            }
        }
    }
    findings.extend(longest_chain(packages));
    findings
}

fn edge(name: &str, from: (Layer, &str), dependency: &str, to: (Layer, &str)) -> Vec<Finding> {
    let mut findings = vec![];
    if to.0 > from.0 || to.0 == Layer::Top {
        findings.push(format!(
            "`{name}` -> `{dependency}` points up (invariant 1): arrows point down only"
        ));
    }
    let simulated = SIMULATIONS.iter().find(|(simulation, _)| *simulation == name);
    if SIMULATIONS
        .iter()
        .any(|(simulation, _)| *simulation == dependency)
        && name != "xtask"
    {
        findings.push(format!(
            "`{name}` -> `{dependency}`: a simulation is for xtask only"
        ));
    }
    if FOR_TESTS.contains(&dependency) && from.0 != Layer::Top && simulated.is_none() {
        findings.push(format!("`{name}` -> `{dependency}`: it is a dev-dependency only"));
    }
    let other = !to.1.is_empty() && to.1 != from.1;
    if other && from.0 != Layer::Top && to.0 != Layer::Client {
        findings.push(format!(
            "`{name}` -> `{dependency}` (invariant 3): a service depends on another one's -client only"
        ));
    }
    if from.1 == "chainfire" && to.1 == "aegis" {
        findings.push(format!(
            "`{name}` -> `{dependency}` (invariant 3): Chainfire knows nothing of Aegis"
        ));
    }
    // One server never links another, not even of its own service: each is a process.
    let own = simulated.is_some_and(|(_, server)| *server == dependency);
    if from.0 == Layer::Server && to.0 == Layer::Server && !own {
        findings.push(format!(
            "`{name}` -> `{dependency}`: servers are processes, not libraries"
        ));
    }
    // The command line links clients, never a server.
    if name == "hearth" && to.0 == Layer::Server {
        findings.push(format!(
            "`hearth` -> `{dependency}`: the command line depends on clients only"
        ));
    }
    findings
}

fn longest_chain(packages: &[Package]) -> Option<Finding> {
    let graph: BTreeMap<&str, Vec<&str>> = packages
        .iter()
        .map(|p| (p.name.as_str(), p.built_on().collect()))
        .collect();
    let mut longest: Vec<&str> = vec![];
    for name in graph.keys() {
        let chain = chain_from(name, &graph, &mut vec![]);
        if chain.len() > longest.len() {
            longest = chain;
        }
    }
    (longest.len() > LONGEST_CHAIN).then(|| {
        format!(
            "chain of {} crates, at most {LONGEST_CHAIN} allowed: {}",
            longest.len(),
            longest.join(" -> ")
        )
    })
}

/// The graph is small (tens of crates): plain recursion; `path` guards against a cycle in a fixture.
fn chain_from<'a>(
    name: &'a str,
    graph: &BTreeMap<&'a str, Vec<&'a str>>,
    path: &mut Vec<&'a str>,
) -> Vec<&'a str> {
    if path.contains(&name) {
        return vec![];
    }
    path.push(name);
    let mut best: Vec<&str> = vec![];
    for dependency in graph
        .get(name)
        .into_iter()
        .flatten()
        .filter(|d| graph.contains_key(*d))
    {
        let chain = chain_from(dependency, graph, path);
        if chain.len() > best.len() {
            best = chain;
        }
    }
    path.pop();
    let mut chain = vec![name];
    chain.extend(best);
    chain
}
