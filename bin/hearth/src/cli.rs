//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use hearth_types::Name;

use crate::cli_chainfire::Chainfire;
use crate::output::Format;

#[derive(Parser)]
#[command(
    name = "hearth",
    version,
    about = "A private cloud: virtual machines, their names, and who may touch them",
    after_help = "Start with `hearth up`. Exit codes and the file formats stand in docs/guides/command-line.md."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Args)]
pub(crate) struct Global {
    /// How data is printed
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    pub(crate) output: Format,
    /// Context of the configuration file to use
    #[arg(long, global = true, env = "HEARTH_CONTEXT")]
    pub(crate) context: Option<String>,
    /// Project to work in; the context's when absent
    #[arg(long, global = true, env = "HEARTH_PROJECT")]
    pub(crate) project: Option<Name>,
    /// Name of this request: the same command with the same key is carried out once (made up when absent)
    #[arg(long, global = true, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
    /// Data folder of the cluster on this machine
    #[arg(long, global = true, env = "HEARTH_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Starts the cluster on this machine, making it first when there is none
    Up(Up),
    /// Stops guests and services of this machine; data stays
    Down {
        /// Seconds that guests get to switch off before they are switched off
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
        guest_timeout: u64,
    },
    /// Shows every service of this machine, asked live
    Status,
    /// Looks for what stands in the way, each finding with its cure
    Doctor(ClusterOptions),
    /// The cluster's files
    #[command(subcommand)]
    Cluster(Cluster),
    /// Signs in
    Login(Login),
    /// Ends the sign-in
    Logout,
    /// Shows who is signed in, and what they may
    Whoami,
    /// Disk images that VMs boot from
    #[command(subcommand)]
    Image(Image),
    /// Virtual machines
    #[command(subcommand)]
    Vm(Vm),
    /// What was asked of VMs, and what became of it
    #[command(subcommand)]
    Op(Op),
    /// The machines that guests run on
    #[command(subcommand)]
    Node(Node),
    /// Groups of VMs that are placed apart or together
    #[command(subcommand)]
    Group(Group),
    /// What a project's VMs may take
    #[command(subcommand)]
    Quota(Quota),
    /// Zones of the name server
    #[command(subcommand)]
    Dns(Dns),
    /// Users, projects and rights
    #[command(subcommand)]
    Iam(Iam),
    /// The store: members, backups, recovery
    Chainfire(Chainfire),
    /// Prints a completion script: `source <(hearth completion bash)`
    Completion { shell: clap_complete::Shell },
}

#[derive(Args, Clone)]
pub(crate) struct ClusterOptions {
    /// Nodes that this machine acts as, 1 to 16 (3 at first; fixed from then on)
    #[arg(long)]
    pub(crate) nodes: Option<u32>,
    /// Domain that all names end in (`hearth.internal` at first; fixed from then on)
    #[arg(long)]
    pub(crate) domain: Option<String>,
    /// First of the ports to use, instead of the well-known ones
    #[arg(long)]
    pub(crate) base_port: Option<u16>,
}

#[derive(Args)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(crate) cluster: ClusterOptions,
    /// Ask nothing (for `./hearth up`, which installs packages)
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Do not create the VM `hello` at the very first start
    #[arg(long)]
    pub(crate) no_first_vm: bool,
    /// File of the image `tiny` (./hearth makes it and passes it)
    #[arg(long, env = "HEARTH_TINY_IMAGE", hide = true)]
    pub(crate) tiny_image: Option<PathBuf>,
}

#[derive(Subcommand)]
pub(crate) enum Cluster {
    /// Makes the certificates and configuration files that do not exist yet
    Init(ClusterOptions),
}

#[derive(Args)]
pub(crate) struct Login {
    /// Sign in with a password instead of in a browser
    #[arg(long)]
    pub(crate) username: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    pub(crate) password_stdin: bool,
    /// Aegis's address, for a cluster that there is no context of yet
    #[arg(long, requires = "ca")]
    pub(crate) url: Option<String>,
    /// PlasmaVMC's address; Aegis's host with port 8444 when absent
    #[arg(long, requires = "url")]
    pub(crate) vm_url: Option<String>,
    /// Address of FlashDNS's API; Aegis's host with port 8081 when absent
    #[arg(long, requires = "url")]
    pub(crate) dns_url: Option<String>,
    /// The cluster's CA certificate
    #[arg(long, requires = "url")]
    pub(crate) ca: Option<PathBuf>,
}

