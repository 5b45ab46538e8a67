//! A look into an image before any guest or tool opens it.
//!
//! A qcow2 file may name other files: a backing file or an external data file, and whoever opens it then reads those
//! from the host. Such images are refused, and so are sizes beyond the limit. The layout is QEMU's
//! `docs/interop/qcow2.txt`, section "Header"; numbers are big-endian.

use plasmavmc_client::types::ImageFormat;

const MAGIC: [u8; 4] = *b"QFI\xfb";
const VERSION_AT: usize = 4;
const BACKING_FILE_OFFSET_AT: usize = 8;
const CLUSTER_BITS_AT: usize = 20;
const SIZE_AT: usize = 24;
const CRYPT_METHOD_AT: usize = 32;
const L1_SIZE_AT: usize = 36;
const INCOMPATIBLE_FEATURES_AT: usize = 72;
const HEADER_LENGTH_AT: usize = 100;
/// "The image file is corrupt": QEMU itself refuses to write to it.
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA_FILE: u64 = 1 << 2;
/// Dirty, corrupt, external data file, compression type, extended L2 entries.
const KNOWN_FEATURES: u64 = 0b1_1111;
/// The extension that names an external data file.
const DATA_FILE_NAME_EXTENSION: u32 = 0x4441_5441;
/// QEMU's own limit on the L1 table.
const MAX_L1_BYTES: u64 = 32 << 20;
const SECTOR: u64 = 512;

/// Why an image is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the image is empty")]
    Empty,
    #[error("the image is said to be qcow2 but does not begin like one; is it raw?")]
    NotQcow2,
    #[error("the image is said to be raw but begins like qcow2; say format=qcow2")]
    NotRaw,
    #[error("the image's qcow2 header is cut short or damaged: {0}")]
    Header(&'static str),
    #[error("the image names a backing file; flatten it first: qemu-img convert -O qcow2 OLD NEW")]
    BackingFile,
    #[error("the image keeps its data in another file; flatten it first: qemu-img convert -O qcow2 OLD NEW")]
    DataFile,
    #[error("the image is encrypted, and nobody could give its key to a guest's disk")]
    Encrypted,
    #[error("the image's disk of {size} bytes is larger than {max} bytes, which is the limit of this server")]
    TooLarge { size: u64, max: u64 },
}

fn number<const N: usize>(head: &[u8], at: usize) -> Result<[u8; N], Refused> {
    head.get(at..at + N)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(Refused::Header("it ends before the header does"))
}

fn u32_at(head: &[u8], at: usize) -> Result<u32, Refused> {
    number(head, at).map(u32::from_be_bytes)
}

fn u64_at(head: &[u8], at: usize) -> Result<u64, Refused> {
    number(head, at).map(u64::from_be_bytes)
}

/// Looks at the first bytes of an image of `file_bytes` bytes; the size of the disk that a guest sees.
///
/// # Errors
/// [`Refused`] when it must not be used.
pub(crate) fn inspect(head: &[u8], file_bytes: u64, format: ImageFormat, max: u64) -> Result<u64, Refused> {
    if file_bytes == 0 {
        return Err(Refused::Empty);
    }
    let size = match (format, head.starts_with(&MAGIC)) {
        (ImageFormat::Qcow2, true) => qcow2_size(head)?,
        (ImageFormat::Qcow2, false) => return Err(Refused::NotQcow2),
        (ImageFormat::Raw, true) => return Err(Refused::NotRaw),
        (ImageFormat::Raw, false) => file_bytes.next_multiple_of(SECTOR),
    };
    if size == 0 {
        return Err(Refused::Empty);
    }
    if size > max {
        return Err(Refused::TooLarge { size, max });
    }
    Ok(size)
}

