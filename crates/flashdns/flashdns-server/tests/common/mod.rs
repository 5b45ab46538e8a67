//! A FlashDNS server in this process, fed by Debian's etcd over mutual TLS, asked by `dig`.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "each test file uses a part of the helpers; in tests a failure is a panic"
)]

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use chainfire_client::{Client, ClientConfig};
use flashdns_server::{Config, Server};
use hearth_service::{
    config::TlsConfig,
    pki::{Authority, LeafRequest},
    tasks::{Kind, Tasks},
    tls::Identity,
};
use iam_client::Authorizer;
use plasmavmc_client::names::PublishedName;
use tempfile::TempDir;

/// Longest wait for anything that must come.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Says that a test is skipped, in the words that `./test` counts.
pub fn skip(why: &str) {
    println!("SKIPPED: {why}");
}

/// Looks without running it: `etcd -v` starts a server.
pub fn installed(program: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin".into()];
    std::env::split_paths(&folders)
        .chain(more)
        .any(|folder| folder.join(program).is_file())
}

pub fn free_port() -> u16 {
    test_ports::keep_port().unwrap()
}

/// Certificates of one cluster.
pub struct Pki {
    pub folder: TempDir,
    authority: Authority,
}

impl Pki {
    pub fn new() -> Self {
        let authority = Authority::create("hearth.internal", SystemTime::now()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.crt"), authority.cert_pem()).unwrap();
        Self { folder, authority }
    }

    pub fn issue(&self, path: &str) -> TlsConfig {
        let request = LeafRequest {
            trust_domain: "hearth.internal".to_owned(),
            path: path.to_owned(),
            dns: vec!["localhost".to_owned()],
            ips: vec![IpAddr::from([127, 0, 0, 1])],
            lifetime: Duration::from_secs(3600),
        };
        let issued = self.authority.issue(&request, SystemTime::now()).unwrap();
        let file = |end: &str| {
            self.folder
                .path()
                .join(format!("{}.{end}", path.replace('/', "-")))
        };
        std::fs::write(file("crt"), issued.cert_pem).unwrap();
        std::fs::write(file("key"), issued.key_pem).unwrap();
        TlsConfig {
            ca: self.folder.path().join("ca.crt"),
            cert: file("crt"),
            key: file("key"),
        }
    }
}

/// One etcd member, with TLS and client certificates, that dies with the test.
pub struct Etcd {
    child: Option<Child>,
    folder: TempDir,
    tls: TlsConfig,
    pub port: u16,
    peer: u16,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Etcd {
    pub fn start(pki: &Pki) -> Self {
        let mut etcd = Self {
            child: None,
            folder: tempfile::tempdir().unwrap(),
            tls: pki.issue("service/chainfire"),
            port: free_port(),
            peer: free_port(),
        };
        etcd.spawn();
        etcd
    }

    pub fn spawn(&mut self) {
        let client = format!("https://127.0.0.1:{}", self.port);
        let peer = format!("http://127.0.0.1:{}", self.peer);
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let child = Command::new("etcd")
            .args([
                "--data-dir",
                &path(self.folder.path()),
                "--log-level",
                "error",
                "--name",
                "one",
            ])
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &format!("one={peer}")])
            .args([
                "--cert-file",
                &path(&self.tls.cert),
                "--key-file",
                &path(&self.tls.key),
            ])
            .args(["--trusted-ca-file", &path(&self.tls.ca), "--client-cert-auth"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Everything for a test; servers are started by [`Bed::serve`].
pub struct Bed {
    pub pki: Pki,
    pub etcd: Etcd,
    pub store: Client,
    pub data: TempDir,
}

/// A running FlashDNS.
pub struct Running {
    pub dns: SocketAddr,
    pub api: SocketAddr,
    tasks: Tasks,
}

impl Running {
    pub async fn stop(self) {
        self.tasks.stop("test");
        assert!(self.tasks.finished(PATIENCE).await, "tasks were left over");
    }

    pub fn dig(&self, words: &[&str]) -> Answer {
        dig(self.dns, words)
    }

    /// Value of a metric's line that begins with `name`; 0 when there is none.
    pub async fn metric(&self, pki: &Pki, name: &str) -> u64 {
        let text = self.get(pki, "/metrics").await;
        let line = text.lines().find(|line| line.starts_with(name));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    pub async fn get(&self, pki: &Pki, path: &str) -> String {
        self.call(pki, "GET", path, None, None).await.1
    }

    /// One request to the API: status and body.
    pub async fn call(
        &self,
        pki: &Pki,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: Option<serde_json::Value>,
    ) -> (u16, String) {
        let body = body.map(|body| ("application/json", body.to_string().into_bytes()));
        self.send(pki, method, path, token, body).await
    }

    /// Imports a zone file: status and body.
    pub async fn import(
        &self,
        pki: &Pki,
        zone: &str,
        token: Option<&str>,
        file: impl Into<Vec<u8>>,
    ) -> (u16, String) {
        let path = format!("/v1/zones/{zone}/file");
        self.send(pki, "PUT", &path, token, Some(("text/dns", file.into())))
            .await
    }

    /// One request with any body: its media type and its bytes.
    pub async fn send(
        &self,
        pki: &Pki,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: Option<(&str, Vec<u8>)>,
    ) -> (u16, String) {
        let tls = hearth_service::tls::anonymous_client_config(&pki.folder.path().join("ca.crt")).unwrap();
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .build()
            .unwrap();
        let url = format!("https://127.0.0.1:{}{path}", self.api.port());
        let mut request = client.request(method.parse().unwrap(), url);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some((kind, body)) = body {
            request = request.header("content-type", kind).body(body);
        }
        let reply = request.send().await.unwrap();
        (reply.status().as_u16(), reply.text().await.unwrap())
    }
}

impl Bed {
    /// `None`, with a visible line, when a program is missing.
    pub fn new() -> Option<Self> {
        for (program, package) in [("etcd", "etcd-server"), ("dig", "bind9-dnsutils")] {
            if !installed(program) {
                skip(&format!("{program} is not installed (apt install {package})"));
                return None;
            }
        }
        let pki = Pki::new();
        let etcd = Etcd::start(&pki);
        let identity = Identity::load(&pki.issue("operator/root")).unwrap();
        let endpoint = ClientConfig::new([format!("127.0.0.1:{}", etcd.port)]);
        let store = Client::connect(&endpoint, Some(identity)).unwrap();
        Some(Self {
            pki,
            etcd,
            store,
            data: tempfile::tempdir().unwrap(),
        })
    }

    pub async fn ready(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.store.get("ready").await.is_err() {
            assert!(Instant::now() < deadline, "etcd did not start");
        }
    }

    pub fn config(&self, data: PathBuf) -> Config {
        self.config_via(data, self.etcd.port)
    }

    /// With Chainfire at another port, such as a [`Proxy`]'s.
    pub fn config_via(&self, data: PathBuf, port: u16) -> Config {
        let tls = self.pki.issue("service/flashdns");
        let text = format!(
            "[service]\nname = \"flashdns\"\ndata_dir = {data:?}\n\
             [tls]\nca = {:?}\ncert = {:?}\nkey = {:?}\n\
             [chainfire_client]\nendpoints = [\"127.0.0.1:{}\"]\n\
             [flashdns]\nlisten_dns = [\"127.0.0.1:0\"]\nlisten_api = \"127.0.0.1:0\"\n\
             domain = \"hearth.internal\"\nreverse_networks = [\"10.77.0.0/16\", \"fd00:77::/32\"]\n\
             aegis_url = \"https://127.0.0.1:8443\"\n",
            tls.ca, tls.cert, tls.key, port
        );
        toml::from_str(&text).unwrap()
    }

    pub async fn serve(&self) -> Running {
        self.serve_with(self.data.path().to_owned(), None).await
    }

    pub async fn serve_from(&self, data: PathBuf) -> Running {
        self.serve_with(data, None).await
    }

    pub async fn serve_with(&self, data: PathBuf, authorizer: Option<Authorizer>) -> Running {
        self.serve_config(&self.config(data), authorizer).await
    }

    pub async fn serve_config(&self, config: &Config, authorizer: Option<Authorizer>) -> Running {
        let server = Server::bind(config).await.unwrap();
        let (dns, api) = (server.dns_addresses()[0], server.api_address());
        let tasks = Tasks::new();
        server.start(&tasks, authorizer);
        Running { dns, api, tasks }
    }

    /// Publishes a running VM as PlasmaVMC does.
    pub async fn publish(&self, name: &str, addresses: &[&str]) -> PublishedName {
        let published = PublishedName {
            project: "default".parse().unwrap(),
            name: name.parse().unwrap(),
            vm: "0190d0c0-0000-7000-8000-000000000001".parse().unwrap(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ttl_s: 30,
        };
        self.store
            .put(published.key(), published.value().unwrap())
            .await
            .unwrap();
        published
    }
}

/// A connection to the store that can be cut.
pub struct Proxy {
    pub port: u16,
    link: tokio::sync::watch::Sender<bool>,
    tasks: Tasks,
}

impl Proxy {
    pub async fn start(to: u16) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (link, up) = tokio::sync::watch::channel(true);
        let tasks = Tasks::new();
        let all = tasks.clone();
        tasks.spawn("proxy", Kind::Background, async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut up = up.clone();
                all.spawn("proxied", Kind::Background, async move {
                    if !*up.borrow_and_update() {
                        return Ok(());
                    }
                    let mut far = tokio::net::TcpStream::connect(("127.0.0.1", to)).await?;
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = up.wait_for(|up| !up) => {}
                    }
                    Ok(())
                });
            }
            Ok(())
        });
        Self { port, link, tasks }
    }

    /// Cuts all connections and refuses new ones, or lets them through again.
    pub fn set(&self, up: bool) {
        self.link.send_replace(up);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(false);
        self.tasks.stop("test");
    }
}

/// What `dig` printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: String,
    pub flags: String,
    pub answer: Vec<String>,
    pub authority: Vec<String>,
    pub text: String,
}

/// Asks with `dig`; records come as `NAME TTL CLASS TYPE DATA` with single spaces, sorted.
pub fn dig(server: SocketAddr, words: &[&str]) -> Answer {
    let output = Command::new("dig")
        .args(["+time=2", "+tries=1", "-p", &server.port().to_string()])
        .arg(format!("@{}", server.ip()))
        .args(words)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let after = |mark: &str, end: char| {
        let rest = text.split_once(mark).map_or("", |(_, rest)| rest);
        rest.split(end).next().unwrap_or("").trim().to_owned()
    };
    let section = |name: &str| {
        let rest = text
            .split_once(&format!(";; {name} SECTION:\n"))
            .map_or("", |(_, rest)| rest);
        let lines = rest.lines().take_while(|line| !line.is_empty());
        let mut lines: Vec<String> = lines
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        lines.sort();
        lines
    };
    Answer {
        status: after("status: ", ','),
        flags: after(";; flags: ", ';'),
        answer: section("ANSWER"),
        authority: section("AUTHORITY"),
        text: text.clone(),
    }
}

/// Asks until the answer is as wanted; panics with the last answer when that does not come.
pub async fn dig_until(server: SocketAddr, words: &[&str], wanted: impl Fn(&Answer) -> bool) -> Answer {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = dig(server, words);
        if wanted(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "still wrong: {}", answer.text);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
