//! Users, roles and tokens.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use etcd_client::{
    Client, ConnectOptions, Permission, PermissionType, RoleRevokePermissionOptions, UserAddOptions,
};

use crate::key;

/// Longer than a token lives.
const TOKEN_GONE: Duration = Duration::from_secs(5);

pub(crate) async fn roles(client: &mut Client) -> Result<()> {
    client.role_add("role1").await?;
    client.role_get("role1").await?;
    client.role_delete("role1").await?;
    let Err(error) = client.role_get("role1").await else {
        bail!("a deleted role is there")
    };
    ensure!(error.to_string().contains("role name not found"), "{error}");
    client.role_add("role2").await?;
    ensure!(client.role_list().await?.roles().contains(&"role2".to_owned()));
    let given = [
        Permission::read("123"),
        Permission::write("abc").with_from_key(),
        Permission::read_write("hi").with_range_end("hjj"),
        Permission::new(PermissionType::Write, "pp").with_prefix(),
        Permission::new(PermissionType::Read, "xyz").with_all_keys(),
    ];
    for permission in &given {
        client.role_grant_permission("role2", permission.clone()).await?;
    }
    let found = client.role_get("role2").await?.permissions();
    for permission in &given {
        ensure!(
            found.contains(permission),
            "{permission:?} is not among {found:?}"
        );
    }
    client.role_revoke_permission("role2", "123", None).await?;
    let revoked = [
        ("abc", RoleRevokePermissionOptions::new().with_from_key()),
        ("hi", RoleRevokePermissionOptions::new().with_range_end("hjj")),
        ("pp", RoleRevokePermissionOptions::new().with_prefix()),
        ("xyz", RoleRevokePermissionOptions::new().with_all_keys()),
    ];
    for (key, options) in revoked {
        client.role_revoke_permission("role2", key, Some(options)).await?;
    }
    let left = client.role_get("role2").await?.permissions();
    ensure!(left.is_empty(), "{left:?}");
    client.role_delete("role2").await?;
    Ok(())
}

pub(crate) async fn users(client: &mut Client) -> Result<()> {
    client
        .user_add("usr1", "pwd1", Some(UserAddOptions::new()))
        .await?;
    let no_password = UserAddOptions::new().with_no_pwd();
    client.user_add("usr2", "", Some(no_password)).await?;
    client.user_add("usr3", "pwd3", None).await?;
    let users = client.user_list().await?;
    ensure!(users.users() == ["usr1", "usr2", "usr3"], "{:?}", users.users());
    client.user_delete("usr2").await?;
    let Err(error) = client.user_get("usr2").await else {
        bail!("a deleted user is there")
    };
    ensure!(error.to_string().contains("user name not found"), "{error}");
    client.user_change_password("usr1", "pwd2").await?;
    client.role_add("role1").await?;
    client.user_grant_role("usr1", "role1").await?;
    ensure!(client.user_get("usr1").await?.roles() == ["role1"]);
    client.user_revoke_role("usr1", "role1").await?;
    ensure!(client.user_get("usr1").await?.roles().is_empty());
    for name in ["usr1", "usr3"] {
        client.user_delete(name).await?;
    }
    client.role_delete("role1").await?;
    Ok(())
}

pub(crate) async fn authentication(client: &mut Client, endpoints: &[String]) -> Result<()> {
    client.user_add("root", "rootpwd", None).await?;
    client.role_add("root").await?;
    client.user_grant_role("root", "root").await?;
    client.auth_enable().await?;
    let Err(error) = client.put(key("auth"), "1", None).await else {
        bail!("a write without a user went through")
    };
    ensure!(error.to_string().contains("user name is empty"), "{error}");
    let wrong = ConnectOptions::new().with_user("root", "guessed");
    let Err(error) = Client::connect(endpoints, Some(wrong)).await else {
        bail!("a wrong password was taken")
    };
    ensure!(error.to_string().contains("authentication failed"), "{error}");

    let user = || ConnectOptions::new().with_user("root", "rootpwd");
    let mut stale = Client::connect(endpoints, Some(user())).await?;
    stale.put(key("auth"), "2", None).await?;
    tokio::time::sleep(TOKEN_GONE).await;
    let Err(error) = stale.get(key("auth"), None).await else {
        bail!("a token outlived its time")
    };
    ensure!(error.to_string().contains("invalid auth token"), "{error}");

    // The crate signs in again where it knows the error; locks say it in another way than the rest.
    let renewing = user().with_auto_token_refresh(true);
    let mut root = Client::connect(endpoints, Some(renewing)).await?;
    tokio::time::sleep(TOKEN_GONE).await;
    ensure!(root.get(key("auth"), None).await?.kvs().len() == 1);
    tokio::time::sleep(TOKEN_GONE).await;
    let held = root.lock(key("auth-lock"), None).await?;
    root.unlock(held.key()).await?;
    tokio::time::sleep(TOKEN_GONE).await;
    root.user_list().await?;
    root.auth_disable().await?;
    client.put(key("auth"), "3", None).await?;
    client.user_delete("root").await?;
    client.role_delete("root").await?;
    Ok(())
}
