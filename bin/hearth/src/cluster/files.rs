//! Texts of the configuration files. Every service's file is its own format, so they are written as
//! text here and checked by the service (`hearthd ROLE --check-config`), never shared as a type.

use std::fmt::Write;

use super::layout::{Layout, Part};

/// Memory of the machine that guests never get, in MiB.
const RESERVE_MIB: u64 = 1536;

/// The file of one part.
pub(crate) fn of_part(layout: &Layout, part: &Part) -> String {
    let mut text = frame(layout, part);
    if part.role != "chainfire" {
        let endpoints = quoted(&layout.chainfire_endpoints());
        let _ = write!(text, "\n[chainfire_client]\nendpoints = {endpoints}\n");
    }
    text.push('\n');
    text.push_str(&match part.role {
        "chainfire" => chainfire(layout, part),
        "aegis" => aegis(layout),
        "flashdns" => flashdns(layout),
        "plasmavmc" => plasmavmc(layout),
        "guard" => guard(layout, part),
        _ => agent(layout, part),
    });
    text
}

/// The two tables that every file begins with.
fn frame(layout: &Layout, part: &Part) -> String {
    // Aegis renews its own certificate at itself.
    let renew = if part.name == "aegis" {
        String::new()
    } else {
        format!("renew_certificate_at = \"{}\"\n", layout.aegis_url())
    };
    format!(
        "[service]\nname = \"{name}\"\ndata_dir = \"{data}\"\nlog_level = \"info\"\nshutdown_grace_s = 10\n{renew}\n{tls}",
        name = part.name,
        data = layout.state(&part.name).display(),
        tls = tls(layout, &part.certificate),
    )
}

fn tls(layout: &Layout, certificate: &str) -> String {
    format!(
        "[tls]\nca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n",
        layout.pki("ca.crt").display(),
        layout.pki(&format!("{certificate}.crt")).display(),
        layout.pki(&format!("{certificate}.key")).display(),
    )
}

fn quoted(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|i| format!("\"{i}\"")).collect();
    format!("[{}]", items.join(", "))
}

fn chainfire(layout: &Layout, part: &Part) -> String {
    let (client, peer) = match part.ports.as_slice() {
        [client, peer, ..] => (*client, *peer),
        _ => layout.member_ports(1),
    };
    let mut text = format!(
        "[chainfire]\nmember = \"{}\"\ncluster = \"hearth\"\nlisten_client = \"127.0.0.1:{client}\"\n\
         listen_peer = \"127.0.0.1:{peer}\"\n\
         # etcd's tools may read without a certificate from this machine (never the services' own keys).\n\
         plaintext_loopback = true\n",
        part.name
    );
    for member in 1..=layout.choices.members {
        let (client, peer) = layout.member_ports(member);
        let _ = write!(
            text,
            "\n[[chainfire.members]]\nname = \"chainfire-{member}\"\nclient = \"127.0.0.1:{client}\"\n\
             peer = \"127.0.0.1:{peer}\"\n"
        );
    }
    text
}

fn aegis(layout: &Layout) -> String {
    format!(
        "[aegis]\nlisten = \"127.0.0.1:{}\"\npublic_url = \"{}\"\ndomain = \"{}\"\nca_key = \"{}\"\n\
         bootstrap_token_file = \"{}\"\nseal_key_file = \"{}\"\n",
        layout.aegis_port(),
        layout.aegis_url(),
        layout.choices.domain,
        layout.pki("ca.key").display(),
        layout.pki("bootstrap.token").display(),
        layout.pki("seal.key").display(),
    )
}

fn flashdns(layout: &Layout) -> String {
    format!(
        "[flashdns]\nlisten_dns = [\"127.0.0.1:{}\"]\nlisten_api = \"127.0.0.1:{}\"\ndomain = \"{}\"\n\
         reverse_networks = [\"10.77.0.0/16\", \"127.77.0.0/16\"]\naegis_url = \"{}\"\n\
         seal_key_file = \"{}\"\n",
        layout.dns_port(),
        layout.dns_api_port(),
        layout.choices.domain,
        layout.aegis_url(),
        layout.pki("dns-seal.key").display(),
    )
}

fn plasmavmc(layout: &Layout) -> String {
    format!(
        "[plasmavmc]\nlisten = \"127.0.0.1:{}\"\ndomain = \"{}\"\nrouted_network = \"10.77.0.0/16\"\n\
         user_network = \"127.77.0.0/16\"\naegis_url = \"{}\"\n",
        layout.plasmavmc_port(),
        layout.choices.domain,
        layout.aegis_url(),
    )
}

fn agent(layout: &Layout, part: &Part) -> String {
    // Several nodes on one machine share its memory; CPUs are shared by time anyway.
    let memory = match layout.choices.nodes {
        0 | 1 => 0,
        nodes => machine_mib().saturating_sub(RESERVE_MIB).max(512) / u64::from(nodes),
    };
    format!(
        "[agent]\nnode = \"{}\"\nhubs = [\"127.0.0.1:{}\"]\nnetwork = \"auto\"\naccelerator = \"auto\"\n\
         resolver = \"127.0.0.1:{}\"\nvcpus = 0\nmemory_mib = {memory}\n\
         # Whether KVM really runs kernels is tried once per boot of the machine, for all its nodes.\n\
         probe_image = \"{}\"\nverdict_dir = \"{}\"\n\
         # Guests that may be restarted elsewhere start here only while the node's guard holds its lease.\n\
         guard_dir = \"{}\"\n",
        part.identity.trim_start_matches("node/"),
        layout.plasmavmc_port(),
        layout.dns_port(),
        layout.probe_image().display(),
        layout.data.join("accelerator").display(),
        layout
            .node_state("guard", part.identity.trim_start_matches("node/"))
            .display(),
    )
}

fn guard(layout: &Layout, part: &Part) -> String {
    let node = part.identity.trim_start_matches("node/");
    format!(
        "[guard]\nnode = \"{node}\"\nagent_data_dir = \"{}\"\n",
        layout.node_state("agent", node).display(),
    )
}

/// Memory of this machine; 4 GiB when the system does not say.
pub(crate) fn machine_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("MemTotal:"));
    let kib = line
        .and_then(|l| l.split_whitespace().nth(1))
        .and_then(|n| n.parse::<u64>().ok());
    kib.map_or(4096, |kib| kib >> 10)
}

/// What the supervisor starts.
pub(crate) fn processes(layout: &Layout) -> String {
    let mut text = tls(layout, "root");
    for part in layout.parts() {
        text.push_str(&process(layout, &part));
    }
    text
}

/// The name of one of its entries, as it is written there.
pub(crate) fn process_name(part: &Part) -> String {
    format!("\nname = \"{}\"\n", part.name)
}

/// One entry of it.
pub(crate) fn process(layout: &Layout, part: &Part) -> String {
    format!(
        "\n[[process]]\nname = \"{}\"\nargs = [\"{}\", \"--config\", \"{}\", \"--own-session\"]\nstage = {}\nready = \"{}\"\n",
        part.name,
        part.role,
        layout.conf(&part.name).display(),
        part.stage,
        layout.ready_target(part),
    )
}
