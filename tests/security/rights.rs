//! Who may do what, as the command line and plain HTTPS see it.

use std::fs;

use anyhow::{Context, Result, ensure};
use hearth_tests::{Cmd, Need, Output, Platform, leaks, store, wait};

const VMS: &str = "https://127.0.0.1:8444/v1/projects/default/vms";
const BODY: &str = r#"{"name":"sneaked","image":"tiny"}"#;
/// The shortest lifetime that Aegis can be told to give its tokens, in seconds.
const LIFETIME_S: u64 = 10;

#[test]
fn rights_are_those_of_the_role_and_the_project() -> Result<()> {
    let curl = Need::Program("curl", "curl");
    Platform::scenario(&[store::NEED, curl], |platform| {
        platform.hearth("cluster init").ok()?;
        short_tokens(platform)?;
        platform.up("--no-first-vm")?;
        people(platform)?;
        platform
            .hearth("vm create web --image tiny --cpus 1 --memory 128MiB --wait")
            .ok()?;
        let traces = leaks::Traces::of(platform)?;

        without_a_valid_token(platform).context("no valid token")?;
        viewer(platform).context("the viewer")?;
        operator_of_another_project(platform).context("the other project's operator")?;
        disabled(platform).context("a disabled user")?;
        // None of the refused requests left anything.
        traces.are_all(platform, 5)
    })
}

fn short_tokens(platform: &Platform) -> Result<()> {
    let file = platform.data().join("conf/aegis.toml");
    let mut text = fs::read_to_string(&file)?;
    text.push_str(&format!("access_token_lifetime_s = {LIFETIME_S}\n"));
    fs::write(&file, text).context("cannot write the configuration of Aegis")
}

/// `vera` views the project `default`; `olga` operates the project `other`.
fn people(platform: &Platform) -> Result<()> {
    platform.hearth("iam project create other").ok()?;
    for (name, role, on) in [
        ("vera", "viewer", "project/default"),
        ("olga", "operator", "project/other"),
    ] {
        let password = format!("correct horse battery {role}\n");
        platform
            .hearth(&format!("iam user create {name} --password-stdin"))
            .stdin(password.clone())
            .ok()?;
        platform
            .hearth(&format!("iam binding create user/{name} {role} --on {on}"))
            .ok()?;
        platform
            .hearth_as(
                name,
                &format!("login --username {name} --password-stdin --url https://127.0.0.1:8443 --ca"),
            )
            .arg(platform.data().join("pki/ca.crt"))
            .stdin(password)
            .ok()?;
    }
    Ok(())
}

/// The HTTP status and body of a request, with a token or without.
fn https(platform: &Platform, method: &str, url: &str, token: Option<&str>) -> Result<(u16, String)> {
    // Over HTTP/2, Debian 12's curl loses the answer (error 92) when the server refuses a POST before its body came.
    let mut curl = Cmd::new("curl")
        .words("-sS --http1.1 --max-time 20 -w \\n%{http_code} -H content-type:application/json --cacert")
        .arg(platform.data().join("pki/ca.crt"))
        .words("-X")
        .arg(method)
        .arg(url);
    if let Some(token) = token {
        curl = curl.arg("-H").arg(format!("Authorization: Bearer {token}"));
    }
    if method == "POST" {
        curl = curl.arg("-d").arg(BODY);
    }
    let output = curl.ok()?;
    let (body, status) = output.stdout.rsplit_once('\n').context("no status")?;
    Ok((status.parse()?, body.to_owned()))
}

fn refused(platform: &Platform, status: u16, method: &str, url: &str, token: Option<&str>) -> Result<String> {
    let (found, body) = https(platform, method, url, token)?;
    ensure!(
        found == status,
        "{method} {url}: {found} instead of {status}: {body}"
    );
    let error: serde_json::Value =
        serde_json::from_str(&body).with_context(|| format!("not JSON: {body}"))?;
    let error = &error["error"];
    ensure!(
        error["message"].is_string() && error["request_id"].is_string(),
        "no message or no request id: {body}"
    );
    Ok(body)
}

/// The access token that somebody's command line works with, just renewed.
fn token_of(platform: &Platform, who: &str) -> Result<String> {
    platform.hearth_as(who, "whoami").ok()?;
    let file = platform.sandbox().path().join(format!("{who}.toml"));
    let text = fs::read_to_string(&file)?;
    let line = text
        .lines()
        .find_map(|l| l.trim().strip_prefix("access_token = "));
    Ok(line
        .context("no access token in the sign-in file")?
        .trim_matches('"')
        .to_owned())
}

