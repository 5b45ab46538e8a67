//! Making tap devices. Everything else about them goes over netlink.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc::{IFF_NO_PI, IFF_TAP, c_int, c_short};

/// Longest name of a network device.
const NAME_BYTES: usize = 16;

/// The kernel's `struct ifreq`, as far as TUNSETIFF reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_BYTES],
    flags: c_short,
    rest: [u8; 22],
}

nix::ioctl_write_ptr_bad!(
    tun_set_iff,
    nix::request_code_write!(b'T', 202, size_of::<c_int>()),
    InterfaceRequest
);
nix::ioctl_write_int_bad!(
    tun_set_persist,
    nix::request_code_write!(b'T', 203, size_of::<c_int>())
);

/// Makes a tap device that stays when its maker ends. One that exists already is kept; one that is in
/// use by a running guest counts as that.
pub(super) fn make_persistent(name: &str) -> io::Result<()> {
    let mut request = InterfaceRequest {
        name: [0; NAME_BYTES],
        flags: 0,
        rest: [0; 22],
    };
    if name.len() >= NAME_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the name is too long",
        ));
    }
    request
        .name
        .iter_mut()
        .zip(name.bytes())
        .for_each(|(to, from)| *to = from);
    // Both flags are below 2^15.
    request.flags = c_short::try_from(IFF_TAP | IFF_NO_PI).unwrap_or_default();
    let device = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: the descriptor is open and `request` is a whole `ifreq` of 40 bytes that outlives the call.
    match unsafe { tun_set_iff(device.as_raw_fd(), &raw const request) } {
        Ok(_) => {}
        // Held by its guest: it exists and is persistent.
        Err(nix::errno::Errno::EBUSY) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    // SAFETY: the descriptor is open and attached to the device; the argument is a plain number.
    unsafe { tun_set_persist(device.as_raw_fd(), 1) }?;
    Ok(())
}
