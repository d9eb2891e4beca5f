//! Authenticates API keys: those of the settings, and those in the database, which are cached.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::time::MissedTickBehavior;

use super::cache::Cache;
use super::{Principal, Role};
use crate::api::{ApiKeyId, Scope, Timestamp};
use crate::clock::Clock;
use crate::store::{self, Store, StoredKey};

/// How often the revision is read.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// Maximum number of keys whose use is in memory. When it is reached, they are dropped.
const USES_MAX: usize = 10_000;
/// Minimum interval between two updates of the time at which a key was last used, in seconds.
const RECORD_USE_EVERY_S: i64 = 60;

/// The SHA-256 digest of a key.
pub type Digest = [u8; 32];

/// Why a request is not authenticated.
#[derive(Debug, thiserror::Error)]
pub enum Rejection {
    /// The request has no key.
    #[error("the request has no API key")]
    MissingKey,
    /// The key does not exist. It may have been revoked.
    #[error("the API key does not exist")]
    UnknownKey,
    /// The key has expired.
    #[error("the API key has expired")]
    ExpiredKey,
    /// The project of the key is archived.
    #[error("the project of the API key is archived")]
    ArchivedProject,
    /// The key cannot be checked.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// A key in the database, as it is cached.
#[derive(Debug, Clone)]
pub struct KnownKey {
    digest: Digest,
    principal: Arc<Principal>,
    expires_at: Option<Timestamp>,
    is_archived: bool,
}

/// Authenticates API keys.
#[derive(Debug)]
pub struct Authenticator {
    database: Arc<dyn Store>,
    clock: Arc<Clock>,
    /// The keys of the settings, by their digests.
    configured: HashMap<Digest, Arc<Principal>>,
    /// The caller of requests without a key, which are accepted while there are no keys. `None`: a key is always required.
    keyless: Option<Arc<Principal>>,
    cache: Arc<Cache>,
    /// When the use of each key was last recorded, and whether it was used since.
    uses: Mutex<HashMap<ApiKeyId, Use>>,
}

#[derive(Debug, Clone, Copy)]
struct Use {
    recorded_at: Timestamp,
    is_recorded: bool,
}

impl Authenticator {
    /// Creates an authenticator with the keys of the settings. `api_keys` belong to the default project; `admin_keys` may use
    /// the administration. If `is_local` is set, only this machine can connect, and requests without a key are accepted
    /// while there are no keys at all.
    pub fn new<'a>(
        database: Arc<dyn Store>,
        clock: Arc<Clock>,
        cache: Arc<Cache>,
        api_keys: impl IntoIterator<Item = &'a str>,
        admin_keys: impl IntoIterator<Item = &'a str>,
        is_local: bool,
    ) -> Self {
        let mut configured: HashMap<Digest, Arc<Principal>> = HashMap::new();
        let members = api_keys.into_iter().map(|key| (key, Role::Member));
        for (key, role) in members.chain(admin_keys.into_iter().map(|key| (key, Role::Admin))) {
            let digest = digest(key);
            // A key in both lists may use both.
            let role = if configured.get(&digest).is_some_and(|known| known.role != role) { Role::Owner } else { role };
            configured.insert(digest, Arc::new(of_default_project(role, owner_of_key(&digest))));
        }
        let is_open = is_local && configured.is_empty();
        let keyless = is_open.then(|| Arc::new(of_default_project(Role::Owner, String::new())));
        Self { database, clock, configured, keyless, cache, uses: Mutex::default() }
    }

