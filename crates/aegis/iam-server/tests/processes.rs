//! Aegis as a process runs it, over a real store: Debian's etcd with the cluster's certificates stands in for
//! Chainfire, which speaks the same protocol. Two replicas, a server that embeds the decision, real TLS.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use chainfire_client::ClientConfig;
use hearth_service::config::{ServiceConfig, TlsConfig};
use hearth_service::pki::{Authority, LeafRequest};
use hearth_service::tasks::Tasks;
use hearth_service::tls::Identity;
use iam_client::wire::{
    BootstrapRequest, CheckRequest, NewBinding, NewProject, NewServiceAccount, NewUser, SessionRequest,
    UserChange,
};
use iam_client::{
    AegisClient, AuthnError, Authorizer, AuthorizerConfig, ClientError, Denied, DeviceWait, ResourceRef,
    Role, Session, certs,
};
use iam_server::{AegisConfig, Config};
use tempfile::TempDir;

const DOMAIN: &str = "hearth.test";
const TOKEN: &str = "bootstrap-token-0123456789abcdef";
const PASSWORD: &str = "correct horse battery";
/// Every wait ends by then, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

fn free_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], test_ports::keep_port().unwrap()))
}

/// A folder with the cluster's certificates, and the store.
struct Cluster {
    dir: TempDir,
    authority: Authority,
    store: SocketAddr,
    etcd: Child,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.etcd.kill();
        let _ = self.etcd.wait();
    }
}

fn issue(authority: &Authority, dir: &Path, path: &str, lifetime: Duration) -> TlsConfig {
    let request = LeafRequest {
        trust_domain: DOMAIN.to_owned(),
        path: path.to_owned(),
        dns: vec!["localhost".to_owned()],
        ips: vec![std::net::Ipv4Addr::LOCALHOST.into()],
        lifetime,
    };
    let issued = authority.issue(&request, SystemTime::now()).unwrap();
    let file = |suffix: &str| dir.join(format!("{}.{suffix}", path.replace('/', "-")));
    std::fs::write(file("crt"), issued.cert_pem).unwrap();
    std::fs::write(file("key"), issued.key_pem).unwrap();
    TlsConfig {
        ca: dir.join("ca.crt"),
        cert: file("crt"),
        key: file("key"),
    }
}

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn start_etcd(dir: &Path, tls: &TlsConfig, address: SocketAddr, peer: SocketAddr) -> Child {
    let url = format!("https://{address}");
    let peer = format!("http://{peer}");
    let file = |path: &PathBuf| path.display().to_string();
    Command::new("etcd")
        .args([
            "--name",
            "one",
            "--logger",
            "zap",
            "--log-level",
            "error",
            "--data-dir",
        ])
        .arg(dir.join("etcd"))
        .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args(["--initial-cluster", &format!("one={peer}")])
        .args(["--cert-file", &file(&tls.cert), "--key-file", &file(&tls.key)])
        .args(["--client-cert-auth", "--trusted-ca-file", &file(&tls.ca)])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("these tests need Debian's package etcd-server (`./test` installs it)")
}

impl Cluster {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(DOMAIN, SystemTime::now()).unwrap();
        std::fs::write(dir.path().join("ca.crt"), authority.cert_pem()).unwrap();
        std::fs::write(dir.path().join("ca.key"), authority.key_pem()).unwrap();
        std::fs::write(dir.path().join("bootstrap.token"), format!("{TOKEN}\n")).unwrap();
        std::fs::write(dir.path().join("seal.key"), [5; 32]).unwrap();
        let tls = issue(&authority, dir.path(), "service/chainfire", DAY);
        let (store, peer) = (free_port(), free_port());
        let etcd = start_etcd(dir.path(), &tls, store, peer);
        Self {
            dir,
            authority,
            store,
            etcd,
        }
    }

    fn identity(&self, path: &str) -> Identity {
        Identity::load(&issue(&self.authority, self.dir.path(), path, DAY)).unwrap()
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    fn config(&self, name: &str, listen: SocketAddr, public_url: &str) -> Config {
        let path = |file: &str| self.dir.path().join(file);
        Config {
            service: ServiceConfig {
                name: name.to_owned(),
                data_dir: path(name),
                log_level: "info".to_owned(),
                shutdown_grace_s: 5,
                renew_certificate_at: None,
            },
            tls: issue(&self.authority, self.dir.path(), "service/aegis", DAY),
            chainfire_client: ClientConfig::new([self.store.to_string()]),
            aegis: AegisConfig {
                listen,
                public_url: public_url.to_owned(),
                domain: DOMAIN.to_owned(),
                ca_key: path("ca.key"),
                bootstrap_token_file: path("bootstrap.token"),
                seal_key_file: path("seal.key"),
                access_token_lifetime_s: 600,
            },
        }
    }

    /// A server that embeds the decision, as PlasmaVMC and FlashDNS do.
    async fn other_server(&self, issuer: &str, tasks: &Tasks) -> Authorizer {
        let identity = self.identity("service/plasmavmc");
        let client =
            chainfire_client::Client::connect(&ClientConfig::new([self.store.to_string()]), Some(identity))
                .unwrap();
        Authorizer::start(client, AuthorizerConfig::new(issuer, DOMAIN), tasks)
            .await
            .unwrap()
    }
}

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "{what} did not happen within {PATIENCE:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn boot(username: &str) -> BootstrapRequest {
    BootstrapRequest {
        token: TOKEN.to_owned(),
        username: username.parse().unwrap(),
        password: PASSWORD.to_owned(),
    }
}

