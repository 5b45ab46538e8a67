//! What can be typed after `hearth chainfire`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Args)]
pub(crate) struct Chainfire {
    /// `HOST:PORT` of a member to ask, instead of those of this machine's cluster (may be given more than once)
    #[arg(long, global = true)]
    pub(crate) endpoint: Vec<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Shows every member: role, progress, size, how long its disk takes
    Status,
    /// The members of the cluster
    #[command(subcommand)]
    Member(Member),
    /// Writes a verified backup of one member's state into a file
    Backup {
        file: PathBuf,
        /// Name or id of the member; any that answers when absent
        #[arg(long)]
        member: Option<String>,
    },
    /// Checks a backup from end to end and shows what it holds
    BackupStatus { file: PathBuf },
    /// Makes data folders of a new cluster from a backup
    Restore(Restore),
    /// Shows what the data folders of stopped members hold
    Inspect {
        /// A member's configuration file; all of this machine's cluster when absent
        #[arg(long)]
        config: Vec<PathBuf>,
    },
    /// After most members are lost for good: makes a new cluster from what a survivor holds
    Recover(Recover),
    /// Hands leadership to another member
    MoveLeader {
        /// Name or id
        member: String,
    },
    /// Alarms
    #[command(subcommand)]
    Alarm(Alarm),
    /// Forgets history before a revision
    Compact {
        /// The oldest revision to keep; the present one when absent
        revision: Option<i64>,
    },
    /// Does nothing: Chainfire gives space back by itself
    Defrag,
    /// Compares the states of all members at one revision
    Hash,
}

#[derive(Subcommand)]
pub(crate) enum Member {
    /// Lists the members
    List,
    /// Adds a member
    Add {
        /// `https://HOST:PORT` where it serves the other members
        peer_url: String,
        /// Without a vote at first; the safe way: add, wait, promote
        #[arg(long)]
        learner: bool,
    },
    /// Removes a member, for ever
    Remove {
        /// Name or id
        member: String,
    },
    /// Gives a learner a vote
    Promote {
        /// Name or id
        member: String,
    },
    /// Gives a member another peer address
    Update {
        /// Name or id
        member: String,
        /// `https://HOST:PORT` where it serves the other members
        peer_url: String,
    },
}

#[derive(Subcommand)]
pub(crate) enum Alarm {
    /// Lists the raised alarms
    List,
    /// Takes all alarms back whose cause is gone
    Disarm,
}

#[derive(Args)]
pub(crate) struct Restore {
    pub(crate) file: PathBuf,
    /// A member's configuration file (may be given more than once); all of this machine's cluster when absent
    #[arg(long)]
    pub(crate) config: Vec<PathBuf>,
    /// How far revisions jump, so that no watcher takes old for new
    #[arg(long)]
    pub(crate) bump_revision: Option<u32>,
    /// Makes the cluster differ from one restored from the same file before; the same for all members
    #[arg(long)]
    pub(crate) token: Option<String>,
}

#[derive(Args)]
pub(crate) struct Recover {
    /// Configuration file of a member of the new cluster (may be given more than once); all of this machine's cluster
    /// when absent
    #[arg(long)]
    pub(crate) config: Vec<PathBuf>,
    /// Take this member's data instead of the most advanced one's
    #[arg(long)]
    pub(crate) survivor: Option<String>,
    /// How far revisions jump, so that no watcher takes old for new
    #[arg(long)]
    pub(crate) bump_revision: Option<u32>,
    /// Also when a majority seems to live
    #[arg(long)]
    pub(crate) force: bool,
    /// Show what would be used, and end
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Ask nothing
    #[arg(short, long)]
    pub(crate) yes: bool,
}
