//! The installation of the runtime.

use std::io;
use std::path::{Path, PathBuf};

/// The files of the runtime.
#[derive(Debug, Clone)]
pub struct Installation {
    /// The compiled module.
    pub module: PathBuf,
    /// The folder with the standard library.
    pub standard_library: PathBuf,
    /// The folder with the data of matplotlib.
    pub mpl_data: PathBuf,
}

impl Installation {
    /// Returns what is installed in a folder.
    pub fn find(folder: &Path) -> io::Result<Option<Self>> {
        let module = folder.join("rt/python.cwasm");
        let found = module.try_exists()?;
        let (standard_library, mpl_data) = (folder.join("lib"), folder.join("mpl"));
        Ok(found.then_some(Self { module, standard_library, mpl_data }))
    }
}
