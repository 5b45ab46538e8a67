//! A cluster for one test: a store, certificates, a world of rights, servers. Everything goes when it is dropped.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use chainfire_client::{Client, ClientConfig};
use hearth_service::config::TlsConfig;
use hearth_service::fail_points::FailPoints;
use hearth_service::pki::{Authority, LEAF_LIFETIME, LeafRequest};
use hearth_service::server::Listener;
use hearth_service::tasks::{Kind, Tasks};
use hearth_service::tls::Identity;
use hearth_types::Name;
use iam_client::testing::{DOMAIN, TestWorld};
use iam_client::{Node, Role};
use plasmavmc_client::{PlasmaClient, StaticToken, tls_from_ca};
use plasmavmc_server::{Parts, PlasmaConfig, serve};
use tokio::runtime::Runtime;

/// Longest wait for anything in a test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const PREFIX: &str = "/plasmavmc/";

/// The program that stands in for the store: a Chainfire member (`member CONFIG.toml`) instead of Debian's etcd.
const CHAINFIRE: &str = "HEARTH_TEST_CHAINFIRE";

/// The store of one test, on free loopback ports: Debian's etcd without fsync and TLS, or a Chainfire member.
struct Store {
    running: Running,
    endpoint: String,
    /// Chainfire knows its callers by certificate.
    secure: bool,
}

enum Running {
    Process(Child),
    /// A member in this process, on a runtime of its own.
    Here(Tasks, Option<Runtime>),
}

impl Drop for Store {
    fn drop(&mut self) {
        match &mut self.running {
            Running::Process(process) => {
                let _ = process.kill();
                let _ = process.wait();
            }
            Running::Here(tasks, runtime) => {
                tasks.stop("the test is over");
                if let Some(runtime) = runtime.take() {
                    runtime.shutdown_background();
                }
            }
        }
    }
}

fn free_port() -> u16 {
    test_ports::keep_port().unwrap()
}

impl Store {
    fn etcd(folder: &Path) -> Self {
        let (client, peer) = (free_port(), free_port());
        let (client_url, peer_url) = (
            format!("http://127.0.0.1:{client}"),
            format!("http://127.0.0.1:{peer}"),
        );
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(folder.join("etcd"))
            .args([
                "--listen-client-urls",
                &client_url,
                "--advertise-client-urls",
                &client_url,
            ])
            .args([
                "--listen-peer-urls",
                &peer_url,
                "--initial-advertise-peer-urls",
                &peer_url,
            ])
            .args([
                "--initial-cluster",
                &format!("default={peer_url}"),
                "--unsafe-no-fsync",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("these tests need Debian's etcd: apt-get install etcd-server");
        Self {
            running: Running::Process(process),
            endpoint: format!("127.0.0.1:{client}"),
            secure: false,
        }
    }

    /// A Chainfire member in this process.
    fn chainfire_here(folder: &Path, pki: &Pki) -> Self {
        let (config, client) = Self::chainfire_config(folder, pki);
        let config: chainfire_server::Config = toml::from_str(&config).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let tasks = Tasks::new();
        let member = chainfire_server::run(config, tasks.clone());
        // It returns when it serves.
        let started = std::thread::scope(|scope| scope.spawn(|| runtime.block_on(member)).join().unwrap());
        started.expect("the Chainfire member does not start");
        Self {
            running: Running::Here(tasks, Some(runtime)),
            endpoint: format!("127.0.0.1:{client}"),
            secure: true,
        }
    }

    fn chainfire_config(folder: &Path, pki: &Pki) -> (String, u16) {
        let (client, peer) = (free_port(), free_port());
        let tls = pki.files("service/chainfire");
        let config = format!(
            "[service]\nname = \"member\"\ndata_dir = \"{data}\"\n[tls]\nca = \"{ca}\"\ncert = \"{cert}\"\nkey = \"{key}\"\n\
             [chainfire]\nmember = \"member\"\ncluster = \"test\"\nlisten_client = \"127.0.0.1:{client}\"\n\
             listen_peer = \"127.0.0.1:{peer}\"\n[[chainfire.members]]\nname = \"member\"\n\
             client = \"127.0.0.1:{client}\"\npeer = \"127.0.0.1:{peer}\"\n",
            data = folder.join("chainfire").display(),
            ca = tls.ca.display(),
            cert = tls.cert.display(),
            key = tls.key.display(),
        );
        (config, client)
    }

    fn chainfire(program: &OsStr, folder: &Path, pki: &Pki) -> Self {
        let (config, client) = Self::chainfire_config(folder, pki);
        let path = folder.join("chainfire.toml");
        std::fs::write(&path, config).unwrap();
        let log = std::fs::File::create(folder.join("chainfire.log")).unwrap();
        let process = Command::new(program)
            .arg(path)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the Chainfire member does not start");
        Self {
            running: Running::Process(process),
            endpoint: format!("127.0.0.1:{client}"),
            secure: true,
        }
    }
}

/// Certificates of one test.
struct Pki {
    folder: PathBuf,
    authority: Authority,
}

impl Pki {
    fn files(&self, path: &str) -> TlsConfig {
        let file = |suffix: &str| self.folder.join(format!("{}.{suffix}", path.replace('/', "-")));
        let request = LeafRequest {
            trust_domain: DOMAIN.to_owned(),
            path: path.to_owned(),
            dns: vec!["localhost".to_owned()],
            ips: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            lifetime: LEAF_LIFETIME,
        };
        let issued = self.authority.issue(&request, SystemTime::now()).unwrap();
        std::fs::write(file("crt"), issued.cert_pem).unwrap();
        std::fs::write(file("key"), issued.key_pem).unwrap();
        TlsConfig {
            ca: self.folder.join("ca.crt"),
            cert: file("crt"),
            key: file("key"),
        }
    }
}

/// Everything that servers and agents of one test share.
pub(crate) struct Cluster {
    process: Store,
    folder: tempfile::TempDir,
    pki: Pki,
    pub(crate) world: TestWorld,
    pub(crate) tasks: Tasks,
    pub(crate) store: Client,
}

/// One running server, on a runtime of its own so that it can be killed.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// Where it can be cut off.
    pub(crate) fail_points: FailPoints,
    tasks: Tasks,
    runtime: Option<Runtime>,
}

impl Server {
    pub(crate) fn endpoint(&self) -> String {
        self.address.to_string()
    }

