//! `hearth cluster init`: everything that must exist before the first process runs.
//!
//! Idempotent and resumable: what exists is kept, what lacks is made, each file whole or absent, and
//! conf/cluster.toml, which says that a cluster is here, is written last.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use hearth_service::config::TlsConfig;
use hearth_service::pki::{Authority, LEAF_LIFETIME, LeafRequest, write_private};
use hearth_service::tls::Identity;
use hearth_types::ErrorKind;
use rand::distr::{Alphanumeric, SampleString};

use super::files;
use super::layout::{Choices, Layout, check};
use crate::failure::fail;
use crate::processes::holder_of;

/// A certificate with less than this left is made anew: its owner was off too long to renew it itself.
const RENEW_BELOW: Duration = Duration::from_secs(3 * 24 * 3600);

/// What the user asked for; None: as it is, or the default.
#[derive(Debug, Default, Clone)]
pub(crate) struct Wanted {
    pub(crate) domain: Option<String>,
    pub(crate) nodes: Option<u32>,
    pub(crate) base_port: Option<u16>,
}

/// Makes what lacks; true when the cluster is new.
pub(crate) fn run(data: &Path, wanted: &Wanted) -> Result<(Layout, bool)> {
    if Layout::exists(data) {
        let layout = Layout::load(data)?;
        same_choices(&layout, wanted)?;
        complete(&layout)?;
        return Ok((layout, false));
    }
    let nodes = wanted.nodes.unwrap_or(3);
    let choices = Choices {
        domain: wanted
            .domain
            .clone()
            .unwrap_or_else(|| "hearth.internal".to_owned()),
        nodes,
        members: Choices::members_for(nodes),
        base_port: wanted.base_port,
    };
    check(&choices)?;
    let data = absolute(data)?;
    if data.display().to_string().contains(['"', '\\', '\n']) {
        bail!(
            "the data folder `{}` has characters that configuration files cannot carry",
            data.display()
        );
    }
    let layout = Layout { data, choices };
    ports_are_free(&layout)?;
    complete(&layout)?;
    let text = toml::to_string(&layout.choices).context("cannot write the choices")?;
    write_private(&layout.conf("cluster"), text.as_bytes())?;
    Ok((layout, true))
}

fn absolute(data: &Path) -> Result<PathBuf> {
    std::path::absolute(data).with_context(|| format!("cannot use `{}` as the data folder", data.display()))
}

/// Choices are made once: members and their addresses are part of the store.
fn same_choices(layout: &Layout, wanted: &Wanted) -> Result<()> {
    let own = &layout.choices;
    let differs = wanted.domain.as_ref().is_some_and(|d| *d != own.domain)
        || wanted.nodes.is_some_and(|n| n != own.nodes)
        || wanted.base_port.is_some_and(|p| Some(p) != own.base_port);
    if !differs {
        return Ok(());
    }
    Err(fail(
        ErrorKind::FailedPrecondition,
        format!(
            "the cluster in `{}` was made with {} nodes and the domain `{}`, and cannot be made again otherwise",
            layout.data.display(),
            own.nodes,
            own.domain
        ),
        "leave the options out to continue with it, or name another folder with --data-dir",
    ))
}

/// Refuses before anything is written when a port is taken.
pub(crate) fn ports_are_free(layout: &Layout) -> Result<()> {
    for part in layout.parts() {
        for port in &part.ports {
            if let Some(holder) = holder_of(*port) {
                return Err(fail(
                    ErrorKind::FailedPrecondition,
                    format!(
                        "port {port} on 127.0.0.1, which {} needs, is held by {holder}",
                        part.name
                    ),
                    "stop that process, or give all of Hearth's ports another place with --base-port at the first start",
                ));
            }
        }
    }
    Ok(())
}

fn complete(layout: &Layout) -> Result<()> {
    // Keys, password hashes, guests' disks: nobody else looks inside. A folder that was there before
    // keeps its mode (it may be the parent of other things), but for the keys' own.
    let made_here = !layout.data.exists();
    for folder in ["", "conf", "pki", "log", "run"] {
        let path = layout.data.join(folder);
        fs::create_dir_all(&path).with_context(|| format!("cannot make the folder `{}`", path.display()))?;
    }
    for (folder, ours) in [("", made_here), ("pki", true)] {
        if ours {
            fs::set_permissions(layout.data.join(folder), fs::Permissions::from_mode(0o700))?;
        }
    }
    let authority = authority(layout)?;
    for part in layout.parts() {
        certificate(layout, &authority, &part.certificate, &part.identity)?;
    }
    certificate(layout, &authority, "root", "operator/root")?;
    secret(&layout.pki("seal.key"), &rand::random::<[u8; 32]>())?;
    secret(&layout.pki("dns-seal.key"), &rand::random::<[u8; 32]>())?;
    let token = Alphanumeric.sample_string(&mut rand::rng(), 43);
    secret(&layout.pki("bootstrap.token"), token.as_bytes())?;
    for part in layout.parts() {
        absent_then(&layout.conf(&part.name), || files::of_part(layout, &part))?;
    }
    absent_then(&layout.conf("processes"), || files::processes(layout))?;
    add_new_processes(layout)
}

/// A cluster that an earlier version has made lacks what came later.
fn add_new_processes(layout: &Layout) -> Result<()> {
    let path = layout.conf("processes");
    let mut text = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let parts = layout.parts();
    let missing: Vec<_> = parts
        .iter()
        .filter(|part| !text.contains(&files::process_name(part)))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    missing
        .iter()
        .for_each(|part| text.push_str(&files::process(layout, part)));
    Ok(write_private(&path, text.as_bytes())?)
}

