//! Users, roles and permissions: etcd's answers as a table, the merging of ranges against a naive model, and that
//! nothing a command was checked against slips between check and application.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use bytes::Bytes;
use chainfire_core::{
    Command, DeleteRange, KeyRange, OpError, Put, Reply, Store,
    auth::{Access, AuthCommand as C, By, Permission, RangeSet},
    storage::MemoryStore,
};
use proptest::prelude::*;

type Memory = Store<MemoryStore>;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn keys(key: &str, end: &str) -> KeyRange {
    KeyRange::new(bytes(key), bytes(end))
}

fn add_user(name: &str) -> C {
    C::UserAdd {
        name: name.into(),
        password: bytes("hash"),
        no_password: false,
    }
}

fn grant(user: &str, role: &str) -> C {
    C::UserGrantRole {
        user: user.into(),
        role: role.into(),
    }
}

fn revoke(user: &str, role: &str) -> C {
    C::UserRevokeRole {
        user: user.into(),
        role: role.into(),
    }
}

fn permit(role: &str, access: Access, key: &str, end: &str) -> C {
    C::RoleGrantPermission {
        role: role.into(),
        permission: Some(Permission {
            access,
            key: bytes(key),
            range_end: bytes(end),
        }),
    }
}

fn forbid(role: &str, key: &str, end: &str) -> C {
    C::RoleRevokePermission {
        role: role.into(),
        key: bytes(key),
        range_end: bytes(end),
    }
}

fn delete_user(name: &str) -> C {
    C::UserDelete { name: name.into() }
}

fn delete_role(name: &str) -> C {
    C::RoleDelete { name: name.into() }
}

fn apply(store: &mut Memory, command: C) -> Result<(), OpError> {
    match store.apply(&Command::Auth(command)).unwrap().reply {
        Reply::Auth => Ok(()),
        Reply::Refused(error) => Err(error),
        other => panic!("{other:?}"),
    }
}

fn store_of(commands: impl IntoIterator<Item = C>) -> Memory {
    let mut store = Store::new(MemoryStore::default());
    for command in commands {
        apply(&mut store, command).unwrap();
    }
    store
}

fn by(store: &Memory, name: &str) -> By {
    By::User {
        name: name.into(),
        revision: store.auth().revision(),
    }
}

/// Commands one after another: the error, and the auth revision afterwards.
#[test]
fn administration_answers_as_etcd_does() {
    use OpError as E;
    let add_role = |name: &str| C::RoleAdd { name: name.into() };
    let password = |name: &str| C::UserChangePassword {
        name: name.into(),
        password: bytes("other"),
    };
    let authenticate = |name: &str, revision| C::Authenticate {
        name: name.into(),
        token: "t".into(),
        revision,
    };
    let nothing = C::RoleGrantPermission {
        role: "r".into(),
        permission: None,
    };
    let table: Vec<(C, Option<E>, u64)> = vec![
        (C::Enable, Some(E::RootUserNotExist), 1),
        (C::Disable, None, 1),
        (authenticate("root", 1), Some(E::AuthNotEnabled), 1),
        (add_user(""), Some(E::UserEmpty), 1),
        (add_user("root"), None, 2),
        (add_user("root"), Some(E::UserAlreadyExists), 2),
        (C::Enable, Some(E::RootRoleNotExist), 2),
        (grant("root", "root"), None, 3),
        (grant("root", "root"), None, 3),
        (grant("nobody", "root"), Some(E::UserNotFound), 3),
        (grant("root", "r"), Some(E::RoleNotFound), 3),
        (add_role(""), Some(E::RoleEmpty), 3),
        (add_role("r"), None, 4),
        (add_role("r"), Some(E::RoleAlreadyExists), 4),
        (nothing, Some(E::PermissionNotGiven), 4),
        (
            permit("none", Access::Read, "b", "a"),
            Some(E::InvalidAuthMgmt),
            4,
        ),
        (permit("none", Access::Read, "", ""), Some(E::InvalidAuthMgmt), 4),
        (
            permit("none", Access::Read, "a", "a"),
            Some(E::InvalidAuthMgmt),
            4,
        ),
        (permit("none", Access::Read, "a", "b"), Some(E::RoleNotFound), 4),
        (permit("r", Access::Read, "a", "b"), None, 5),
        (permit("r", Access::Read, "a", "b"), None, 6),
        (permit("r", Access::ReadWrite, "a", "\0"), None, 7),
        (permit("r", Access::Write, "\0", "\0"), None, 8),
        (forbid("none", "a", "b"), Some(E::RoleNotFound), 8),
        (forbid("r", "a", "c"), Some(E::PermissionNotGranted), 8),
        (forbid("r", "a", "b"), None, 9),
        (forbid("r", "a", "b"), Some(E::PermissionNotGranted), 9),
        (add_user("alice"), None, 10),
        (grant("alice", "r"), None, 11),
        (password("nobody"), Some(E::UserNotFound), 11),
        (password("alice"), None, 12),
        (C::Enable, None, 12),
        (C::Enable, None, 12),
        (authenticate("nobody", 12), Some(E::AuthFailed), 12),
        (authenticate("alice", 11), Some(E::AuthOldRevision), 12),
        (authenticate("alice", 12), None, 12),
        (delete_user("root"), Some(E::InvalidAuthMgmt), 12),
        (delete_role("root"), Some(E::InvalidAuthMgmt), 12),
        (revoke("root", "root"), Some(E::InvalidAuthMgmt), 12),
        (revoke("nobody", "r"), Some(E::UserNotFound), 12),
        (revoke("alice", "x"), Some(E::RoleNotGranted), 12),
        (delete_role("x"), Some(E::RoleNotFound), 12),
        (delete_role("r"), None, 13),
        (revoke("alice", "r"), Some(E::RoleNotGranted), 13),
        (delete_user("alice"), None, 14),
        (delete_user("alice"), Some(E::UserNotFound), 14),
        (C::Disable, None, 15),
        (C::Disable, None, 15),
        (delete_user("root"), None, 16),
        (C::Enable, Some(E::RootUserNotExist), 16),
    ];
    let mut store = store_of([]);
    for (n, (command, error, revision)) in table.into_iter().enumerate() {
        let answer = apply(&mut store, command.clone()).err();
        assert_eq!(
            (answer, store.auth().revision()),
            (error, revision),
            "{n}: {command:?}"
        );
    }
}

