//! The version of a database's schema, and whether this release can use it.

use super::Error;

/// The version of this release.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// The version of a database's schema.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Schema {
    /// The number of the last migration that was applied. 0: none was.
    pub version: i64,
    /// The last migration of the oldest release that can use the database.
    pub oldest_migration: i64,
    /// The version of the newest release that has migrated the database. Empty: not recorded.
    pub written_by: String,
}

impl Schema {
    /// Checks that a release whose last migration is `known` can use the database.
    ///
    /// # Errors
    /// [`Error::NewerRelease`].
    pub(super) fn check_usable(&self, known: i64) -> Result<(), Error> {
        if self.oldest_migration <= known {
            return Ok(());
        }
        Err(Error::NewerRelease { written_by: self.written_by.clone(), schema: self.version, known })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_can_use_a_newer_schema_until_that_drops_what_the_release_reads() {
        let schema = |oldest_migration| Schema { version: 20, oldest_migration, written_by: "2.0.0".to_owned() };

        assert!(schema(14).check_usable(14).is_ok());
        let error = schema(15).check_usable(14).unwrap_err().to_string();
        assert!(error.contains("assistd 2.0.0 (schema 20)") && error.contains(RELEASE), "{error}");
    }
}
