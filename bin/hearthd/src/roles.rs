//! One function per role: the role's crate with its configuration type.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result};
use hearth_service::config::{self, ServiceConfig, TlsConfig};
use hearth_service::tasks::{Kind, Tasks};
use hearth_service::tls::Identity;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::RoleArgs;

pub(crate) fn chainfire(args: &RoleArgs) -> Result<()> {
    serve(
        args,
        |c: &chainfire_server::Config| (&c.service, &c.tls),
        chainfire_server::run,
    )
}

pub(crate) fn aegis(args: &RoleArgs) -> Result<()> {
    serve(
        args,
        |c: &iam_server::Config| (&c.service, &c.tls),
        iam_server::run,
    )
}

pub(crate) fn flashdns(args: &RoleArgs) -> Result<()> {
    serve(
        args,
        |c: &flashdns_server::Config| (&c.service, &c.tls),
        flashdns_server::run,
    )
}

pub(crate) fn plasmavmc(args: &RoleArgs) -> Result<()> {
    serve(
        args,
        |c: &plasmavmc_server::Config| (&c.service, &c.tls),
        plasmavmc_server::run,
    )
}

pub(crate) fn agent(args: &RoleArgs) -> Result<()> {
    serve(
        args,
        |c: &plasmavmc_agent::Config| (&c.service, &c.tls),
        plasmavmc_agent::run,
    )
}

pub(crate) fn guard(args: &RoleArgs) -> Result<()> {
    serve(
        args,
        |c: &plasmavmc_guard::Config| (&c.service, &c.tls),
        plasmavmc_guard::run,
    )
}

/// Reads the configuration, then runs the role until a signal or the failure of a critical task.
fn serve<C, R, F, E>(args: &RoleArgs, frame: fn(&C) -> (&ServiceConfig, &TlsConfig), run: R) -> Result<()>
where
    C: DeserializeOwned + Serialize + Send + 'static,
    R: FnOnce(C, Tasks) -> F + Send + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    let config: C = config::load(&args.config)?;
    if args.check_config {
        println!("{} is valid", args.config.display());
        return Ok(());
    }
    if args.dump_config {
        print!(
            "{}",
            toml::to_string(&config).context("cannot print the configuration")?
        );
        return Ok(());
    }
    if args.own_session {
        nix::unistd::setsid().context("cannot open a session of its own")?;
    }
    let (frame, tls) = frame(&config);
    let (frame, tls) = (frame.clone(), tls.clone());
    hearth_service::telemetry::init(&frame);
    std::fs::create_dir_all(&frame.data_dir)
        .with_context(|| format!("cannot make the data folder {}", frame.data_dir.display()))?;
    // A crash may have left a renewed certificate half in place.
    iam_client::certs::recover(&tls).context("cannot finish the renewal of the certificate")?;
    tracing::info!(
        service = frame.name,
        version = hearth_service::VERSION,
        "starting"
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let tasks = Tasks::new();
        let group = tasks.clone();
        if let Some(aegis) = &frame.renew_certificate_at {
            match Identity::load(&tls) {
                Ok(identity) => iam_client::certs::spawn_renewer(identity, aegis, &tasks),
                // The role reads the same files and fails with the same reason.
                Err(error) => tracing::debug!(%error, "no renewal"),
            }
        }
        tasks.spawn("role", Kind::Critical, async move {
            run(config, group.clone()).await?;
            // A role may return once its tasks run; they end with the group.
            group.stopping().await;
            Ok(())
        });
        tasks
            .run_until_signal(Duration::from_secs(frame.shutdown_grace_s))
            .await
    });
    // Blocking work that is left (a file being read) does not hold the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match &outcome {
        Ok(()) => tracing::info!(service = frame.name, "ended"),
        Err(failure) => {
            tracing::error!(
                service = frame.name,
                error = hearth_service::tasks::chain(failure),
                "failed"
            );
        }
    }
    Ok(outcome?)
}
