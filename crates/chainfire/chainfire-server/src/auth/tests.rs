//! The whole question in one table: the way in, the user, and auth on or off, by operation.

use bytes::Bytes;
use chainfire_core::{
    Store,
    auth::{Access, AuthCommand, Permission},
    storage::MemoryStore,
};

use super::*;

fn key(text: &'static str) -> KeyRange {
    KeyRange::single(Bytes::from_static(text.as_bytes()))
}

fn range(from: &'static str, to: &'static str) -> KeyRange {
    KeyRange::new(
        Bytes::from_static(from.as_bytes()),
        Bytes::from_static(to.as_bytes()),
    )
}

/// `root` has the root role; `alice` reads `a` to `c`, writes `a`, and reads the whole of `/aegis/`.
fn auth(enabled: bool) -> Arc<AuthState> {
    let mut store = Store::new(MemoryStore::default());
    let user = |name: &str| AuthCommand::UserAdd {
        name: name.into(),
        password: Bytes::new(),
        no_password: true,
    };
    let grant = |user: &str, role: &str| AuthCommand::UserGrantRole {
        user: user.into(),
        role: role.into(),
    };
    let permit = |access, key: &'static str, end: &'static str| AuthCommand::RoleGrantPermission {
        role: "r".into(),
        permission: Some(Permission {
            access,
            key: Bytes::from_static(key.as_bytes()),
            range_end: Bytes::from_static(end.as_bytes()),
        }),
    };
    let commands = [
        user("root"),
        user("alice"),
        AuthCommand::RoleAdd { name: "r".into() },
        grant("root", "root"),
        grant("alice", "r"),
        permit(Access::Read, "a", "c"),
        permit(Access::Write, "a", ""),
        permit(Access::Read, "/aegis/", "/aegis0"),
        AuthCommand::Enable,
    ];
    let wanted = if enabled {
        commands.len()
    } else {
        commands.len() - 1
    };
    for command in &commands[..wanted] {
        let applied = store
            .apply(&chainfire_core::Command::Auth(command.clone()))
            .unwrap();
        assert_eq!(applied.reply, chainfire_core::Reply::Auth, "{command:?}");
    }
    Arc::new(AuthState::new(store.auth().clone(), 0))
}

fn caller(rights: &Rights, user: Option<&str>, state: &Arc<AuthState>) -> Caller {
    let auth = state.current();
    let by = match user {
        _ if !auth.enabled() && (user.is_some() || !rights.is_house()) => By::NOBODY,
        None if rights.is_house() => By::System,
        None => By::NOBODY,
        Some(name) => By::User {
            name: name.into(),
            revision: auth.revision(),
        },
    };
    Caller {
        rights: rights.clone(),
        by,
        since: None,
        state: state.clone(),
    }
}

/// One letter for each answer: y, or why not.
fn letter(answer: Result<(), OpError>) -> char {
    match answer {
        Ok(()) => 'y',
        Err(OpError::PermissionDenied) => '-',
        Err(OpError::UserEmpty) => '?',
        Err(error) => panic!("{error}"),
    }
}

/// A write as it goes: the fixed table before the proposal, the users when it is applied.
fn write(caller: &Caller, keys: &KeyRange) -> Result<(), OpError> {
    caller.propose_write(keys)?;
    caller.auth()?.may_write(&caller.by, keys)
}

