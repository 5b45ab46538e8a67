//! Users, projects, service accounts, bindings, roles: thin over Aegis's client.

use anyhow::Result;
use hearth_types::{ErrorKind, Name};
use iam_client::wire::{
    BindingView, NewBinding, NewProject, NewServiceAccount, NewUser, ProjectView, RoleView,
    ServiceAccountView, UserChange, UserView,
};
use rand::distr::{Alphanumeric, SampleString};

use super::{Env, secret_from_stdin};
use crate::cli::{Binding, Iam, Project, Role, ServiceAccount, User};
use crate::failure::fail;
use crate::output::{Row, note};

const PASSWORD_LENGTH: usize = 20;

impl Row for UserView {
    const HEADER: &'static [&'static str] = &["name", "id", "disabled"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_string(),
            self.id.to_string(),
            self.disabled.to_string(),
        ]
    }
}

impl Row for ProjectView {
    const HEADER: &'static [&'static str] = &["name", "organisation", "id"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_string(),
            self.organisation.clone(),
            self.id.to_string(),
        ]
    }
}

impl Row for ServiceAccountView {
    const HEADER: &'static [&'static str] = &["name", "project", "client id", "disabled"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_string(),
            self.project.clone(),
            self.id.to_string(),
            self.disabled.to_string(),
        ]
    }
}

impl Row for BindingView {
    const HEADER: &'static [&'static str] = &["id", "subject", "role", "on"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.id.to_string(),
            self.subject.clone(),
            self.role.to_string(),
            self.on.clone(),
        ]
    }
}

impl Row for RoleView {
    const HEADER: &'static [&'static str] = &["name", "description", "actions"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.description.clone(),
            self.actions.join(" "),
        ]
    }
}

pub(crate) async fn run(env: &Env, command: Iam) -> Result<()> {
    match command {
        Iam::User(command) => user(env, command).await,
        Iam::Project(command) => project(env, command).await,
        Iam::ServiceAccount(command) => service_account(env, command).await,
        Iam::Binding(command) => binding(env, command).await,
        Iam::Role(Role::List) => env.out.list(&env.context.aegis().await?.roles().await?),
    }
}

async fn user(env: &Env, command: User) -> Result<()> {
    let aegis = env.context.aegis().await?;
    match command {
        User::List => env.out.list(&aegis.users().await?),
        User::Create { name, password_stdin } => {
            let made_up = Alphanumeric.sample_string(&mut rand::rng(), PASSWORD_LENGTH);
            let password = if password_stdin {
                secret_from_stdin()?
            } else {
                made_up.clone()
            };
            let user = aegis.create_user(&NewUser { name, password }).await?;
            if !password_stdin {
                note(format!("password of `{}`, shown this once: {made_up}", user.name));
            }
            env.out.list(&[user])
        }
        User::Disable { name } => change(env, &name, true).await,
        User::Enable { name } => change(env, &name, false).await,
    }
}

async fn change(env: &Env, name: &Name, disabled: bool) -> Result<()> {
    let user = env
        .context
        .aegis()
        .await?
        .change_user(name.as_ref(), &UserChange { disabled })
        .await?;
    env.out.list(&[user])
}

async fn project(env: &Env, command: Project) -> Result<()> {
    let aegis = env.context.aegis().await?;
    match command {
        Project::List => env.out.list(&aegis.projects().await?),
        Project::Create { name } => {
            let made = aegis
                .create_project(&NewProject {
                    name,
                    organisation: None,
                })
                .await?;
            env.out.list(&[made])
        }
    }
}

async fn service_account(env: &Env, command: ServiceAccount) -> Result<()> {
    let aegis = env.context.aegis().await?;
    let project = env.context.project(env.global.project.as_ref())?.to_string();
    match command {
        ServiceAccount::List => env.out.list(&aegis.service_accounts(&project).await?),
        ServiceAccount::Create { name } => {
            let made = aegis
                .create_service_account(&project, &NewServiceAccount { name })
                .await?;
            env.out.list(&[made])
        }
        ServiceAccount::Secret { name } => {
            let secret = aegis.create_secret(&project, name.as_ref()).await?;
            let people = [
                ("client id", secret.client_id.clone()),
                ("client secret", secret.client_secret.clone()),
            ];
            env.out.one(&secret, &people)
        }
        ServiceAccount::Delete { name } => {
            aegis.delete_service_account(&project, name.as_ref()).await?;
            note(format!(
                "deleted the service account `{name}` of project `{project}`"
            ));
            Ok(())
        }
    }
}

async fn binding(env: &Env, command: Binding) -> Result<()> {
    let aegis = env.context.aegis().await?;
    let place = |on: Option<String>| -> Result<String> {
        match on {
            Some(on) => Ok(on),
            None => Ok(format!(
                "project/{}",
                env.context.project(env.global.project.as_ref())?
            )),
        }
    };
    match command {
        Binding::List { on } => env.out.list(&aegis.bindings(&place(on)?).await?),
        Binding::Create { subject, role, on } => {
            let role = role.parse().map_err(|_| {
                let message = format!("`{role}` is not a role");
                fail(
                    ErrorKind::InvalidArgument,
                    message,
                    "`hearth iam role list` shows the roles",
                )
            })?;
            let made = aegis
                .create_binding(&NewBinding {
                    subject,
                    role,
                    on: place(on)?,
                })
                .await?;
            env.out.list(&[made])
        }
        Binding::Delete { id } => {
            aegis.delete_binding(&id).await?;
            note(format!("deleted the binding {id}"));
            Ok(())
        }
    }
}
