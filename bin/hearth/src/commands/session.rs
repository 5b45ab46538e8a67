//! Sign-in, sign-out, who am I.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use hearth_types::ErrorKind;
use iam_client::wire::{SessionRequest, TokenResponse, WhoAmI};
use iam_client::{AegisClient, DeviceWait, Session};

use super::{Env, secret_from_stdin};
use crate::cli::Login;
use crate::context::{Settings, anonymous};
use crate::failure::fail;
use crate::output::note;

pub(crate) async fn login(env: &Env, login: Login) -> Result<()> {
    let mut settings = settings(env, &login)?;
    let aegis = anonymous(&settings)?;
    let tokens = match &login.username {
        Some(username) => {
            let password = password(&login)?;
            aegis
                .sign_in(&SessionRequest {
                    username: username.clone(),
                    password,
                })
                .await?
        }
        None => device(&aegis).await?,
    };
    settings.session = Some(Session::new(tokens, SystemTime::now()));
    env.context.save(&settings)?;
    let who = env.context.aegis().await?.whoami().await?;
    note(format!("signed in as {}", who.subject));
    Ok(())
}

/// The context's, or those of a cluster named on the command line.
fn settings(env: &Env, login: &Login) -> Result<Settings> {
    let (Some(url), Some(ca)) = (&login.url, &login.ca) else {
        return env.context.settings();
    };
    let plasmavmc = match &login.vm_url {
        Some(url) => url.clone(),
        None => {
            let host = url.rsplit_once(':').map_or(url.as_str(), |(host, _)| host);
            format!("{host}:8444")
        }
    };
    Ok(Settings {
        aegis: url.clone(),
        plasmavmc,
        flashdns: login.dns_url.clone(),
        ca: std::path::absolute(ca).context("the path of the CA certificate")?,
        project: "default".to_owned(),
        session: None,
    })
}

fn password(login: &Login) -> Result<String> {
    if login.password_stdin {
        return secret_from_stdin();
    }
    Err(fail(
        ErrorKind::InvalidArgument,
        "a sign-in with --username needs the password on standard input",
        "add --password-stdin, as in `hearth login --username admin --password-stdin < FILE`",
    ))
}

/// RFC 8628: the person approves in a browser, we ask until they have.
async fn device(aegis: &AegisClient) -> Result<TokenResponse> {
    let begin = aegis.device_begin().await?;
    note(format!(
        "open {} and enter the code {}",
        begin.verification_uri, begin.user_code
    ));
    note(format!("or open {}", begin.verification_uri_complete));
    let deadline = Instant::now() + Duration::from_secs(begin.expires_in);
    let mut pause = Duration::from_secs(begin.interval.max(1));
    while Instant::now() < deadline {
        tokio::time::sleep(pause).await;
        match aegis.device_poll(&begin.device_code, pause).await? {
            DeviceWait::Done(tokens) => return Ok(tokens),
            DeviceWait::Pending(next) => pause = next,
        }
    }
    Err(iam_client::ClientError::DeviceExpired.into())
}

pub(crate) async fn logout(env: &Env) -> Result<()> {
    let mut settings = env.context.settings()?;
    let Some(session) = settings.session.take() else {
        note("nobody is signed in");
        return Ok(());
    };
    // Forgotten here first: a server that cannot be reached does not keep the user signed in.
    env.context.save(&settings)?;
    if let Some(token) = &session.refresh_token {
        anonymous(&settings)?
            .revoke(token)
            .await
            .context("signed out here, but Aegis could not be told")?;
    }
    note("signed out");
    Ok(())
}

pub(crate) async fn whoami(env: &Env) -> Result<()> {
    let who: WhoAmI = env.context.aegis().await?.whoami().await?;
    let bindings: Vec<String> = who
        .bindings
        .iter()
        .map(|b| format!("{} on {}", b.role, b.on))
        .collect();
    let people = [
        ("subject", who.subject.clone()),
        ("rights", bindings.join(", ")),
        ("projects", who.projects.join(", ")),
    ];
    env.out.one(&who, &people)
}
