//! Disk images.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context as _, Result};
use hearth_types::{ErrorKind, Name};
use plasmavmc_client::ImageUpload;
use plasmavmc_client::types::{Image, ImageFormat};
use tokio::io::AsyncReadExt;

use super::Env;
use crate::cli::Image as Command;
use crate::failure::fail;
use crate::output::{Progress, Row, bytes, note};

impl Row for Image {
    const HEADER: &'static [&'static str] = &["name", "format", "size", "disk", "sha256", "created"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_string(),
            self.format.as_str().to_owned(),
            bytes(self.size_bytes),
            bytes(self.virtual_size_bytes),
            self.sha256.chars().take(12).collect(),
            self.created_at.clone(),
        ]
    }
}

pub(crate) async fn run(env: &Env, command: Command) -> Result<()> {
    let client = env.plasmavmc().await?;
    match command {
        Command::List => env.out.list(&client.list_images().await?.items),
        Command::Show { name } => show(env, &client.get_image(&name).await?),
        Command::Import {
            file,
            name,
            sha256,
            format,
        } => {
            let format = format_of(&file, format.as_deref()).await?;
            let image = import(
                env,
                ImageUpload {
                    name,
                    format,
                    path: file,
                    sha256,
                },
            )
            .await?;
            show(env, &image)
        }
        Command::Delete { name } => {
            client.delete_image(&name).await?;
            note(format!("deleted the image `{name}`"));
            Ok(())
        }
    }
}

fn show(env: &Env, image: &Image) -> Result<()> {
    let people = [
        ("name", image.name.to_string()),
        ("id", image.id.to_string()),
        ("format", image.format.as_str().to_owned()),
        ("size", bytes(image.size_bytes)),
        ("disk", bytes(image.virtual_size_bytes)),
        ("sha256", image.sha256.clone()),
        ("created", image.created_at.clone()),
    ];
    env.out.one(image, &people)
}

async fn import(env: &Env, upload: ImageUpload) -> Result<Image> {
    let name: Name = upload.name.clone();
    let progress = Mutex::new(Progress::new());
    let sent = move |sent: u64, total: u64| {
        let percent = sent.saturating_mul(100).checked_div(total).unwrap_or(100);
        if let Ok(mut progress) = progress.lock() {
            progress.show(format!("importing `{name}`: {} %", percent / 10 * 10));
        }
    };
    Ok(env.plasmavmc().await?.upload_image(&upload, sent).await?)
}

/// As named, else by the file's first bytes.
async fn format_of(file: &Path, named: Option<&str>) -> Result<ImageFormat> {
    match named {
        Some("qcow2") => return Ok(ImageFormat::Qcow2),
        Some("raw") => return Ok(ImageFormat::Raw),
        Some(other) => {
            let message = format!("`{other}` is not an image format");
            return Err(fail(ErrorKind::InvalidArgument, message, "use qcow2 or raw"));
        }
        None => {}
    }
    let mut magic = [0; 4];
    let cannot = || format!("cannot read `{}`", PathBuf::from(file).display());
    let mut opened = tokio::fs::File::open(file).await.with_context(cannot)?;
    match opened.read_exact(&mut magic).await {
        Ok(_) if magic == *b"QFI\xfb" => Ok(ImageFormat::Qcow2),
        Ok(_) => Ok(ImageFormat::Raw),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(fail(
            ErrorKind::InvalidArgument,
            format!("`{}` is too short to be a disk image", file.display()),
            "",
        )),
        Err(error) => Err(error).with_context(cannot),
    }
}