#[test]
fn granting_again_replaces_the_access_also_beside_other_ranges_of_the_key() {
    let mut store = store_of([
        C::RoleAdd { name: "r".into() },
        permit("r", Access::ReadWrite, "a", ""),
        permit("r", Access::ReadWrite, "a", "c"),
        permit("r", Access::Read, "a", "c"),
        permit("r", Access::Write, "A", ""),
    ]);
    let shown: Vec<(Bytes, Bytes, Access)> = store
        .auth()
        .role("r")
        .unwrap()
        .permissions
        .iter()
        .map(|held| (held.key.clone(), held.range_end.clone(), held.access))
        .collect();
    assert_eq!(
        shown,
        [
            (bytes("A"), bytes(""), Access::Write),
            (bytes("a"), bytes(""), Access::ReadWrite),
            (bytes("a"), bytes("c"), Access::Read),
        ]
    );
    apply(&mut store, forbid("r", "a", "")).unwrap();
    assert_eq!(store.auth().role("r").unwrap().permissions.len(), 2);
}

fn with_alice(permissions: &[(Access, &str, &str)]) -> Memory {
    let mut store = store_of([
        add_user("root"),
        grant("root", "root"),
        add_user("alice"),
        C::RoleAdd { name: "r".into() },
        grant("alice", "r"),
    ]);
    for (access, key, end) in permissions {
        apply(&mut store, permit("r", *access, key, end)).unwrap();
    }
    apply(&mut store, C::Enable).unwrap();
    store
}

fn put(key: &str, lease: i64, prev_kv: bool) -> Command {
    Command::Put(Put {
        key: bytes(key),
        value: bytes("v"),
        lease,
        prev_kv,
        ..Put::default()
    })
}

fn refusal(store: &mut Memory, by: &By, command: &Command) -> Option<OpError> {
    let before = store.revision();
    match store.apply_by(by, command).unwrap().reply {
        Reply::Refused(error) => {
            assert_eq!(store.revision(), before, "a refused command changes nothing");
            Some(error)
        }
        _ => None,
    }
}

#[test]
fn rights_are_checked_again_when_a_command_is_applied() {
    use OpError as E;
    let mut store = with_alice(&[(Access::Write, "a", "c"), (Access::Read, "a", "")]);
    let alice = by(&store, "alice");
    assert_eq!(refusal(&mut store, &alice, &put("a", 0, false)), None);
    assert_eq!(refusal(&mut store, &alice, &put("a", 0, true)), None);
    let denied = Some(E::PermissionDenied);
    assert_eq!(refusal(&mut store, &alice, &put("b", 0, true)), denied);
    assert_eq!(refusal(&mut store, &alice, &put("c", 0, false)), denied);
    let delete = |key: &str, end: &str, prev_kv| {
        Command::Delete(DeleteRange {
            keys: keys(key, end),
            prev_kv,
        })
    };
    assert_eq!(refusal(&mut store, &alice, &delete("a", "c", false)), None);
    assert_eq!(refusal(&mut store, &alice, &delete("a", "c", true)), denied);
    assert_eq!(refusal(&mut store, &alice, &delete("a", "d", false)), denied);
    assert_eq!(
        refusal(&mut store, &By::NOBODY, &put("a", 0, false)),
        Some(E::UserEmpty)
    );
    let mallory = by(&store, "mallory");
    assert_eq!(refusal(&mut store, &mallory, &put("a", 0, false)), denied);
    let administration = Command::Auth(add_user("x"));
    assert_eq!(refusal(&mut store, &alice, &administration), denied);
    assert_eq!(
        refusal(&mut store, &mallory, &administration),
        Some(E::UserNotFound)
    );
    // The proposal was on its way when somebody changed something, whatever it was.
    let (root, old_root) = (by(&store, "root"), by(&store, "root"));
    assert_eq!(refusal(&mut store, &root, &administration), None);
    let old = Some(E::AuthOldRevision);
    assert_eq!(refusal(&mut store, &alice, &put("a", 0, false)), old);
    assert_eq!(refusal(&mut store, &old_root, &Command::Auth(add_user("y"))), old);
    assert_eq!(refusal(&mut store, &By::System, &put("zzz", 0, false)), None);
    apply(&mut store, C::Disable).unwrap();
    assert_eq!(refusal(&mut store, &By::NOBODY, &put("zzz", 0, false)), None);
}

