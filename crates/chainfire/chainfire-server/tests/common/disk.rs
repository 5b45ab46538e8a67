//! A disk for the Raft log that becomes slow or fails when a file in the member's folder says so: `slow MILLISECONDS` or
//! `fail`.

use std::{
    io::{Error, Read, Result, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use raft_host::{DefaultFileSystem, FileHandle, FileSystem, Permission, WriteExt};

type Handle = <DefaultFileSystem as FileSystem>::Handle;

/// Name of the file that says what is wrong with the disk.
pub const FAULT: &str = "disk-fault";

pub struct FaultyDisk {
    pub fault: PathBuf,
}

impl FaultyDisk {
    fn wrap(&self, handle: Handle) -> FaultyHandle {
        FaultyHandle {
            inner: Arc::new(handle),
            fault: self.fault.clone(),
        }
    }
}

pub struct FaultyHandle {
    inner: Arc<Handle>,
    fault: PathBuf,
}

impl FileHandle for FaultyHandle {
    fn truncate(&self, offset: usize) -> Result<()> {
        FileHandle::truncate(&*self.inner, offset)
    }

    fn file_size(&self) -> Result<usize> {
        FileHandle::file_size(&*self.inner)
    }

    fn sync(&self) -> Result<()> {
        let fault = std::fs::read_to_string(&self.fault).unwrap_or_default();
        if fault.trim() == "fail" {
            return Err(Error::from_raw_os_error(5));
        }
        if let Some(ms) = fault.strip_prefix("slow ") {
            std::thread::sleep(Duration::from_millis(ms.trim().parse().unwrap()));
        }
        FileHandle::sync(&*self.inner)
    }
}

pub struct Reader(<DefaultFileSystem as FileSystem>::Reader);

impl Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        self.0.read(buf)
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.0.seek(to)
    }
}

pub struct Writer(<DefaultFileSystem as FileSystem>::Writer);

impl Write for Writer {
    fn write(&mut self, buf: &[u8]) -> Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> Result<()> {
        self.0.flush()
    }
}

impl Seek for Writer {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.0.seek(to)
    }
}

impl WriteExt for Writer {
    fn truncate(&mut self, offset: usize) -> Result<()> {
        self.0.truncate(offset)
    }

    fn allocate(&mut self, offset: usize, size: usize) -> Result<()> {
        self.0.allocate(offset, size)
    }
}

impl FileSystem for FaultyDisk {
    type Handle = FaultyHandle;
    type Reader = Reader;
    type Writer = Writer;

    fn create<P: AsRef<Path>>(&self, path: P) -> Result<FaultyHandle> {
        Ok(self.wrap(DefaultFileSystem.create(path)?))
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> Result<FaultyHandle> {
        Ok(self.wrap(DefaultFileSystem.open(path, permission)?))
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> Result<()> {
        DefaultFileSystem.delete(path)
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> Result<()> {
        DefaultFileSystem.rename(from, to)
    }

    fn new_reader(&self, handle: Arc<FaultyHandle>) -> Result<Reader> {
        DefaultFileSystem.new_reader(handle.inner.clone()).map(Reader)
    }

    fn new_writer(&self, handle: Arc<FaultyHandle>) -> Result<Writer> {
        DefaultFileSystem.new_writer(handle.inner.clone()).map(Writer)
    }
}
