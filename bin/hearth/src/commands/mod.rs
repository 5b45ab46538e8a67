//! One file per subject of the command line.

mod chainfire;
mod console;
mod dns;
mod group;
mod iam;
mod image;
mod node;
pub(crate) mod op;
mod quota;
mod session;
pub(crate) mod vm;

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::CommandFactory;
use plasmavmc_client::PlasmaClient;

use crate::cli::{Cli, Cluster, ClusterOptions, Command, Global, Up};
use crate::cluster::init::Wanted;
use crate::cluster::{doctor, down, init, status, up};
use crate::context::Context;
use crate::output::{Output, note};

/// What every command gets.
pub(crate) struct Env {
    pub(crate) out: Output,
    pub(crate) context: Context,
    pub(crate) global: Global,
}

impl Env {
    /// PlasmaVMC, as whoever is signed in, with this command's idempotency key.
    pub(crate) async fn plasmavmc(&self) -> Result<PlasmaClient> {
        let client = self.context.plasmavmc().await?;
        Ok(match &self.global.idempotency_key {
            Some(key) => client.with_idempotency_key(key),
            None => client,
        })
    }
}

pub(crate) async fn run(cli: Cli) -> Result<()> {
    let env = Env {
        out: Output {
            format: cli.global.output,
        },
        context: Context::new(cli.global.context.clone()),
        global: cli.global,
    };
    let data = data_dir(&env.global);
    match cli.command {
        Command::Up(options) => up::run(&data, &up_options(options), &env.context).await,
        Command::Down { guest_timeout } => down::run(&data, Duration::from_secs(guest_timeout)).await,
        Command::Status => status::run(&data, env.out).await,
        Command::Doctor(options) => doctor::run(&data, &wanted(&options), &env.context, env.out).await,
        Command::Cluster(Cluster::Init(options)) => {
            let (layout, new) = init::run(&data, &wanted(&options))?;
            note(format!(
                "{} in {}; start it with `hearth up`, or each process with `hearthd ROLE --config {}/conf/NAME.toml`",
                if new {
                    "made a new cluster"
                } else {
                    "the cluster exists and is complete"
                },
                layout.data.display(),
                layout.data.display()
            ));
            Ok(())
        }
        Command::Login(login) => session::login(&env, login).await,
        Command::Logout => session::logout(&env).await,
        Command::Whoami => session::whoami(&env).await,
        Command::Image(command) => image::run(&env, command).await,
        Command::Vm(command) => vm::run(&env, command).await,
        Command::Op(command) => op::run(&env, command).await,
        Command::Node(command) => node::run(&env, command).await,
        Command::Group(command) => group::run(&env, command).await,
        Command::Quota(command) => quota::run(&env, command).await,
        Command::Chainfire(command) => chainfire::run(&env, command).await,
        Command::Dns(command) => dns::run(&env, command).await,
        Command::Iam(command) => iam::run(&env, command).await,
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "hearth", &mut std::io::stdout());
            Ok(())
        }
    }
}

fn up_options(options: Up) -> up::Options {
    // `--yes` concerns the packages that the script ./hearth installs.
    let _ = options.yes;
    up::Options {
        wanted: wanted(&options.cluster),
        first_vm: !options.no_first_vm,
        image: options.tiny_image,
    }
}

fn wanted(options: &ClusterOptions) -> Wanted {
    Wanted {
        domain: options.domain.clone(),
        nodes: options.nodes,
        base_port: options.base_port,
    }
}

/// The folder named; else /var/lib/hearth for root, and a folder of the user's own for others.
fn data_dir(global: &Global) -> PathBuf {
    if let Some(named) = &global.data_dir {
        return named.clone();
    }
    if nix::unistd::geteuid().is_root() {
        return "/var/lib/hearth".into();
    }
    let home = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")));
    home.unwrap_or_else(std::env::temp_dir).join("hearth")
}

/// A secret from standard input, without its line end.
pub(crate) fn secret_from_stdin() -> Result<String> {
    let mut text = String::new();
    std::io::stdin()
        .take(4096)
        .read_to_string(&mut text)
        .context("cannot read the password from standard input")?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