    /// Returns the caller of requests without a key; `None` if a key is required.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn keyless(&self) -> Result<Option<Arc<Principal>>, store::Error> {
        let Some(principal) = &self.keyless else { return Ok(None) };
        let has_keys = match self.cache.get(|values| values.has_keys) {
            Ok(has_keys) => has_keys,
            Err(generation) => {
                let has_keys = self.database.has_keys().await?;
                self.cache.add(generation, |values| values.has_keys = Some(has_keys));
                has_keys
            }
        };
        Ok((!has_keys).then(|| principal.clone()))
    }

    /// Returns the caller that has this key.
    ///
    /// # Errors
    /// [`Rejection`] if the key is not accepted.
    pub async fn authenticate(&self, key: &str) -> Result<Arc<Principal>, Rejection> {
        let digest = digest(key);
        if let Some(principal) = self.configured.get(&digest) {
            return Ok(principal.clone());
        }
        let known = match self.cache.get(|values| values.keys.get(&digest).cloned()) {
            Ok(known) => known,
            Err(generation) => {
                let stored = self.database.key_by_digest(&hex::encode(digest)).await?;
                let known = stored.map(|stored| known_key(digest, stored));
                self.cache.add(generation, |values| {
                    values.keys.insert(digest, known.clone());
                });
                known
            }
        };
        // The maps and the index of the database are not searched in constant time, which reveals at most something about
        // digests of keys that do not exist.
        let known = known.filter(|known| bool::from(known.digest.ct_eq(&digest))).ok_or(Rejection::UnknownKey)?;
        let now = self.clock.now();
        if known.expires_at.is_some_and(|expires_at| expires_at <= now) {
            return Err(Rejection::ExpiredKey);
        }
        if known.is_archived {
            return Err(Rejection::ArchivedProject);
        }
        if let Some(id) = &known.principal.api_key_id {
            self.note_use(id, now);
        }
        Ok(known.principal)
    }

    /// Drops what this server has cached, after a change that it made.
    pub fn forget(&self) {
        self.cache.clear();
    }

    /// Reads the revision, and records the use of keys, without end.
    pub async fn watch(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(CHECK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let began = Instant::now();
            match self.database.access_revision().await {
                Ok(revision) => self.cache.confirm(revision, began),
                Err(error) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "failed to read the revision of API keys"
                    );
                }
            }
            self.record_uses().await;
        }
    }

    fn uses(&self) -> MutexGuard<'_, HashMap<ApiKeyId, Use>> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_use(&self, id: &ApiKeyId, now: Timestamp) {
        let mut uses = self.uses();
        match uses.get_mut(id) {
            Some(last) if now.0 - last.recorded_at.0 < RECORD_USE_EVERY_S => {}
            Some(last) => *last = Use { recorded_at: now, is_recorded: false },
            None => {
                if uses.len() >= USES_MAX {
                    uses.clear();
                }
                uses.insert(id.clone(), Use { recorded_at: now, is_recorded: false });
            }
        }
    }

    async fn record_uses(&self) {
        let used: Vec<ApiKeyId> = {
            let mut uses = self.uses();
            let new = uses.iter_mut().filter(|(_, last)| !last.is_recorded);
            new.map(|(id, last)| {
                last.is_recorded = true;
                id.clone()
            })
            .collect()
        };
        if used.is_empty() {
            return;
        }
        if let Err(error) = self.database.record_key_use(&used, self.clock.now()).await {
            // The next use of the keys is recorded a minute later.
            tracing::debug!(error = &error as &dyn std::error::Error, "failed to record the use of API keys");
        }
    }
}

fn of_default_project(role: Role, owner: String) -> Principal {
    Principal { scope: Scope::default_project(), role, api_key_id: None, owner }
}

fn known_key(digest: Digest, stored: StoredKey) -> KnownKey {
    let StoredKey { id, project_id, project_is_active, owner_has_role, expires_at } = stored;
    let (scope, role) = match project_id {
        Some(project) if !owner_has_role => (Scope::of(project), Role::None),
        Some(project) => (Scope::of(project), Role::Member),
        None => (Scope::default_project(), Role::Admin),
    };
    // The keys of a project share its turn.
    let owner = scope.to_string();
    let principal = Arc::new(Principal { scope, role, api_key_id: Some(id), owner });
    KnownKey { digest, principal, expires_at, is_archived: !project_is_active }
}

/// Returns an identifier of a key in the settings. It does not reveal the key.
fn owner_of_key(digest: &Digest) -> String {
    hex::encode(&digest[..8])
}

fn digest(key: &str) -> Digest {
    Sha256::digest(key.as_bytes()).into()
}
