//! The memory of the guest, and error numbers.

use std::path::PathBuf;

use wasmtime::{Caller, Extern};

use super::Host;

/// Maximum length of a path, in bytes.
const PATH_BYTES_MAX: u32 = 4_096;
/// Maximum number of buffers of one call.
const BUFFERS_MAX: u32 = 1_024;

/// An error number of WASI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(u16);

pub(super) type Result<T> = std::result::Result<T, Errno>;

#[expect(missing_docs, reason = "the names are those of POSIX")]
impl Errno {
    pub const ACCES: Self = Self(2);
    pub const BADF: Self = Self(8);
    pub const EXIST: Self = Self(20);
    pub const FAULT: Self = Self(21);
    pub const INVAL: Self = Self(28);
    pub const IO: Self = Self(29);
    pub const ISDIR: Self = Self(31);
    pub const MFILE: Self = Self(33);
    pub const NAMETOOLONG: Self = Self(37);
    pub const NOENT: Self = Self(44);
    pub const NOSPC: Self = Self(51);
    pub const NOTDIR: Self = Self(54);
    pub const NOTEMPTY: Self = Self(55);
    pub const NOTSUP: Self = Self(58);
    pub const OVERFLOW: Self = Self(61);
    pub const PERM: Self = Self(63);
    pub const ROFS: Self = Self(69);
    pub const SPIPE: Self = Self(70);
    pub const XDEV: Self = Self(75);

    /// Returns the number.
    #[must_use]
    pub fn number(self) -> i32 {
        i32::from(self.0)
    }
}

/// Returns the address or position `bytes` after another one.
pub(super) fn after<T: TryInto<u64> + TryFrom<u64>>(at: T, bytes: u64) -> Result<T> {
    let end = at.try_into().ok().and_then(|at| at.checked_add(bytes));
    end.and_then(|end| T::try_from(end).ok()).ok_or(Errno::OVERFLOW)
}

impl From<std::io::Error> for Errno {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::NotFound => Self::NOENT,
            // Also that of `cap-std` for paths that lead out of the mount.
            ErrorKind::PermissionDenied => Self::ACCES,
            ErrorKind::AlreadyExists => Self::EXIST,
            ErrorKind::InvalidInput => Self::INVAL,
            ErrorKind::IsADirectory => Self::ISDIR,
            ErrorKind::NotADirectory => Self::NOTDIR,
            ErrorKind::DirectoryNotEmpty => Self::NOTEMPTY,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Self::NOSPC,
            ErrorKind::InvalidFilename => Self::NAMETOOLONG,
            ErrorKind::CrossesDevices => Self::XDEV,
            ErrorKind::ReadOnlyFilesystem => Self::ROFS,
            ErrorKind::NotSeekable => Self::SPIPE,
            _ => Self::IO,
        }
    }
}

/// The memory of the guest. Each access is checked.
pub(super) struct Guest<'a> {
    memory: &'a mut [u8],
}

impl<'a> Guest<'a> {
    /// Returns the memory of the guest that calls, and the state of its host.
    pub fn of(caller: &'a mut Caller<'_, Host>) -> Result<(Self, &'a mut Host)> {
        let Some(Extern::Memory(memory)) = caller.get_export("memory") else { return Err(Errno::FAULT) };
        let (memory, host) = memory.data_and_store_mut(caller);
        Ok((Self { memory }, host))
    }

    pub fn slice(&self, at: u32, bytes: u32) -> Result<&[u8]> {
        let (at, bytes) = (at as usize, bytes as usize);
        self.memory.get(at..at.checked_add(bytes).ok_or(Errno::FAULT)?).ok_or(Errno::FAULT)
    }

    pub fn slice_mut(&mut self, at: u32, bytes: u32) -> Result<&mut [u8]> {
        let (at, bytes) = (at as usize, bytes as usize);
        self.memory.get_mut(at..at.checked_add(bytes).ok_or(Errno::FAULT)?).ok_or(Errno::FAULT)
    }

    pub fn write(&mut self, at: u32, bytes: &[u8]) -> Result<()> {
        let length = u32::try_from(bytes.len()).map_err(|_| Errno::FAULT)?;
        self.slice_mut(at, length)?.copy_from_slice(bytes);
        Ok(())
    }

    pub fn write_u32(&mut self, at: u32, value: u32) -> Result<()> {
        self.write(at, &value.to_le_bytes())
    }

    pub fn write_u64(&mut self, at: u32, value: u64) -> Result<()> {
        self.write(at, &value.to_le_bytes())
    }

    /// Returns the places and lengths of buffers in a list.
    pub fn buffers(&self, list: u32, count: u32) -> Result<Vec<(u32, u32)>> {
        if count > BUFFERS_MAX {
            return Err(Errno::INVAL);
        }
        let bytes = self.slice(list, 8 * count)?;
        let buffers = bytes.as_chunks::<8>().0.iter().map(|[a, b, c, d, e, f, g, h]| {
            (u32::from_le_bytes([*a, *b, *c, *d]), u32::from_le_bytes([*e, *f, *g, *h]))
        });
        Ok(buffers.collect())
    }

    /// Returns a path, which is relative to an open folder.
    pub fn path(&self, at: u32, bytes: u32) -> Result<PathBuf> {
        if bytes > PATH_BYTES_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let text = std::str::from_utf8(self.slice(at, bytes)?).map_err(|_| Errno::INVAL)?;
        if text.contains('\0') {
            return Err(Errno::INVAL);
        }
        Ok(PathBuf::from(text))
    }
}