    /// Stops it in good order and waits for its end.
    pub(crate) async fn stop(self) {
        self.tasks.stop("the test stops the server");
        assert!(self.tasks.finished(PATIENCE).await, "the server did not stop");
    }

    /// Cuts it off wherever it is: every task ends at its next await, nothing is said to anyone.
    pub(crate) fn kill(mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.tasks.stop("the test is over");
    }
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::start_on(false).await
    }

    /// With a real Chainfire member as the store.
    pub(crate) async fn start_on_chainfire() -> Self {
        Self::start_on(true).await
    }

    async fn start_on(chainfire: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(DOMAIN, SystemTime::now()).unwrap();
        std::fs::write(folder.path().join("ca.crt"), authority.cert_pem()).unwrap();
        let pki = Pki {
            folder: folder.path().to_owned(),
            authority,
        };
        let process = match std::env::var_os(CHAINFIRE) {
            Some(program) => Store::chainfire(&program, folder.path(), &pki),
            None if chainfire => Store::chainfire_here(folder.path(), &pki),
            None => Store::etcd(folder.path()),
        };
        let root = process
            .secure
            .then(|| Identity::load(&pki.files("operator/root")).unwrap());
        let store = Client::connect(&ClientConfig::new([process.endpoint.clone()]), root).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while store
            .with_deadline(Duration::from_millis(500))
            .get("/")
            .await
            .is_err()
        {
            assert!(Instant::now() < deadline, "the store did not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let world = TestWorld::new().unwrap();
        Self {
            process,
            folder,
            pki,
            world,
            tasks: Tasks::new(),
            store,
        }
    }

    /// The identity of a service or a node.
    pub(crate) fn identity(&self, path: &str) -> Identity {
        Identity::load(&self.pki.files(path)).unwrap()
    }

    pub(crate) fn config() -> PlasmaConfig {
        serde_json::from_value(serde_json::json!({
            "listen": "127.0.0.1:0", "domain": DOMAIN, "routed_network": "10.77.0.0/16",
            "user_network": "127.77.0.0/16", "aegis_url": iam_client::testing::ISSUER,
            "max_image_bytes": 4 << 20, "sweep_s": 1,
        }))
        .unwrap()
    }

    pub(crate) async fn server(&self, name: &str) -> Server {
        self.server_with(name, Self::config()).await
    }

    pub(crate) async fn server_with(&self, name: &str, config: PlasmaConfig) -> Server {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let tasks = Tasks::new();
        let (name, data_dir, identity) = (
            name.to_owned(),
            self.folder_of(name),
            self.identity("service/plasmavmc"),
        );
        let (store, authorizer) = (self.process.endpoint.clone(), self.world.authorizer());
        let secure = self.process.secure;
        let fail_points = FailPoints::here();
        let points = fail_points.clone();
        let (say, bound) = tokio::sync::oneshot::channel();
        let stop = tasks.clone();
        let inside = runtime.enter();
        tasks.spawn("server", Kind::Critical, async move {
            let listener = Listener::bind(config.listen).await?;
            let chainfire = Client::connect(&ClientConfig::new([store]), secure.then(|| identity.clone()))?;
            let _ = say.send(listener.local_addr());
            let parts = Parts {
                name,
                data_dir,
                identity,
                chainfire,
                authorizer,
                config,
                fail_points: points,
            };
            serve(parts, listener, stop).await.map_err(Into::into)
        });
        drop(inside);
        let address = bound.await.expect("the server starts");
        Server {
            address,
            fail_points,
            tasks,
            runtime: Some(runtime),
        }
    }

    /// Where a server keeps its images: each its own, as on different machines.
    fn folder_of(&self, server: &str) -> PathBuf {
        self.folder.path().join(format!("data-{server}"))
    }

    /// The folder of the server of [`Self::ready`].
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.folder_of("vmc-1")
    }

    pub(crate) fn ca_pem(&self) -> &str {
        self.pki.authority.cert_pem()
    }

    /// A user with a role somewhere; the token to sign in with.
    pub(crate) fn user(&self, name: &str, role: Role, place: Node) -> String {
        let user = self.world.user(name).unwrap();
        self.world.bind(user, role, place);
        self.world.token(user).unwrap()
    }

    pub(crate) fn client(&self, server: &Server, token: &str) -> PlasmaClient {
        let tls = tls_from_ca(self.pki.authority.cert_pem().as_bytes()).unwrap();
        let url = format!("https://{}", server.address);
        PlasmaClient::new(&url, tls, Arc::new(StaticToken(token.to_owned()))).unwrap()
    }

    /// A server, an administrator's client of it, the project `default`, and the image `tiny`.
    pub(crate) async fn ready(&self) -> (Server, PlasmaClient, Name) {
        self.world.project("default").unwrap();
        let token = self.user("root", Role::Admin, Node::Root);
        let server = self.server("vmc-1").await;
        let client = self.client(&server, &token);
        self.import(&client, "tiny").await;
        (server, client, name("default"))
    }

    /// Imports a small raw image.
    pub(crate) async fn import(&self, client: &PlasmaClient, image: &str) {
        let path = self.folder.path().join(format!("{image}.raw"));
        std::fs::write(&path, image.repeat(1000)).unwrap();
        let upload = plasmavmc_client::ImageUpload {
            name: name(image),
            format: plasmavmc_client::types::ImageFormat::Raw,
            path,
            sha256: None,
        };
        client.upload_image(&upload, |_, _| {}).await.unwrap();
    }

    /// All keys below `/plasmavmc/` but those of images, nodes' descriptions, sessions, the election,
    /// remembered requests and operations.
    pub(crate) async fn keys_of_vms(&self) -> Vec<String> {
        let listing = self.store.list(PREFIX).await.unwrap();
        let lasting = [
            "/images/",
            "/imagenames/",
            "/sessions/",
            "/leader",
            "/requests/",
            "/operations/",
        ];
        listing
            .kvs
            .iter()
            .map(|kv| kv.key_text().into_owned())
            .filter(|key| !key.ends_with("/info") && !lasting.iter().any(|part| key.contains(part)))
            .collect()
    }
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Waits until `check` gives something.
pub(crate) async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < deadline, "did not happen in time: {what}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}