fn without_a_valid_token(platform: &Platform) -> Result<()> {
    let token = token_of(platform, "root")?;
    let (status, body) = https(platform, "GET", VMS, Some(&token))?;
    ensure!(status == 200, "the administrator: {status} {body}");
    for method in ["GET", "POST"] {
        refused(platform, 401, method, VMS, None)?;
        refused(platform, 401, method, VMS, Some("nonsense"))?;
    }
    // One changed letter in the middle of the signature.
    let (signed, signature) = token.rsplit_once('.').context("no signature")?;
    let (head, tail) = signature.split_at(signature.len() / 2);
    let other = if tail.starts_with('A') { "B" } else { "A" };
    let forged = format!("{signed}.{head}{other}{}", tail.get(1..).unwrap_or_default());
    refused(platform, 401, "GET", VMS, Some(&forged))?;
    // Without a signature at all.
    refused(platform, 401, "GET", VMS, Some(&format!("{signed}.")))?;

    wait::until_ok("an expired token is refused", LIFETIME_S + 60, || {
        refused(platform, 401, "GET", VMS, Some(&token)).map(drop)
    })?;
    let (status, body) = https(platform, "GET", VMS, Some(&token_of(platform, "root")?))?;
    ensure!(status == 200, "a renewed token: {status} {body}");
    let nobody = platform.hearth_as("nobody", "vm list").refused()?;
    ensure!(nobody.code == Some(5), "{nobody}");
    Ok(())
}

fn viewer(platform: &Platform) -> Result<()> {
    let listed = platform.hearth_as("vera", "-o json vm list").ok()?.json()?;
    ensure!(listed[0]["name"] == "web", "{listed}");
    for words in [
        "vm create sneaked --image tiny",
        "vm stop web",
        "vm start web",
        "vm reset web",
        "vm delete web",
        "vm console web",
        "iam user create mallory --password-stdin",
        "iam binding create user/vera admin --on project/default",
        "image delete tiny",
    ] {
        let output = platform
            .hearth_as("vera", words)
            .stdin("a long enough password\n")
            .refused()?;
        // Rights that are not even visible from a project may be hidden as well as refused.
        let hidden = output.code == Some(4) && !words.starts_with("vm");
        ensure!(output.code == Some(6) || hidden, "{output}");
    }
    let token = token_of(platform, "vera")?;
    refused(platform, 403, "POST", VMS, Some(&token))?;
    refused(platform, 403, "DELETE", &format!("{VMS}/web"), Some(&token))?;
    ensure!(
        platform.vm("web")?["state"] == "running",
        "{}",
        platform.vm("web")?
    );
    Ok(())
}

fn operator_of_another_project(platform: &Platform) -> Result<()> {
    platform.hearth_as("olga", "--project other vm list").ok()?;
    for words in [
        "vm list",
        "vm show web",
        "vm stop web",
        "vm delete web",
        "vm console web",
        "vm create sneaked --image tiny",
    ] {
        let output: Output = platform
            .hearth_as("olga", &format!("--project default {words}"))
            .refused()?;
        ensure!(output.code == Some(4), "{output}");
    }
    let token = token_of(platform, "olga")?;
    let hidden = refused(platform, 404, "GET", &format!("{VMS}/web"), Some(&token))?;
    // Nothing tells a project that one may not see from one that is not there.
    let absent = refused(
        platform,
        404,
        "GET",
        "https://127.0.0.1:8444/v1/projects/nowhere/vms/web",
        Some(&token),
    )?;
    let essence = |body: &str, project: &str| -> Result<String> {
        let mut error: serde_json::Value = serde_json::from_str(body)?;
        error["error"]["request_id"] = "".into();
        Ok(error.to_string().replace(project, "PROJECT"))
    };
    ensure!(
        essence(&hidden, "default")? == essence(&absent, "nowhere")?,
        "they differ: {hidden} {absent}"
    );
    Ok(())
}

/// A disabled user is out at once, not when the token expires.
fn disabled(platform: &Platform) -> Result<()> {
    let token = token_of(platform, "vera")?;
    platform.hearth("iam user disable vera").ok()?;
    wait::until_ok("a disabled user is refused", 5, || {
        let (status, body) = https(platform, "GET", VMS, Some(&token))?;
        ensure!(matches!(status, 401 | 403 | 404), "{status} {body}");
        Ok(())
    })
}