#[derive(Subcommand)]
pub(crate) enum Image {
    /// Lists the images
    List,
    /// Shows an image
    Show { name: Name },
    /// Imports a disk image from a file
    Import {
        file: PathBuf,
        /// Name it gets
        #[arg(long)]
        name: Name,
        /// SHA-256 that the file must have
        #[arg(long)]
        sha256: Option<String>,
        /// qcow2 or raw; found out from the file when absent
        #[arg(long)]
        format: Option<String>,
    },
    /// Deletes an image that no VM uses
    Delete { name: Name },
}

#[derive(Subcommand)]
pub(crate) enum Vm {
    /// Creates a VM and starts it
    Create(Box<VmCreate>),
    /// Lists the project's VMs
    List,
    /// Shows a VM
    Show { name: String },
    /// Starts a VM
    Start {
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Stops a VM: asks the guest first
    Stop {
        name: String,
        /// Cut the power
        #[arg(long)]
        force: bool,
        /// Seconds that the guest gets before its power is cut, 1 to 3600
        #[arg(long)]
        grace: Option<u32>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Resets a VM, as its reset button would
    Reset {
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Lets a running VM stand still; its memory stays
    Pause {
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Lets a paused VM go on
    Resume {
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Deletes a VM and its disk
    Delete {
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Opens the serial console; Ctrl-] leaves it
    Console { name: String },
    /// Says of every node what speaks for and against it for this VM
    Explain { name: String },
}

#[derive(Subcommand)]
pub(crate) enum Op {
    /// Lists the operations that are remembered, the latest last
    List {
        /// Only those of this VM
        #[arg(long)]
        vm: Option<String>,
    },
    /// Shows an operation and its steps
    Show { id: String },
    /// Waits until an operation has ended
    Wait {
        id: String,
        /// Longest wait, in seconds
        #[arg(long, default_value_t = 300)]
        timeout: u64,
    },
}

#[derive(Args)]
pub(crate) struct Wait {
    /// Wait until it is so
    #[arg(long)]
    pub(crate) wait: bool,
    /// Longest wait, in seconds
    #[arg(long, default_value_t = 300)]
    pub(crate) timeout: u64,
}

#[derive(Args)]
pub(crate) struct VmCreate {
    pub(crate) name: String,
    /// Image to boot
    #[arg(long)]
    pub(crate) image: String,
    /// Virtual CPUs
    #[arg(long, default_value_t = 1)]
    pub(crate) cpus: u32,
    /// Memory, such as 256MiB or 2GiB
    #[arg(long, default_value = "256MiB", value_parser = size)]
    pub(crate) memory: u64,
    /// Size of the disk; the image's own when absent
    #[arg(long, value_parser = size)]
    pub(crate) disk: Option<u64>,
    /// File with public SSH keys that may sign in (may be given more than once)
    #[arg(long)]
    pub(crate) ssh_key: Vec<PathBuf>,
    /// File with cloud-init user data
    #[arg(long)]
    pub(crate) user_data: Option<PathBuf>,
    /// Label of the VM (may be given more than once)
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) label: Vec<(String, String)>,
    /// Group that it becomes a member of (may be given more than once)
    #[arg(long)]
    pub(crate) group: Vec<String>,
    /// Only nodes with this label (may be given more than once)
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) node_label: Vec<(String, String)>,
    /// Only nodes of this architecture, such as x86_64
    #[arg(long)]
    pub(crate) architecture: Option<String>,
    /// Only nodes that can do this, such as kvm (may be given more than once)
    #[arg(long)]
    pub(crate) feature: Vec<String>,
    /// Only where CPUs and memory come from one NUMA cell
    #[arg(long)]
    pub(crate) one_numa_cell: bool,
    /// When its node is lost, restart it on another one, from the image: what was on its disk is lost then
    #[arg(long)]
    pub(crate) ha: bool,
    /// Create nothing: say of every node whether the VM could go there, and why not
    #[arg(long, conflicts_with = "wait")]
    pub(crate) explain: bool,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

#[derive(Subcommand)]
pub(crate) enum Node {
    /// Lists the nodes
    List,
    /// Shows a node
    Show { name: Name },
    /// Places no new VMs on a node; those that it has run on
    Cordon { name: Name },
    /// Places VMs on a node again
    Uncordon { name: Name },
    /// Sets labels of a node, over those that its agent says
    Label {
        name: Name,
        /// KEY=VALUE sets a label, KEY- takes one away
        #[arg(required = true, value_parser = label_change)]
        labels: Vec<(String, Option<String>)>,
    },
}

#[derive(Subcommand)]
pub(crate) enum Group {
    /// Lists the project's groups
    List,
    /// Shows a group and where its VMs are
    Show { name: Name },
    /// Creates a group; `hearth vm create --group NAME` puts VMs into it
    Create {
        name: String,
        /// Its VMs go to different nodes
        #[arg(long, conflicts_with = "together", required_unless_present = "together")]
        apart: bool,
        /// Its VMs go to one node
        #[arg(long)]
        together: bool,
        /// Refuse a VM rather than break the rule
        #[arg(long)]
        strict: bool,
    },
    /// Deletes a group that no VM is in
    Delete { name: Name },
}

#[derive(Subcommand)]
pub(crate) enum Quota {
    /// Shows what the project may take and what it takes
    Show,
    /// Sets limits; those that are left out stay, `none` lifts one
    Set(QuotaSet),
}

#[derive(Args)]
#[group(required = true, multiple = true)]
pub(crate) struct QuotaSet {
    /// Number of VMs, or none
    #[arg(long, value_parser = count_limit)]
    pub(crate) vms: Option<Limit>,
    /// Virtual CPUs, or none
    #[arg(long, value_parser = count_limit)]
    pub(crate) cpus: Option<Limit>,
    /// Memory such as 64GiB, or none
    #[arg(long, value_parser = size_limit)]
    pub(crate) memory: Option<Limit>,
    /// Disk such as 1TiB, or none
    #[arg(long, value_parser = size_limit)]
    pub(crate) disk: Option<Limit>,
}

/// A limit of a quota, or that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit(pub(crate) Option<u64>);

fn count_limit(text: &str) -> Result<Limit, String> {
    match text {
        "none" => Ok(Limit(None)),
        _ => text
            .parse::<u32>()
            .map(|n| Limit(Some(n.into())))
            .map_err(|_| "give a number, or none".to_owned()),
    }
}

fn size_limit(text: &str) -> Result<Limit, String> {
    match text {
        "none" => Ok(Limit(None)),
        _ => size(text).map(|n| Limit(Some(n))),
    }
}

/// `KEY=VALUE`.
fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| "give KEY=VALUE, as in rack=a".to_owned())?;
    Ok((key.to_owned(), value.to_owned()))
}

/// `KEY=VALUE`, or `KEY-` to take it away.
fn label_change(text: &str) -> Result<(String, Option<String>), String> {
    match text.strip_suffix('-').filter(|key| !key.contains('=')) {
        Some(key) => Ok((key.to_owned(), None)),
        None => pair(text)
            .map(|(key, value)| (key, Some(value)))
            .map_err(|_| "give KEY=VALUE to set a label, KEY- to take one away".to_owned()),
    }
}

#[derive(Subcommand)]
pub(crate) enum Dns {
    /// Lists the zones that you may see
    Zones,
    /// Prints a zone's stored records as a zone file; those of running VMs are not in it
    Export {
        /// Such as default.hearth.internal
        zone: String,
        /// Write to this file instead
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Replaces a zone's stored records by those of a zone file
    ///
    /// The file is checked as a whole first: with anything wrong in it, nothing is changed.
    Import {
        /// Such as default.hearth.internal
        zone: String,
        /// The zone file; - reads standard input
        file: PathBuf,
        /// Change nothing: say what would change
        #[arg(long)]
        dry_run: bool,
    },
    /// Keys that sign zone transfers (TSIG)
    #[command(subcommand)]
    Key(DnsKey),
}

#[derive(Subcommand)]
pub(crate) enum DnsKey {
    /// Lists your keys
    List,
    /// Makes a key with your rights; its secret is shown this once
    Create {
        /// A domain name, such as office.example
        name: String,
        /// hmac-sha256, hmac-sha384 or hmac-sha512
        #[arg(long, default_value = "hmac-sha256")]
        algorithm: String,
        /// Read the secret, in base64, from standard input instead of making one up
        #[arg(long)]
        secret_stdin: bool,
        /// Let it transfer whole zones
        #[arg(long)]
        transfer: bool,
    },
    /// Deletes a key
    Delete { name: String },
}

#[derive(Subcommand)]
pub(crate) enum Iam {
    /// People
    #[command(subcommand)]
    User(User),
    /// Projects
    #[command(subcommand)]
    Project(Project),
    /// Programs that sign in
    #[command(subcommand, name = "serviceaccount")]
    ServiceAccount(ServiceAccount),
    /// Who may do what where
    #[command(subcommand)]
    Binding(Binding),
    /// What the roles allow
    #[command(subcommand)]
    Role(Role),
}

#[derive(Subcommand)]
pub(crate) enum User {
    /// Lists the users
    List,
    /// Adds a user; the password is made up and shown once unless it is read from standard input
    Create {
        name: Name,
        #[arg(long)]
        password_stdin: bool,
    },
    /// Denies everything to a user, at once
    Disable { name: Name },
    /// Lets a disabled user in again
    Enable { name: Name },
}

#[derive(Subcommand)]
pub(crate) enum Project {
    /// Lists the projects that you may see
    List,
    /// Adds a project
    Create { name: Name },
}

#[derive(Subcommand)]
pub(crate) enum ServiceAccount {
    /// Lists the project's service accounts
    List,
    /// Adds one to the project
    Create { name: Name },
    /// Makes a secret for it, shown this once
    Secret { name: Name },
    /// Deletes it with its secrets
    Delete { name: Name },
}

#[derive(Subcommand)]
pub(crate) enum Binding {
    /// Lists the bindings on a place
    List {
        /// root, organisation/NAME or project/NAME; the project in use when absent
        #[arg(long)]
        on: Option<String>,
    },
    /// Grants a role
    Create {
        /// user/NAME, service-account/PROJECT/NAME or group/NAME
        subject: String,
        /// viewer, operator or admin
        role: String,
        /// root, organisation/NAME or project/NAME; the project in use when absent
        #[arg(long)]
        on: Option<String>,
    },
    /// Takes a grant away
    Delete { id: String },
}

#[derive(Subcommand)]
pub(crate) enum Role {
    /// Lists the roles and what they allow
    List,
}

/// `256MiB`, `2GiB`, `2G` or a number of bytes.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..).unwrap_or_default();
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => {
            return Err(format!(
                "`{unit}` is not a unit; use KiB, MiB, GiB or TiB, as in 256MiB"
            ));
        }
    };
    let number: u64 = digits
        .trim()
        .parse()
        .map_err(|_| "give a size such as 256MiB or 2GiB".to_owned())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "the size is too large".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("256MiB"), Ok(256 << 20));
        assert_eq!(size("2G"), Ok(2 << 30));
        assert_eq!(size("4096"), Ok(4096));
        for bad in ["", "MiB", "2 XB", "-1GiB", "99999999999TiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_and_limits_are_read() {
        assert_eq!(
            label_change("rack=a-"),
            Ok(("rack".to_owned(), Some("a-".to_owned())))
        );
        assert_eq!(label_change("rack-"), Ok(("rack".to_owned(), None)));
        assert!(label_change("rack").is_err() && pair("rack").is_err());
        assert_eq!(size_limit("none"), Ok(Limit(None)));
        assert_eq!(size_limit("1GiB"), Ok(Limit(Some(1 << 30))));
        assert_eq!(count_limit("7"), Ok(Limit(Some(7))));
        assert!(count_limit("1GiB").is_err());
    }
}