#[test]
fn a_lease_with_keys_of_others_is_closed() {
    let mut store = with_alice(&[(Access::ReadWrite, "a", "b")]);
    for id in [1, 2] {
        let granted = Command::LeaseGrant { id, ttl_s: 60 };
        store.apply(&granted).unwrap();
    }
    store.apply(&put("x", 1, false)).unwrap();
    let (alice, root) = (by(&store, "alice"), by(&store, "root"));
    let denied = Some(OpError::PermissionDenied);
    assert_eq!(refusal(&mut store, &alice, &put("a", 1, false)), denied);
    assert_eq!(refusal(&mut store, &alice, &put("a", 2, false)), None);
    let leases = store.leases().clone();
    assert_eq!(
        store.auth().may_see_leases(&alice, &leases),
        Err(OpError::PermissionDenied)
    );
    assert_eq!(store.auth().may_see_leases(&root, &leases), Ok(()));
    let end = |id| Command::LeaseRevoke { id };
    assert_eq!(refusal(&mut store, &alice, &end(1)), denied);
    assert_eq!(refusal(&mut store, &alice, &end(2)), None);
    assert_eq!(refusal(&mut store, &alice, &end(3)), Some(OpError::LeaseNotFound));
    assert_eq!(
        refusal(&mut store, &By::NOBODY, &end(1)),
        Some(OpError::UserEmpty)
    );
    assert_eq!(refusal(&mut store, &root, &end(1)), None);
}

#[test]
fn a_state_comes_back_from_what_is_stored() {
    let store = with_alice(&[(Access::Read, "a", "c"), (Access::Write, "b", "\0")]);
    let auth = store.auth();
    let again = chainfire_core::auth::Auth::restore(
        auth.enabled(),
        auth.revision(),
        auth.users().cloned(),
        auth.roles().cloned(),
    );
    assert_eq!(again, *auth);
}

/// Short keys that touch each other often.
fn some_key() -> impl Strategy<Value = String> {
    proptest::string::string_regex("[abc\\x00]{1,3}").unwrap()
}

fn some_range() -> impl Strategy<Value = (String, String)> {
    let end = prop_oneof![
        2 => Just(String::new()),
        1 => Just("\0".to_owned()),
        5 => some_key(),
    ];
    (some_key(), end)
}

/// The naive model: a range is covered when its start is, and every end of a permitted range within it is too (the
/// first key that is not covered can only be one of these).
fn naive(permitted: &[KeyRange], asked: &KeyRange) -> bool {
    let covered = |key: &[u8]| permitted.iter().any(|keys| keys.contains(key));
    let ends = permitted.iter().filter_map(|keys| match keys.bounds()?.1 {
        std::ops::Bound::Included(key) => Some([key, b"\0"].concat()),
        std::ops::Bound::Excluded(end) => Some(end.to_vec()),
        std::ops::Bound::Unbounded => None,
    });
    covered(asked.start()) && ends.filter(|end| asked.contains(end)).all(|end| covered(&end))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn merged_ranges_cover_what_the_naive_model_covers(
        permitted in prop::collection::vec(some_range(), 0..7),
        asked in some_range(),
    ) {
        let permitted: Vec<KeyRange> = permitted.iter().map(|(key, end)| keys(key, end)).collect();
        let asked = keys(&asked.0, &asked.1);
        let set = RangeSet::union(&permitted);
        prop_assert_eq!(set.covers(&asked), naive(&permitted, &asked));
    }

    /// No permission on single keys ever gives a range that holds another key.
    #[test]
    fn single_keys_never_make_a_range(
        permitted in prop::collection::vec(some_key(), 0..6),
        asked in some_range(),
        other in some_key(),
    ) {
        let singles: Vec<KeyRange> = permitted.iter().map(|key| keys(key, "")).collect();
        let asked = keys(&asked.0, &asked.1);
        let set = RangeSet::union(&singles);
        let holds_another = !permitted.contains(&other) && asked.contains(other.as_bytes());
        prop_assert!(!(holds_another && set.covers(&asked)));
    }
}
