//! Images through the interface and to agents.

use std::collections::BTreeSet;

use hearth_types::ErrorKind;
use plasmavmc_client::types::{ImageFormat, VmCreate};
use plasmavmc_client::{ClientError, ImageUpload, PlasmaClient};

use crate::agent::{SMALL, SimAgent, fetch_image};
use crate::harness::{Cluster, name, until};
use crate::lifecycle::gone;

fn upload(cluster: &Cluster, image: &str, format: ImageFormat, bytes: &[u8]) -> ImageUpload {
    let path = cluster.data_dir().with_file_name(format!("upload-{image}"));
    std::fs::write(&path, bytes).unwrap();
    ImageUpload {
        name: name(image),
        format,
        path,
        sha256: None,
    }
}

async fn refused(client: &PlasmaClient, upload: &ImageUpload) -> String {
    let error = client.upload_image(upload, |_, _| {}).await.unwrap_err();
    let ClientError::Api { detail, .. } = &error else {
        panic!("{error:?}")
    };
    format!("{}: {}", detail.kind, detail.message)
}

/// Names of all files below the server's folder.
fn files(cluster: &Cluster) -> BTreeSet<String> {
    let images = cluster.data_dir().join("images");
    let list = |path| {
        std::fs::read_dir(path)
            .unwrap()
            .map(|file| file.unwrap().file_name())
    };
    list(images.clone())
        .chain(list(images.join("incoming")))
        .map(|name| name.into_string().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_and_broken_uploads_are_refused_and_leave_nothing() {
    let cluster = Cluster::start().await;
    let (_server, client, _) = cluster.ready().await;
    let before = files(&cluster);
    let mut wrong = upload(&cluster, "wrong", ImageFormat::Raw, b"abc");
    wrong.sha256 = Some("0".repeat(64));
    let text = refused(&client, &wrong).await;
    assert!(
        text.starts_with("invalid_argument: the image's SHA-256 is ba7816bf"),
        "{text}"
    );
    wrong.sha256 = Some("abc".to_owned());
    assert_eq!(
        refused(&client, &wrong).await,
        "invalid_argument: `abc` is no SHA-256"
    );

    let mut backing = vec![0_u8; 512];
    backing[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    backing[15] = 1;
    let text = refused(
        &client,
        &upload(&cluster, "backing", ImageFormat::Qcow2, &backing),
    )
    .await;
    assert!(text.contains("names a backing file"), "{text}");
    let text = refused(
        &client,
        &upload(&cluster, "large", ImageFormat::Raw, &vec![7; 5 << 20]),
    )
    .await;
    assert_eq!(
        text,
        "invalid_argument: the image is larger than 4194304 bytes, which is the limit of this server"
    );
    let text = refused(
        &client,
        &upload(&cluster, "tiny", ImageFormat::Raw, b"other bytes"),
    )
    .await;
    assert_eq!(
        text,
        "already_exists: there is another image named `tiny` already"
    );
    assert_eq!(files(&cluster), before);
    assert_eq!(client.list_images().await.unwrap().items.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_in_use_stays_and_an_unused_one_goes_with_its_bytes() {
    let cluster = Cluster::start().await;
    let (server, client, project) = cluster.ready().await;
    let first = client.get_image(&name("tiny")).await.unwrap();
    cluster.import(&client, "tiny").await;
    assert_eq!(
        client.get_image(&name("tiny")).await.unwrap(),
        first,
        "the same bytes again change nothing"
    );

    let _agent = SimAgent::start(&cluster, "node01", vec![server.endpoint()], SMALL).await;
    let request = VmCreate::new("web", "tiny");
    until("the VM is placed", async || {
        client.create_vm(&project, &request, None).await.ok()
    })
    .await;
    let used = client.delete_image(&name("tiny")).await.unwrap_err();
    assert_eq!(used.kind(), Some(ErrorKind::FailedPrecondition));
    assert!(
        used.to_string()
            .contains("in use by VM `web` of project `default`"),
        "{used}"
    );
    let second = VmCreate::new("db", "tiny");
    client
        .create_vm(&project, &second, None)
        .await
        .expect("a refused deletion leaves the image usable");
    for vm in ["web", "db"] {
        client.delete_vm(&project, &name(vm)).await.unwrap();
        gone(&client, &project, vm).await;
    }

    client.delete_image(&name("tiny")).await.unwrap();
    assert!(client.get_image(&name("tiny")).await.unwrap_err().is_not_found());
    assert_eq!(
        files(&cluster),
        BTreeSet::from([".lock".to_owned(), "incoming".to_owned()])
    );
    let left = cluster.store.list("/plasmavmc/v1/image").await.unwrap();
    assert!(left.kvs.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_fetch_images_from_any_offset_and_nobody_else_does() {
    let cluster = Cluster::start().await;
    let (server, client, _) = cluster.ready().await;
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|number| (number % 251) as u8).collect();
    let progress = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let seen = progress.clone();
    let image = client
        .upload_image(
            &upload(&cluster, "big", ImageFormat::Raw, &bytes),
            move |sent, total| {
                assert_eq!(total, 1_000_000);
                seen.store(sent, std::sync::atomic::Ordering::Relaxed);
            },
        )
        .await
        .unwrap();
    assert_eq!(progress.load(std::sync::atomic::Ordering::Relaxed), 1_000_000);
    assert_eq!(
        (image.size_bytes, image.virtual_size_bytes),
        (1_000_000, 1_000_448)
    );

    let node = cluster.identity("node/node01");
    let hub = server.endpoint();
    assert!(fetch_image(&node, &hub, &image.sha256, 0).await.unwrap() == bytes);
    assert!(fetch_image(&node, &hub, &image.sha256, 999_990).await.unwrap() == bytes[999_990..]);
    let code = async |identity: &str, sha256: &str| {
        let identity = cluster.identity(identity);
        fetch_image(&identity, &hub, sha256, 0).await.unwrap_err().code()
    };
    assert_eq!(code("node/node01", &"0".repeat(64)).await, tonic::Code::NotFound);
    assert_eq!(
        code("node/node01", "../../pki/ca.key").await,
        tonic::Code::NotFound
    );
    assert_eq!(
        code("service/flashdns", &image.sha256).await,
        tonic::Code::PermissionDenied
    );
}

/// A small file system in memory, unmounted when dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    /// `None` where this process may not mount.
    fn mount(at: &std::path::Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"])
            .arg(at)
            .stderr(std::process::Stdio::null())
            .status();
        mount
            .is_ok_and(|status| status.success())
            .then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("--lazy")
            .arg(&self.0)
            .status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_said_and_nothing_half_made_stays() {
    let cluster = Cluster::start().await;
    let Some(_disk) = SmallDisk::mount(&cluster.data_dir(), "1m") else {
        eprintln!("SKIPPED: mounting a small disk needs privileges");
        return;
    };
    let (_server, client, _) = cluster.ready().await;
    let before = files(&cluster);
    let text = refused(
        &client,
        &upload(&cluster, "big", ImageFormat::Raw, &vec![7; 3 << 20]),
    )
    .await;
    assert_eq!(text, "resource_exhausted: the disk for images is full");
    assert_eq!(files(&cluster), before);
    cluster.import(&client, "small").await;
}
