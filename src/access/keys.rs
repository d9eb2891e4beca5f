//! Random bytes for new API keys.

use crate::api::organization::api_key::RANDOM_BYTES;

/// Returns random bytes of the operating system.
///
/// # Errors
/// If the operating system provides none.
pub fn random_bytes() -> Result<[u8; RANDOM_BYTES], getrandom::Error> {
    let mut bytes = [0; RANDOM_BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}
