//! Zones of the name server, and zone files in and out.

use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context as _, Result};
use flashdns_client::types::{Key, NewKey, Zone, ZoneImport, ZoneKind};
use hearth_types::ErrorKind;

use super::{Env, secret_from_stdin};
use crate::cli::{Dns as Command, DnsKey};
use crate::failure::fail;
use crate::output::{Row, note, print};

/// Longest zone file that is sent; the server takes no longer one.
const MAX_FILE_BYTES: u64 = 16 << 20;

impl Row for Zone {
    const HEADER: &'static [&'static str] = &["name", "kind", "project", "serial"];

    fn cells(&self) -> Vec<String> {
        let kind = match self.kind {
            ZoneKind::Domain => "domain",
            ZoneKind::Project => "project",
            ZoneKind::Reverse => "reverse",
        };
        vec![
            self.name.clone(),
            kind.to_owned(),
            self.project.as_ref().map(ToString::to_string).unwrap_or_default(),
            self.serial.to_string(),
        ]
    }
}

pub(crate) async fn run(env: &Env, command: Command) -> Result<()> {
    let client = env.context.flashdns().await?;
    match command {
        Command::Zones => env.out.list(&client.list_zones().await?.zones),
        Command::Export { zone, file } => {
            let text = client.export_zone(&zone).await?;
            match file {
                Some(path) => {
                    fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()))
                }
                None => print(text.trim_end()),
            }
        }
        Command::Import { zone, file, dry_run } => {
            let text = read(&file)?;
            show(env, &client.import_zone(&zone, text, dry_run).await?)
        }
        Command::Key(DnsKey::List) => env.out.list(&client.list_keys().await?.keys),
        Command::Key(DnsKey::Create {
            name,
            algorithm,
            secret_stdin,
            transfer,
        }) => {
            let secret = if secret_stdin {
                Some(secret_from_stdin()?)
            } else {
                None
            };
            let key = NewKey {
                name,
                algorithm,
                secret,
                transfer,
            };
            let made = client.create_key(&key).await?;
            let people = [
                ("name", made.name.clone()),
                ("algorithm", made.algorithm.clone()),
                ("secret", made.secret.clone()),
            ];
            env.out.one(&made, &people)
        }
        Command::Key(DnsKey::Delete { name }) => {
            client.delete_key(&name).await?;
            note(format!("deleted the key `{name}`"));
            Ok(())
        }
    }
}

impl Row for Key {
    const HEADER: &'static [&'static str] = &["name", "algorithm", "owner", "transfer"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.algorithm.clone(),
            self.owner.clone(),
            if self.transfer { "yes" } else { "no" }.to_owned(),
        ]
    }
}

fn read(path: &Path) -> Result<String> {
    let what = || format!("cannot read `{}`", path.display());
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin()
            .take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut bytes)
            .with_context(what)?;
    } else {
        let file = fs::File::open(path).with_context(what)?;
        file.take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut bytes)
            .with_context(what)?;
    }
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(fail(
            ErrorKind::InvalidArgument,
            format!("`{}` is longer than 16 MiB", path.display()),
            "a zone holds at most 10000 names",
        ));
    }
    String::from_utf8(bytes).map_err(|_| {
        fail(
            ErrorKind::InvalidArgument,
            format!("`{}` is not UTF-8", path.display()),
            "write other bytes as `\\` and three digits",
        )
    })
}

fn show(env: &Env, done: &ZoneImport) -> Result<()> {
    let people = [
        ("added", done.added.to_string()),
        ("changed", done.changed.to_string()),
        ("removed", done.removed.to_string()),
        ("unchanged", done.unchanged.to_string()),
        (
            "passed over",
            format!("{} record sets that the server makes itself", done.passed_over),
        ),
        (
            "transactions",
            match (done.dry_run, done.transactions) {
                (true, count) => format!("{count}, none of them made"),
                (false, count) => count.to_string(),
            },
        ),
    ];
    env.out.one(done, &people)
}
