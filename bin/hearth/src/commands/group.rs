//! Groups of VMs that are placed apart or together.

use anyhow::Result;
use plasmavmc_client::types::{Group, GroupCreate, GroupRule};

use super::Env;
use crate::cli::Group as Command;
use crate::output::{Row, note};

impl Row for Group {
    const HEADER: &'static [&'static str] = &["name", "rule", "strict", "vms"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_string(),
            self.rule.as_str().to_owned(),
            if self.strict { "yes" } else { "no" }.to_owned(),
            self.vms.to_string(),
        ]
    }
}

pub(crate) async fn run(env: &Env, command: Command) -> Result<()> {
    let client = env.plasmavmc().await?;
    let project = env.context.project(env.global.project.as_ref())?;
    match command {
        Command::List => env.out.list(&client.list_groups(&project).await?.items),
        Command::Show { name } => show(env, &client.get_group(&project, &name).await?),
        Command::Create {
            name,
            apart,
            together: _,
            strict,
        } => {
            let rule = if apart {
                GroupRule::Apart
            } else {
                GroupRule::Together
            };
            let group = GroupCreate { name, rule, strict };
            show(env, &client.create_group(&project, &group).await?)
        }
        Command::Delete { name } => {
            client.delete_group(&project, &name).await?;
            note(format!("deleted the group `{name}`"));
            Ok(())
        }
    }
}

fn show(env: &Env, group: &Group) -> Result<()> {
    let vms = group
        .members
        .iter()
        .map(|vm| format!("{} on {}", vm.name, vm.node));
    let people = [
        ("name", group.name.to_string()),
        ("rule", group.rule.as_str().to_owned()),
        ("strict", if group.strict { "yes" } else { "no" }.to_owned()),
        ("vms", vms.collect::<Vec<_>>().join(", ")),
        ("created", group.created_at.clone()),
    ];
    env.out.one(group, &people)
}