#[test]
fn every_caller_and_every_operation() {
    let flashdns = Rights::identity("service/flashdns");
    let node = Rights::identity("node/n1");
    let root = Rights::identity("operator/root");
    let ways: [(&str, &Rights, Option<&str>); 14] = [
        ("operator/root", &root, None),
        ("operator/root + alice", &root, Some("alice")),
        ("operator/root + root", &root, Some("root")),
        ("service/flashdns", &flashdns, None),
        ("service/flashdns + alice", &flashdns, Some("alice")),
        ("node/n1", &node, None),
        ("tool", &Rights::Tool, None),
        ("tool + alice", &Rights::Tool, Some("alice")),
        ("tool + root", &Rights::Tool, Some("root")),
        ("tool + nobody's name", &Rights::Tool, Some("mallory")),
        ("no certificate", &Rights::Anonymous, None),
        ("no certificate + alice", &Rights::Anonymous, Some("alice")),
        ("unknown identity", &Rights::Nobody, None),
        ("unknown identity + root", &Rights::Nobody, Some("root")),
    ];
    // read: a, b, a..c, a..d, /aegis/x; write: a, b, a..c, /aegis/x, /flashdns/x; known, administer, see alice, see r
    let off_on = [
        ("yyyyy yyyyy yyyy", "yyyyy yyyyy yyyy"),
        ("yyyyy yyyyy yyyy", "yyy-y y---- y-yy"),
        ("yyyyy yyyyy yyyy", "yyyyy yyyyy yyyy"),
        ("----- ----y y---", "----- ----y y---"),
        ("----- ----y y---", "----- ----- y---"),
        ("----- ----- y---", "----- ----- y---"),
        ("yyyyy yyy-- yyyy", "????? ???-- ????"),
        ("yyyyy yyy-- yyyy", "yyy-y y---- y-yy"),
        ("yyyyy yyy-- yyyy", "yyyyy yyy-- yyyy"),
        ("yyyyy yyy-- yyyy", "----- ----- ynnn"),
        ("----- ----- ----", "????? ???-- ????"),
        ("----- ----- ----", "yyy-y y---- y-yy"),
        ("----- ----- ----", "----- ----- ----"),
        ("----- ----- ----", "----- ----- ----"),
    ];
    let states = [auth(false), auth(true)];
    for ((name, rights, user), (off, on)) in ways.into_iter().zip(off_on) {
        for (state, expected) in states.iter().zip([off, on]) {
            let caller = caller(rights, user, state);
            let reads = [
                key("a"),
                key("b"),
                range("a", "c"),
                range("a", "d"),
                key("/aegis/x"),
            ];
            let writes = [
                key("a"),
                key("b"),
                range("a", "c"),
                key("/aegis/x"),
                key("/flashdns/x"),
            ];
            let answer = |answer: Result<(), OpError>| match answer {
                // Only where there is no such user: etcd's answer to an administrator that is gone.
                Err(OpError::UserNotFound) => 'n',
                other => letter(other),
            };
            let read: String = reads.iter().map(|keys| answer(caller.read(keys))).collect();
            let write: String = writes.iter().map(|keys| answer(write(&caller, keys))).collect();
            let rest: String = [
                caller.known(),
                caller.administer(),
                caller.see_user("alice"),
                caller.see_role("r"),
            ]
            .into_iter()
            .map(answer)
            .collect();
            let enabled = state.current().enabled();
            assert_eq!(
                format!("{read} {write} {rest}"),
                expected,
                "{name}, auth {enabled}"
            );
        }
    }
}

#[test]
fn a_watcher_goes_when_its_right_goes() {
    let state = auth(true);
    let mut watching = caller(&Rights::Tool, Some("alice"), &state);
    watching.since = state.current().user("alice").map(|user| user.since);
    let (ours, others) = (range("a", "c"), range("a", "d"));
    assert_eq!(watching.still_reads(&ours), Ok(()));
    assert_eq!(watching.still_reads(&others), Err(OpError::PermissionDenied));
    let mut store = Store::new(MemoryStore::default());
    store.restore_auth(state.current().as_ref().clone());
    let mut change = |command| {
        store.apply(&chainfire_core::Command::Auth(command)).unwrap();
        state.publish(store.auth(), 1);
    };
    // Another change does not concern it, though the revision it came in with is old now.
    change(AuthCommand::RoleAdd { name: "x".into() });
    assert_eq!(watching.still_reads(&ours), Ok(()));
    assert_eq!(watching.read(&ours), Err(OpError::AuthOldRevision));
    change(AuthCommand::UserChangePassword {
        name: "alice".into(),
        password: Bytes::new(),
    });
    assert_eq!(watching.still_reads(&ours), Err(OpError::InvalidAuthToken));
    watching.since = None;
    assert_eq!(watching.still_reads(&ours), Ok(()), "came in by certificate");
    change(AuthCommand::UserRevokeRole {
        user: "alice".into(),
        role: "r".into(),
    });
    assert_eq!(watching.still_reads(&ours), Err(OpError::PermissionDenied));
    change(AuthCommand::Disable);
    assert_eq!(watching.still_reads(&others), Ok(()));
}

#[test]
fn tokens_are_found_where_clients_put_them() {
    let credential = |name: &'static str, value: &'static str| {
        let mut request = Request::new(());
        request.metadata_mut().insert(name, value.parse().unwrap());
        Credential::of(&request).token
    };
    assert_eq!(credential("token", "abc.1"), Some("abc.1".into()));
    assert_eq!(credential("authorization", "Bearer abc.1"), Some("abc.1".into()));
    assert_eq!(credential("authorization", "abc.1"), Some("abc.1".into()));
    assert_eq!(credential("other", "abc.1"), None);
}
