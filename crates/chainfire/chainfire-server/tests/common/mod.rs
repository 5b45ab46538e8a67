//! A cluster of member processes on loopback, with its own certificate authority.
//!
//! A member's process is this test binary itself, started again with [`MEMBER_CONFIG`] set: so it is always built from
//! the code under test.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

pub mod disk;

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};

use chainfire_client::{Client, ClientConfig};
use hearth_service::{
    config::TlsConfig,
    pki::{Authority, LEAF_LIFETIME, LeafRequest},
    tls::Identity,
};
use tokio::time::{Instant, sleep};

/// Longest wait for anything in a test.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Member {
    pub name: String,
    pub client: String,
    pub peer: String,
    pub dir: PathBuf,
    /// A bug that the member is to have.
    bug: Option<String>,
    /// More of its environment, from its next start on.
    pub environment: Vec<(String, String)>,
    child: Option<Child>,
}

impl Member {
    /// SIGKILL, as a power cut for the process.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = self.child.as_ref().unwrap().id();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), signal).unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Whether its process has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    pub fn start(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .unwrap();
        let child = program(&self.dir.join("conf.toml"))
            .envs(self.bug.as_ref().map(|bug| (MEMBER_BUG, bug)))
            .envs(self.environment.iter().cloned())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Runs it to its end, for starts that must fail; exit code and what it said.
    pub fn run_to_end(&self) -> (Option<i32>, String) {
        let out = program(&self.dir.join("conf.toml")).output().unwrap();
        let text = [out.stdout, out.stderr].concat();
        (out.status.code(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Waits until its process has ended by itself; what it said.
    pub async fn ended(&mut self) -> String {
        let name = self.name.clone();
        eventually(&format!("{name} ends"), async || {
            self.child
                .as_mut()
                .is_none_or(|child| child.try_wait().unwrap().is_some())
        })
        .await;
        self.child = None;
        self.log()
    }

    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub struct Cluster {
    pub members: Vec<Member>,
    authority: Authority,
    dir: tempfile::TempDir,
}

impl Cluster {
    /// Starts `count` members and waits until they serve.
    pub async fn start(count: usize) -> Cluster {
        Cluster::start_with(count, "").await
    }

    /// The same, with more lines in the `[chainfire]` table.
    pub async fn start_with(count: usize, more: &str) -> Cluster {
        Cluster::start_in(tempfile::tempdir().unwrap(), count, more, None).await
    }

    /// The same, with the data in a folder and members with a planted bug.
    pub async fn start_in(dir: tempfile::TempDir, count: usize, more: &str, bug: Option<&str>) -> Cluster {
        let authority = Authority::create("hearth.internal", SystemTime::now()).unwrap();
        let mut cluster = Cluster {
            members: Vec::new(),
            authority,
            dir,
        };
        let ports = free_ports(2 * count);
        for (n, pair) in ports.chunks(2).enumerate() {
            let name = format!("m{n}");
            let member_dir = cluster.dir.path().join(&name);
            std::fs::create_dir(&member_dir).unwrap();
            cluster.members.push(Member {
                name,
                client: format!("127.0.0.1:{}", pair[0]),
                peer: format!("127.0.0.1:{}", pair[1]),
                dir: member_dir,
                bug: bug.map(str::to_owned),
                environment: Vec::new(),
                child: None,
            });
        }
        let tls = cluster.leaf("service/chainfire");
        for n in 0..count {
            let text = cluster.config(n, &tls, more);
            std::fs::write(cluster.members[n].dir.join("conf.toml"), text).unwrap();
            cluster.members[n].start();
        }
        cluster.ready().await;
        cluster
    }

    /// A member that is to join later: its folder and ports, not started.
    pub fn spare(&mut self) -> usize {
        let n = self.members.len();
        let name = format!("m{n}");
        let dir = self.dir.path().join(&name);
        std::fs::create_dir(&dir).unwrap();
        let ports = free_ports(2);
        self.members.push(Member {
            name,
            client: format!("127.0.0.1:{}", ports[0]),
            peer: format!("127.0.0.1:{}", ports[1]),
            dir,
            bug: None,
            environment: Vec::new(),
            child: None,
        });
        n
    }

    /// Writes the configuration of a member that joins those that run.
    pub fn configure_joining(&self, own: usize, more: &str) {
        let tls = self.leaf("service/chainfire");
        let more = format!("initial_cluster_state = \"existing\"\n{more}");
        let listed = |n: &usize| *n == own || self.members[*n].runs();
        let text = self.config_of(own, &tls, &more, (0..self.members.len()).filter(listed));
        std::fs::write(self.members[own].dir.join("conf.toml"), text).unwrap();
    }

    fn config(&self, own: usize, tls: &TlsConfig, more: &str) -> String {
        self.config_of(own, tls, more, 0..self.members.len())
    }

    fn config_of(
        &self,
        own: usize,
        tls: &TlsConfig,
        more: &str,
        listed: impl Iterator<Item = usize>,
    ) -> String {
        let own = &self.members[own];
        let mut text = format!(
            "[service]\nname = \"{}\"\ndata_dir = \"{}\"\nlog_level = \"info\"\nshutdown_grace_s = 5\n\
             [tls]\nca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n\
             [chainfire]\nmember = \"{}\"\ncluster = \"test\"\nlisten_client = \"{}\"\nlisten_peer = \"{}\"\n\
             plaintext_loopback = true\n{more}\n",
            own.name,
            own.dir.join("data").display(),
            tls.ca.display(),
            tls.cert.display(),
            tls.key.display(),
            own.name,
            own.client,
            own.peer
        );
        for member in listed.map(|n| &self.members[n]) {
            text += &format!(
                "[[chainfire.members]]\nname = \"{}\"\nclient = \"{}\"\npeer = \"{}\"\n",
                member.name, member.client, member.peer
            );
        }
        text
    }

    fn leaf(&self, path: &str) -> TlsConfig {
        let request = LeafRequest {
            trust_domain: "hearth.internal".into(),
            path: path.into(),
            dns: vec!["localhost".into()],
            ips: vec![Ipv4Addr::LOCALHOST.into()],
            lifetime: LEAF_LIFETIME,
        };
        let issued = self.authority.issue(&request, SystemTime::now()).unwrap();
        let file = |suffix: &str, text: &str| -> PathBuf {
            let path: &Path = self.dir.path();
            let path = path.join(format!("{}.{suffix}", request.path.replace('/', "-")));
            std::fs::write(&path, text).unwrap();
            path
        };
        TlsConfig {
            ca: file("ca", self.authority.cert_pem()),
            cert: file("crt", &issued.cert_pem),
            key: file("key", &issued.key_pem),
        }
    }

    /// Files of a client certificate with a common name and no identity.
    pub fn named(&self, common_name: &str) -> TlsConfig {
        let issued = self
            .authority
            .issue_named(common_name, LEAF_LIFETIME, SystemTime::now())
            .unwrap();
        let file = |suffix: &str, text: &str| -> PathBuf {
            let path = self.dir.path().join(format!("named-{common_name}.{suffix}"));
            std::fs::write(&path, text).unwrap();
            path
        };
        TlsConfig {
            ca: file("ca", self.authority.cert_pem()),
            cert: file("crt", &issued.cert_pem),
            key: file("key", &issued.key_pem),
        }
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| member.client.clone()).collect()
    }

    /// A client with an identity (`operator/root`, `service/aegis`, ...).
    pub fn client(&self, path: &str) -> Client {
        let identity = Identity::load(&self.leaf(path)).unwrap();
        Client::connect(&ClientConfig::new(self.endpoints()), Some(identity)).unwrap()
    }

    /// A client with an identity that talks to one member only.
    pub fn client_of(&self, member: usize, path: &str) -> Client {
        let identity = Identity::load(&self.leaf(path)).unwrap();
        Client::connect(
            &ClientConfig::new([self.members[member].client.clone()]),
            Some(identity),
        )
        .unwrap()
    }

    /// A client without a certificate, as etcdctl is.
    pub fn plain(&self) -> Client {
        Client::connect(&ClientConfig::new(self.endpoints()), None).unwrap()
    }

    /// Waits until every running member answers a linearizable read.
    pub async fn ready(&self) {
        for member in self.members.iter().filter(|member| member.child.is_some()) {
            let client = Client::connect(&ClientConfig::new([member.client.clone()]), None).unwrap();
            eventually(&format!("{} serves", member.name), async || {
                client.get("ready").await.is_ok()
            })
            .await;
        }
    }

    /// Index of the leader.
    pub async fn leader(&self) -> usize {
        let client = self.plain();
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            for (n, (_, status)) in client.status().await.into_iter().enumerate() {
                if status.is_ok_and(|status| status.leader == status.id) {
                    return n;
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
        panic!("no leader in {PATIENCE:?}\n{}", self.logs());
    }

    pub fn logs(&self) -> String {
        self.members
            .iter()
            .map(|member| format!("--- {}\n{}", member.name, member.log()))
            .collect()
    }

    /// etcdctl against all members, over TLS.
    pub fn etcdctl_command(&self) -> Command {
        let endpoints: Vec<String> = self
            .members
            .iter()
            .map(|member| format!("https://{}", member.client))
            .collect();
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", endpoints.join(",")));
        command
    }

    /// Runs etcdctl against all members over TLS.
    pub fn etcdctl_tls(&self, args: &[&str]) -> std::process::Output {
        self.etcdctl_command().args(args).output().unwrap()
    }

    /// Runs etcdctl against all members; `None` when it is not installed.
    pub fn etcdctl(&self, args: &[&str]) -> Option<std::process::Output> {
        Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.endpoints().join(",")))
            .args(args)
            .output()
            .ok()
    }
}

/// Tells a started copy of this binary which member it is.
const MEMBER_CONFIG: &str = "CHAINFIRE_TEST_MEMBER_CONFIG";

/// Tells it which bug to have.
const MEMBER_BUG: &str = "CHAINFIRE_TEST_MEMBER_BUG";

/// The command that runs this binary as a member.
fn program(config: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "common::member_process", "--nocapture"])
        .env(MEMBER_CONFIG, config);
    command
}

/// Not a test: the body of a member's process. Does nothing when the tests run.
#[test]
fn member_process() {
    let Some(path) = std::env::var_os(MEMBER_CONFIG) else {
        return;
    };
    if let Ok(bug) = std::env::var(MEMBER_BUG) {
        assert!(chainfire_core::planted::plant(&bug), "no such bug: {bug}");
    }
    if let Err(error) = serve(Path::new(&path)) {
        eprintln!("{}", hearth_service::tasks::chain(error.as_ref()));
        std::process::exit(1);
    }
}

fn serve(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let config: chainfire_server::Config = hearth_service::config::load(path)?;
    hearth_service::telemetry::init(&config.service);
    let grace = Duration::from_secs(config.service.shutdown_grace_s);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let tasks = hearth_service::tasks::Tasks::new();
        let fault = path.with_file_name(disk::FAULT);
        let disk = std::sync::Arc::new(disk::FaultyDisk { fault });
        chainfire_server::run_on(config, tasks.clone(), disk).await?;
        Ok(tasks.run_until_signal(grace).await?)
    })
}

/// Runs a command with text on its standard input.
pub fn fed(mut command: Command, input: &str) -> std::process::Output {
    use std::io::Write;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Ports that were free a moment ago, all different.
pub fn free_ports(count: usize) -> Vec<u16> {
    (0..count).map(|_| test_ports::keep_port().unwrap()).collect()
}

/// Waits until `check` holds.
pub async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if check().await {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("not within {PATIENCE:?}: {what}");
}
