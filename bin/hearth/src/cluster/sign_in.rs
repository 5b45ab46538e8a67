//! The first administrator and the command line's own sign-in, made by `hearth up`.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use hearth_service::pki::write_private;
use hearth_types::{ErrorKind, Name};
use iam_client::wire::{BootstrapRequest, NewProject, SessionRequest};
use iam_client::{AegisClient, ClientError, Session};
use rand::distr::{Alphanumeric, SampleString};

use super::layout::Layout;
use crate::context::{Context, Settings};
use crate::output::note;

const ADMINISTRATOR: &str = "admin";
/// Project that commands mean when none is named.
pub(crate) const PROJECT: &str = "default";
/// About 142 bits.
const PASSWORD_LENGTH: usize = 24;
/// How long a fresh sign-in may take to be known everywhere.
const SPREAD: Duration = Duration::from_secs(20);

/// Where the administrator's name and password are kept.
pub(crate) fn credentials_file(layout: &Layout) -> PathBuf {
    layout.data.join("admin-credentials")
}

/// Makes the administrator when there is none and signs the command line in. False when that needs
/// the user (the password was changed).
pub(crate) async fn run(layout: &Layout, context: &Context) -> Result<bool> {
    let aegis = AegisClient::new(&layout.aegis_url(), &layout.pki("ca.crt"))?;
    let password = password(layout)?;
    let Some(session) = session(layout, &aegis, &password).await? else {
        note("the administrator's password was changed: sign in with `hearth login`");
        return Ok(false);
    };
    let settings = Settings {
        aegis: layout.aegis_url(),
        plasmavmc: layout.plasmavmc_url(),
        flashdns: Some(layout.flashdns_url()),
        ca: layout.pki("ca.crt"),
        project: PROJECT.to_owned(),
        session: Some(session),
    };
    context.save(&settings)?;
    project(context).await?;
    wait_until_known(context).await?;
    Ok(true)
}

/// The password in the credentials file, made and kept before it is used: a start that is cut short
/// can be repeated.
fn password(layout: &Layout) -> Result<String> {
    let path = credentials_file(layout);
    if path.exists() {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let line = text.lines().find_map(|l| l.strip_prefix("password: "));
        return line
            .map(|l| l.trim().to_owned())
            .with_context(|| format!("`{}` has no line `password: ...`", path.display()));
    }
    let password = Alphanumeric.sample_string(&mut rand::rng(), PASSWORD_LENGTH);
    let text = format!("username: {ADMINISTRATOR}\npassword: {password}\n");
    write_private(&path, text.as_bytes())?;
    Ok(password)
}

async fn session(layout: &Layout, aegis: &AegisClient, password: &str) -> Result<Option<Session>> {
    let request = SessionRequest {
        username: ADMINISTRATOR.to_owned(),
        password: password.to_owned(),
    };
    match aegis.sign_in(&request).await {
        Ok(tokens) => return Ok(Some(Session::new(tokens, SystemTime::now()))),
        Err(ClientError::Api {
            kind: ErrorKind::Unauthenticated,
            ..
        }) => {}
        Err(other) => return Err(other).context("cannot sign in as the administrator"),
    }
    let path = layout.pki("bootstrap.token");
    let token = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let username: Name = ADMINISTRATOR.parse().context("the administrator's name")?;
    let bootstrap = BootstrapRequest {
        token: token.trim().to_owned(),
        username,
        password: password.to_owned(),
    };
    match aegis.bootstrap(&bootstrap).await {
        Ok(_) => {}
        Err(ClientError::Api {
            kind: ErrorKind::Unavailable | ErrorKind::Internal,
            ..
        }) => {
            return Err(anyhow::anyhow!(
                "Aegis could not make the administrator; run `hearth up` again"
            ));
        }
        // It was done before, by somebody whose password we do not have.
        Err(ClientError::Api { .. }) => return Ok(None),
        Err(other) => return Err(other).context("cannot make the administrator"),
    }
    let tokens = aegis
        .sign_in(&request)
        .await
        .context("cannot sign in as the new administrator")?;
    Ok(Some(Session::new(tokens, SystemTime::now())))
}

async fn project(context: &Context) -> Result<()> {
    let aegis = context.aegis().await?;
    let projects = aegis.projects().await.context("cannot list the projects")?;
    if projects.iter().any(|p| p.name.to_string() == PROJECT) {
        return Ok(());
    }
    let name = PROJECT.parse().context("the project's name")?;
    match aegis
        .create_project(&NewProject {
            name,
            organisation: None,
        })
        .await
    {
        Ok(_) => Ok(()),
        Err(ClientError::Api {
            kind: ErrorKind::AlreadyExists,
            ..
        }) => Ok(()),
        Err(other) => Err(other).context("cannot make the project `default`"),
    }
}

/// PlasmaVMC decides by its own copy of the rights, which follows Aegis by a moment.
async fn wait_until_known(context: &Context) -> Result<()> {
    let client = context.plasmavmc().await?;
    let begin = Instant::now();
    loop {
        let answer = client.list_images().await;
        match answer {
            Ok(_) => return Ok(()),
            Err(_) if begin.elapsed() < SPREAD => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(error) => return Err(error).context("PlasmaVMC does not accept the administrator's sign-in"),
        }
    }
}