/// The cluster's root, made once.
fn authority(layout: &Layout) -> Result<Authority> {
    let (cert, key) = (layout.pki("ca.crt"), layout.pki("ca.key"));
    if cert.exists() {
        let read = |path: &Path| {
            fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))
        };
        return Ok(Authority::load(&read(&cert)?, &read(&key)?)?);
    }
    // The certificate comes last: as long as it is absent, nothing was signed.
    let authority = Authority::create(&layout.choices.domain, SystemTime::now())?;
    write_private(&key, authority.key_pem().as_bytes())?;
    write_private(&cert, authority.cert_pem().as_bytes())?;
    fs::set_permissions(&cert, fs::Permissions::from_mode(0o644))?;
    Ok(authority)
}

/// A leaf, unless there is one with some life left.
fn certificate(layout: &Layout, authority: &Authority, name: &str, identity: &str) -> Result<()> {
    let files = tls_files(layout, name);
    if files.cert.exists()
        && let Ok(current) = Identity::load(&files)
        && current.validity().1 > SystemTime::now() + RENEW_BELOW
    {
        return Ok(());
    }
    let request = LeafRequest {
        trust_domain: layout.choices.domain.clone(),
        path: identity.to_owned(),
        dns: vec!["localhost".to_owned()],
        ips: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
        lifetime: LEAF_LIFETIME,
    };
    let issued = authority.issue(&request, SystemTime::now())?;
    // The old pair stays usable until both new files are in place; a mix is mended by the next run.
    write_private(&files.key, issued.key_pem.as_bytes())?;
    write_private(&files.cert, issued.cert_pem.as_bytes())?;
    Ok(())
}

/// The files of a certificate made here.
pub(crate) fn tls_files(layout: &Layout, name: &str) -> TlsConfig {
    TlsConfig {
        ca: layout.pki("ca.crt"),
        cert: layout.pki(&format!("{name}.crt")),
        key: layout.pki(&format!("{name}.key")),
    }
}

fn secret(path: &Path, contents: &[u8]) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    Ok(write_private(path, contents)?)
}

fn absent_then(path: &Path, text: impl FnOnce() -> String) -> Result<()> {
    secret(path, text().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_state(data: &Path) -> Vec<(String, Vec<u8>)> {
        let mut all = vec![];
        for folder in ["pki", "conf"] {
            for entry in fs::read_dir(data.join(folder)).unwrap().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                all.push((name, fs::read(entry.path()).unwrap()));
            }
        }
        all.sort();
        all
    }

    fn wanted() -> Wanted {
        Wanted {
            nodes: Some(3),
            base_port: Some(free_range()),
            domain: None,
        }
    }

    /// A range that nobody uses now; tests do not start servers on it.
    fn free_range() -> u16 {
        (30000..60000)
            .step_by(50)
            .find(|b| (*b..b + 14).all(|p| holder_of(p).is_none()))
            .unwrap()
    }

    #[test]
    fn init_twice_changes_nothing_and_a_half_finished_one_is_completed() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = wanted();
        let (_, new) = run(dir.path(), &wanted).unwrap();
        assert!(new);
        let first = folder_state(dir.path());
        let (_, new) = run(dir.path(), &wanted).unwrap();
        assert!(!new);
        assert_eq!(folder_state(dir.path()), first);

        // As if it had been cut short: the mark of completion and some files are missing.
        for lost in ["conf/cluster.toml", "conf/aegis.toml", "pki/plasmavmc.crt"] {
            fs::remove_file(dir.path().join(lost)).unwrap();
        }
        run(dir.path(), &wanted).unwrap();
        let names = |state: &[(String, Vec<u8>)]| state.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
        let again = folder_state(dir.path());
        assert_eq!(names(&again), names(&first));
        let changed: Vec<_> = first
            .iter()
            .zip(&again)
            .filter(|(a, b)| a != b)
            .map(|(a, _)| &a.0)
            .collect();
        assert_eq!(changed, ["plasmavmc.crt", "plasmavmc.key"]);
    }

    #[test]
    fn keys_are_private_and_certificates_carry_their_identity() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, _) = run(dir.path(), &wanted()).unwrap();
        for part in layout.parts() {
            let files = tls_files(&layout, &part.certificate);
            let mode = fs::metadata(&files.key).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}", files.key.display());
            assert_eq!(Identity::load(&files).unwrap().own().path, part.identity);
        }
        assert_eq!(fs::read(layout.pki("seal.key")).unwrap().len(), 32);
    }

    #[test]
    fn other_choices_for_an_existing_cluster_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), &wanted()).unwrap();
        let error = run(
            dir.path(),
            &Wanted {
                nodes: Some(1),
                ..Wanted::default()
            },
        )
        .unwrap_err();
        assert!(error.to_string().contains("was made with 3 nodes"), "{error}");
        run(dir.path(), &Wanted::default()).unwrap();
    }

    #[test]
    fn a_taken_port_is_named_and_nothing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = wanted();
        let port = wanted.base_port.unwrap() + 10;
        let _listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        let error = run(&dir.path().join("data"), &wanted).unwrap_err().to_string();
        assert!(
            error.contains(&port.to_string()) && error.contains("aegis") && error.contains("pid"),
            "{error}"
        );
        assert!(!dir.path().join("data").exists());
    }
}
