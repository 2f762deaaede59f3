//! An XDP program that passes everything, for the ports of the switch.
//!
//! What XDP_TX sends out of a veth waits in a queue of its peer, and the kernel wakes that peer up only if it has
//! an XDP program itself (`gro on` gives it the queue but not the wake-up: frames then wait for the next ordinary
//! one, and once 256 of them wait, for ever).

use std::{ffi::CString, fs, io, os::fd::RawFd, os::unix::ffi::OsStrExt as _, path::Path};

use anyhow::{Context as _, Result};
use nix::{
    libc,
    mount::{MsFlags, mount},
    unistd::close,
};

/// `r0 = 2 (XDP_PASS); exit`, in the kernel's 8-byte instructions.
const PASS: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_PROG_TYPE_XDP: u32 = 6;

/// The start of `union bpf_attr` for BPF_PROG_LOAD; what is not given counts as zero.
#[repr(C)]
struct Load {
    program_type: u32,
    instructions: u32,
    code: u64,
    license: u64,
}

/// The same for BPF_OBJ_PIN.
#[repr(C)]
struct Pin {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Mounts a BPF file system at `directory` and pins the program in it as `pass`.
pub(crate) fn pin(directory: &Path) -> Result<()> {
    fs::create_dir(directory)?;
    mount(Some("bpf"), directory, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mounting a BPF file system at {}", directory.display()))?;
    let license = c"GPL";
    let load = Load {
        program_type: BPF_PROG_TYPE_XDP,
        instructions: PASS.len() as u32,
        code: PASS.as_ptr() as u64,
        license: license.as_ptr() as u64,
    };
    let program = bpf(BPF_PROG_LOAD, &load).context("loading an XDP program")?;
    let path = CString::new(directory.join("pass").as_os_str().as_bytes())?;
    let pin = Pin { path: path.as_ptr() as u64, fd: program as u32, flags: 0 };
    let pinned = bpf(BPF_OBJ_PIN, &pin).context("pinning an XDP program");
    close(program)?;
    pinned.map(drop)
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<RawFd> {
    // SAFETY: `attributes` is one of the repr(C) structs above, whose pointers the callers keep alive; the kernel
    // reads `size_of::<T>()` bytes of it and writes to none.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}