async fn signed_in(client: &AegisClient, username: &str) -> AegisClient {
    let request = SessionRequest {
        username: username.to_owned(),
        password: PASSWORD.to_owned(),
    };
    let tokens = client.sign_in(&request).await.unwrap();
    client.with_token(&tokens.access_token)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_replicas_one_world_and_a_server_that_watches_it() {
    let cluster = Cluster::start();
    let tasks = Tasks::new();
    let (one, two) = (free_port(), free_port());
    let issuer = format!("https://{one}");
    // Both start at the same time on an empty store: one makes the world, the other finds it.
    let (first, second) = tokio::join!(
        iam_server::run(cluster.config("aegis-1", one, &issuer), tasks.clone()),
        iam_server::run(cluster.config("aegis-2", two, &issuer), tasks.clone())
    );
    first.unwrap();
    second.unwrap();
    let authorizer = cluster.other_server(&issuer, &tasks).await;
    let here = AegisClient::new(&issuer, &cluster.ca()).unwrap();
    let there = AegisClient::new(&format!("https://{two}"), &cluster.ca()).unwrap();

    // The bootstrap, raced over both replicas.
    let (boot_one, boot_two) = (boot("root"), boot("toor"));
    let (a, b) = tokio::join!(here.bootstrap(&boot_one), there.bootstrap(&boot_two));
    let admin = match (a, b) {
        (Ok(_), Err(ClientError::Api { .. })) => "root",
        (Err(ClientError::Api { .. }), Ok(_)) => "toor",
        other => panic!("exactly one wins: {other:?}"),
    };
    // The other replica knows the administrator as soon as its watch does.
    let request = SessionRequest {
        username: admin.to_owned(),
        password: PASSWORD.to_owned(),
    };
    eventually("the sign-in at the second replica", async || {
        there.sign_in(&request).await.ok()
    })
    .await;
    let root = signed_in(&here, admin).await;
    rights_reach_the_server(&root, &there, &authorizer).await;
    service_accounts_and_groups(&root).await;
    device_flow(&cluster, &here, &issuer, admin).await;
    trust_is_checked(&cluster, &issuer).await;
    certificates_renew(&cluster, &issuer).await;
    secrets_are_sealed(&cluster).await;
    staleness_is_told(cluster, &authorizer).await;
    tasks.stop("the test is over");
    assert!(tasks.finished(PATIENCE).await);
}

/// What the store holds of secrets is ciphertext, hashes included: whoever reads it can guess at nothing.
async fn secrets_are_sealed(cluster: &Cluster) {
    let identity = cluster.identity("operator/root");
    let endpoints = ClientConfig::new([cluster.store.to_string()]);
    let client = chainfire_client::Client::connect(&endpoints, Some(identity)).unwrap();
    let listing = client.list("/aegis/v1/secret/").await.unwrap();
    assert!(listing.kvs.len() > 3, "{} secrets", listing.kvs.len());
    for kv in listing.kvs {
        let readable = serde_json::from_slice::<serde_json::Value>(&kv.value).is_ok();
        let hash = kv.value.windows(6).any(|window| window == b"argon2");
        assert!(!readable && !hash, "{} is not sealed", kv.key_text());
    }
}

async fn rights_reach_the_server(root: &AegisClient, there: &AegisClient, authorizer: &Authorizer) {
    let project = root
        .create_project(&NewProject {
            name: "web".parse().unwrap(),
            organisation: None,
        })
        .await
        .unwrap();
    root.create_user(&NewUser {
        name: "otto".parse().unwrap(),
        password: PASSWORD.to_owned(),
    })
    .await
    .unwrap();
    let grant = NewBinding {
        subject: "user/otto".to_owned(),
        role: Role::Operator,
        on: "project/web".to_owned(),
    };
    let binding = root.create_binding(&grant).await.unwrap();
    let request = SessionRequest {
        username: "otto".to_owned(),
        password: PASSWORD.to_owned(),
    };
    let tokens = eventually("the new user at the second replica", async || {
        there.sign_in(&request).await.ok()
    })
    .await;
    let token = tokens.access_token;
    let actor = eventually("the new user at the server", async || {
        authorizer.authenticate(&token, SystemTime::now()).ok()
    })
    .await;
    assert_eq!(actor.name(), "otto");
    let vm = ResourceRef::Child {
        project: project.id,
        kind: "vm",
        id: "one".to_owned(),
    };
    eventually("the grant", async || {
        authorizer.check(&actor, "vmc.vm.create", &vm).ok()
    })
    .await;
    // Taken away: visible through the watch, well within the five seconds that a partition may take.
    root.delete_binding(&binding.id.to_string()).await.unwrap();
    let begun = Instant::now();
    eventually("the revocation", async || {
        authorizer.check(&actor, "vmc.vm.create", &vm).err()
    })
    .await;
    println!("a revocation was seen after {:?}", begun.elapsed());
    assert_eq!(
        authorizer.check(&actor, "vmc.vm.create", &vm),
        Err(Denied::Invisible)
    );
    root.change_user("otto", &UserChange { disabled: true })
        .await
        .unwrap();
    eventually("the disabling", async || {
        (authorizer.authenticate(&token, SystemTime::now()) == Err(AuthnError::Revoked)).then_some(())
    })
    .await;
    let refused = there.refresh(&tokens.refresh_token.unwrap()).await.unwrap_err();
    assert!(matches!(refused, ClientError::OAuth { .. }), "{refused:?}");
    // A revision from the store that nobody's policy changed at is reached too.
    let ahead = authorizer.revision();
    assert_eq!(authorizer.at_least(ahead, PATIENCE).await, Ok(()));
    let check = CheckRequest {
        subject: None,
        action: "iam.user.create".to_owned(),
        on: "root".to_owned(),
    };
    let answer = root.check(&check).await.unwrap();
    assert!(answer.allowed);
    assert_eq!(authorizer.at_least(answer.revision, PATIENCE).await, Ok(()));
}

async fn service_accounts_and_groups(root: &AegisClient) {
    root.create_service_account(
        "web",
        &NewServiceAccount {
            name: "robot".parse().unwrap(),
        },
    )
    .await
    .unwrap();
    let secret = root.create_secret("web", "robot").await.unwrap();
    let tokens = root
        .client_credentials(&secret.client_id, &secret.client_secret)
        .await
        .unwrap();
    let me = root.with_token(&tokens.access_token).whoami().await.unwrap();
    assert_eq!(me.subject, "service-account/web/robot");
    assert_eq!(root.service_accounts("web").await.unwrap().len(), 1);
    root.delete_service_account("web", "robot").await.unwrap();
    assert!(root.service_accounts("web").await.unwrap().is_empty());
    assert_eq!(root.roles().await.unwrap().len(), 3);
    let trail = root.audit(2).await.unwrap();
    assert_eq!(trail.items[0].action, "iam.serviceaccount.delete");
    assert!(trail.next_page.is_some());
}

/// The command line on one machine, the browser on another replica's doorstep.
async fn device_flow(cluster: &Cluster, client: &AegisClient, issuer: &str, admin: &str) {
    let begun = client.device_begin().await.unwrap();
    let interval = Duration::from_secs(begun.interval);
    let pending = client.device_poll(&begun.device_code, interval).await.unwrap();
    assert!(
        matches!(pending, DeviceWait::Pending(pause) if pause == interval),
        "{pending:?}"
    );
    let tls = hearth_service::tls::anonymous_client_config(&cluster.ca()).unwrap();
    let browser = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .build()
        .unwrap();
    let page = browser
        .get(&begun.verification_uri_complete)
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(page.contains(&begun.user_code), "{page}");
    let form = [
        ("user_code", begun.user_code.as_str()),
        ("username", admin),
        ("password", PASSWORD),
        ("decision", "approve"),
    ];
    let decided = browser
        .post(&begun.verification_uri)
        .header("origin", issuer)
        .form(&form)
        .send()
        .await
        .unwrap();
    assert_eq!(decided.status(), 200);
    tokio::time::sleep(interval).await;
    let DeviceWait::Done(tokens) = client.device_poll(&begun.device_code, interval).await.unwrap() else {
        panic!("approved and still pending");
    };
    let session = Session::new(tokens, SystemTime::now());
    assert!(
        !session.needs_refresh(SystemTime::now()) && session.needs_refresh(SystemTime::now() + 600 * SECOND)
    );
    let next = client.refresh(&session.refresh_token.unwrap()).await.unwrap();
    let me = client.with_token(&next.access_token).whoami().await.unwrap();
    assert_eq!(me.subject, format!("user/{admin}"));
    client.revoke(&next.refresh_token.clone().unwrap()).await.unwrap();
    let ended = client.refresh(&next.refresh_token.unwrap()).await.unwrap_err();
    assert!(
        matches!(&ended, ClientError::OAuth { error, .. } if error == "invalid_grant"),
        "{ended:?}"
    );
}

/// Neither side talks to somebody of another cluster.
async fn trust_is_checked(cluster: &Cluster, issuer: &str) {
    let foreign_dir = tempfile::tempdir().unwrap();
    let foreign = Authority::create(DOMAIN, SystemTime::now()).unwrap();
    std::fs::write(foreign_dir.path().join("ca.crt"), foreign.cert_pem()).unwrap();
    let client = AegisClient::new(issuer, &foreign_dir.path().join("ca.crt")).unwrap();
    assert!(
        matches!(client.roles().await, Err(ClientError::Unreachable { .. })),
        "a server of another CA"
    );
    // A certificate of another CA with the same words in it, shown to our server.
    let mut files = issue(&foreign, foreign_dir.path(), "service/aegis", DAY);
    files.ca = cluster.ca();
    let intruder = AegisClient::with_identity(issuer, &Identity::load(&files).unwrap()).unwrap();
    assert!(
        matches!(intruder.whoami().await, Err(ClientError::Unreachable { .. })),
        "a client of another CA"
    );
    // One of ours that has expired.
    let mut files = issue(
        &cluster.authority,
        foreign_dir.path(),
        "service/late",
        Duration::ZERO,
    );
    files.ca = cluster.ca();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let late = AegisClient::with_identity(issuer, &Identity::load(&files).unwrap()).unwrap();
    assert!(
        matches!(late.whoami().await, Err(ClientError::Unreachable { .. })),
        "an expired certificate"
    );
}

async fn certificates_renew(cluster: &Cluster, issuer: &str) {
    // Nearly at its end: made to live ten seconds (and backdated five minutes for slow clocks).
    let files = issue(
        &cluster.authority,
        cluster.dir.path(),
        "service/flashdns",
        Duration::from_secs(600),
    );
    let identity = Identity::load(&files).unwrap();
    let before = std::fs::read_to_string(&files.cert).unwrap();
    certs::renew(&identity, issuer).await.unwrap();
    assert_ne!(std::fs::read_to_string(&files.cert).unwrap(), before);
    // The new pair belongs together, says the same identity, and opens connections.
    let renewed = Identity::load(&files).unwrap();
    assert_eq!(renewed.own().path, "service/flashdns");
    assert!(
        renewed.validity().1 > identity.validity().1 || renewed.validity().1 > SystemTime::now() + 20 * DAY
    );
    let me = AegisClient::with_identity(issuer, &renewed)
        .unwrap()
        .whoami()
        .await
        .unwrap();
    assert_eq!(me.subject, "workload/service/flashdns");
    let names: Vec<_> = std::fs::read_dir(cluster.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(
        !names.iter().any(|name| name.to_string_lossy().ends_with(".next")),
        "{names:?}"
    );
    // Without a certificate there is none.
    let anonymous = AegisClient::new(issuer, &cluster.ca())
        .unwrap()
        .whoami()
        .await
        .unwrap_err();
    assert!(
        matches!(
            anonymous,
            ClientError::Api {
                kind: hearth_types::ErrorKind::Unauthenticated,
                ..
            }
        ),
        "{anonymous:?}"
    );
}

/// The store is gone: changes are refused first, with an answer of its own.
async fn staleness_is_told(mut cluster: Cluster, authorizer: &Authorizer) {
    let root = hearth_service::tls::PeerIdentity {
        trust_domain: DOMAIN.to_owned(),
        path: "operator/root".to_owned(),
    };
    let actor = authorizer.authenticate_peer(&root).unwrap();
    let ask = |action| authorizer.check(&actor, action, &ResourceRef::Root).map(|_| ());
    eventually("a fresh snapshot", async || ask("vmc.image.import").ok()).await;
    cluster.etcd.kill().unwrap();
    cluster.etcd.wait().unwrap();
    let begun = Instant::now();
    eventually("stale", async || ask("vmc.image.import").err()).await;
    println!("changes were refused after {:?}", begun.elapsed());
    assert_eq!(ask("vmc.image.import"), Err(Denied::Stale));
    assert_eq!(ask("vmc.node.list"), Ok(()), "reads go on");
    assert_eq!(
        authorizer.at_least(i64::MAX, Duration::from_millis(100)).await,
        Err(Denied::Stale)
    );
    // It comes back on the same data: fresh again without a restart of anything.
    let tls = TlsConfig {
        ca: cluster.ca(),
        cert: cluster.dir.path().join("service-chainfire.crt"),
        key: cluster.dir.path().join("service-chainfire.key"),
    };
    let peer = free_port();
    cluster.etcd = start_etcd(cluster.dir.path(), &tls, cluster.store, peer);
    eventually("fresh again", async || ask("vmc.image.import").ok()).await;
}