fn qcow2_size(head: &[u8]) -> Result<u64, Refused> {
    let version = u32_at(head, VERSION_AT)?;
    if !(2..=3).contains(&version) {
        return Err(Refused::Header("its version is neither 2 nor 3"));
    }
    if u64_at(head, BACKING_FILE_OFFSET_AT)? != 0 {
        return Err(Refused::BackingFile);
    }
    let cluster_bits = u32_at(head, CLUSTER_BITS_AT)?;
    if !(9..=21).contains(&cluster_bits) {
        return Err(Refused::Header("its cluster size is not possible"));
    }
    if u32_at(head, CRYPT_METHOD_AT)? != 0 {
        return Err(Refused::Encrypted);
    }
    if u64::from(u32_at(head, L1_SIZE_AT)?) * 8 > MAX_L1_BYTES {
        return Err(Refused::Header("its L1 table is larger than QEMU allows"));
    }
    if version == 3 {
        let features = u64_at(head, INCOMPATIBLE_FEATURES_AT)?;
        if features & EXTERNAL_DATA_FILE != 0 {
            return Err(Refused::DataFile);
        }
        if features & CORRUPT != 0 {
            return Err(Refused::Header(
                "it is marked as corrupt; repair it: qemu-img check -r all FILE",
            ));
        }
        if features & !KNOWN_FEATURES != 0 {
            return Err(Refused::Header(
                "it uses features that this version does not know",
            ));
        }
        refuse_data_file_extension(head)?;
    }
    u64_at(head, SIZE_AT)
}

/// Walks the header extensions; each is a type, a length and data padded to 8 bytes, type 0 ends them.
fn refuse_data_file_extension(head: &[u8]) -> Result<(), Refused> {
    let mut at = u32_at(head, HEADER_LENGTH_AT)? as usize;
    // Extensions beyond what was read of the file lie behind its first 4 KiB; QEMU never writes any there.
    while at + 8 <= head.len() {
        let (kind, length) = (u32_at(head, at)?, u32_at(head, at + 4)? as usize);
        match kind {
            0 => return Ok(()),
            DATA_FILE_NAME_EXTENSION => return Err(Refused::DataFile),
            _ => at = at.saturating_add(8).saturating_add(length.next_multiple_of(8)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn header() -> Vec<u8> {
        let mut head = vec![0; 512];
        head[..4].copy_from_slice(&MAGIC);
        head[VERSION_AT + 3] = 3;
        head[CLUSTER_BITS_AT + 3] = 16;
        head[SIZE_AT..SIZE_AT + 8].copy_from_slice(&GIB.to_be_bytes());
        head[HEADER_LENGTH_AT + 3] = 104;
        head
    }

    fn check(change: impl FnOnce(&mut Vec<u8>), expected: Result<u64, Refused>) {
        let mut head = header();
        change(&mut head);
        assert_eq!(inspect(&head, 512, ImageFormat::Qcow2, 2 * GIB), expected);
    }

    #[test]
    fn plain_images_pass_and_hostile_ones_do_not() {
        check(|_| {}, Ok(GIB));
        check(|head| head[0] = b'X', Err(Refused::NotQcow2));
        check(
            |head| head[BACKING_FILE_OFFSET_AT + 6] = 1,
            Err(Refused::BackingFile),
        );
        check(
            |head| head[INCOMPATIBLE_FEATURES_AT + 7] = 4,
            Err(Refused::DataFile),
        );
        check(
            |head| head[104..108].copy_from_slice(&DATA_FILE_NAME_EXTENSION.to_be_bytes()),
            Err(Refused::DataFile),
        );
        check(|head| head[CRYPT_METHOD_AT + 3] = 2, Err(Refused::Encrypted));
        check(
            |head| head[SIZE_AT] = 0x10,
            Err(Refused::TooLarge {
                size: (0x10 << 56) | GIB,
                max: 2 * GIB,
            }),
        );
        check(
            |head| head.truncate(60),
            Err(Refused::Header("it ends before the header does")),
        );
        check(
            |head| head[VERSION_AT + 3] = 4,
            Err(Refused::Header("its version is neither 2 nor 3")),
        );
        check(|head| head[SIZE_AT..SIZE_AT + 8].fill(0), Err(Refused::Empty));
        assert_eq!(
            inspect(&header(), 512, ImageFormat::Raw, GIB),
            Err(Refused::NotRaw)
        );
        assert_eq!(inspect(b"boot", 1000, ImageFormat::Raw, GIB), Ok(1024));
        assert_eq!(inspect(b"", 0, ImageFormat::Raw, GIB), Err(Refused::Empty));
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_a_panic(mut head in prop::collection::vec(any::<u8>(), 0..4096), magic in any::<bool>()) {
            if magic && head.len() > 8 {
                head[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
            }
            for format in [ImageFormat::Qcow2, ImageFormat::Raw] {
                if let Ok(size) = inspect(&head, head.len() as u64, format, GIB) {
                    prop_assert!((1..=GIB).contains(&size));
                }
            }
        }
    }
}
