//! `hearthd`: every server of Hearth, one process per role, and the supervisor that starts them.
//!
//! Does not know: what a role does. It reads a role's configuration file, starts logging, hands both
//! to the role's crate, and turns signals into an ordered stop.
//! Entry points: `hearthd ROLE --config FILE` (see `roles`), `hearthd supervise --data-dir DIR`.
//! Invariants: one role per process; a role's failure is a non-zero exit, so that the supervisor or
//! systemd sees it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

mod chainfire_tool;
mod roles;
mod supervise;

#[derive(Parser)]
#[command(
    name = "hearthd",
    version,
    about = "The servers of Hearth, one process per role"
)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// A member of the store
    Chainfire(RoleArgs),
    /// Sign-in, rights and certificates
    Aegis(RoleArgs),
    /// The name server
    Flashdns(RoleArgs),
    /// The control plane of virtual machines
    Plasmavmc(RoleArgs),
    /// A node's agent: runs its virtual machines
    Agent(RoleArgs),
    /// A node's guard: stops guests that may be started elsewhere when the node loses its lease
    Guard(RoleArgs),
    /// Works on Chainfire members that do not run (`hearth chainfire` passes this)
    #[command(subcommand, hide = true)]
    ChainfireTool(chainfire_tool::Tool),
    /// Starts the processes of DIR/conf/processes.toml in order and restarts what dies
    Supervise {
        /// The data folder that `hearth cluster init` made
        #[arg(long)]
        data_dir: PathBuf,
        /// Leave the caller's session, so that closing its terminal stops nothing
        #[arg(long)]
        detach: bool,
    },
}

/// What every role understands.
#[derive(Args)]
struct RoleArgs {
    /// The configuration file
    #[arg(long)]
    config: PathBuf,
    /// Read the configuration, say whether it is valid, and end
    #[arg(long)]
    check_config: bool,
    /// Print the configuration with all defaults filled in, and end
    #[arg(long, conflicts_with = "check_config")]
    dump_config: bool,
    /// Leave the supervisor's session (the supervisor passes this)
    #[arg(long, hide = true)]
    own_session: bool,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().role {
        Role::Chainfire(args) => roles::chainfire(&args),
        Role::Aegis(args) => roles::aegis(&args),
        Role::Flashdns(args) => roles::flashdns(&args),
        Role::Plasmavmc(args) => roles::plasmavmc(&args),
        Role::Agent(args) => roles::agent(&args),
        Role::Guard(args) => roles::guard(&args),
        Role::ChainfireTool(tool) => match chainfire_tool::run(tool) {
            Ok(true) => Ok(()),
            // It has said why, for the program that called it.
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
        Role::Supervise { data_dir, detach } => supervise::run(&data_dir, detach),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The one place where the whole chain is printed.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
