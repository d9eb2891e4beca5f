//! The rate of wrong API keys of each client address.
//!
//! Guessing keys costs this server a read of the database for each of them, and finds a key that is short. An address may
//! try a number of wrong keys, and more as time passes. Beyond that, its keys are checked one after the other, slowly, and a
//! wrong one is answered with 429. A key that was accepted from the same address before is not delayed: behind a reverse
//! proxy, all clients have one address.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// Number of different wrong keys of an address that are answered at once.
const BURST: f64 = 20.0;
/// Time after which an address may try one more wrong key.
const REFILL: Duration = Duration::from_secs(3);
/// Maximum number of remembered wrong keys of an address. When it is reached, they are dropped.
const TRIED_MAX: usize = 100;
/// Pause after each check of a key beyond the rate.
const PAUSE: Duration = Duration::from_millis(100);
/// Maximum wait for the check of a key beyond the rate.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// Maximum number of requests of an address that wait for such a check.
const WAITING_MAX: usize = 16;
/// Maximum number of remembered addresses, and of remembered keys that were accepted. When it is reached, they are dropped.
const ENTRIES_MAX: usize = 10_000;

/// Counts the wrong keys of addresses.
#[derive(Debug, Default)]
pub struct WrongKeys {
    addresses: Mutex<HashMap<IpAddr, Arc<Address>>>,
    /// Hashes of the addresses and keys that were accepted.
    accepted: Mutex<HashSet<u64>>,
    hasher: RandomState,
}

/// The wrong keys of one address.
#[derive(Debug)]
struct Address {
    bucket: Mutex<Bucket>,
    /// Hashes of its wrong keys, each of which counts once: a client that repeats the key in its settings guesses nothing.
    tried: Mutex<HashSet<u64>>,
    /// Requests that may wait for a check.
    waiting: Semaphore,
    /// The request whose key is checked.
    turn: tokio::sync::Mutex<()>,
}

/// The wrong keys that are left, as a token bucket.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn refill(&mut self, now: Instant) {
        let new = now.duration_since(self.at).as_secs_f64() / REFILL.as_secs_f64();
        *self = Self { left: (self.left + new).min(BURST), at: now };
    }
}

/// A client that tries too many wrong keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyWrongKeys {
    /// When another key can be tried.
    pub retry_after: Duration,
}

const TOO_MANY: TooManyWrongKeys = TooManyWrongKeys { retry_after: REFILL };

impl WrongKeys {
    /// Waits until a key of this address may be checked: not at all, unless the address has tried too many wrong keys.
    ///
    /// # Errors
    /// [`TooManyWrongKeys`] if other requests of this address are checked first.
    pub async fn wait(&self, address: IpAddr, key: &str) -> Result<(), TooManyWrongKeys> {
        let Some(address) = self.exceeded(address, key, Instant::now()) else { return Ok(()) };
        let Ok(_waiting) = address.waiting.try_acquire() else { return Err(TOO_MANY) };
        let turn = tokio::time::timeout(WAIT_MAX, address.turn.lock()).await;
        let Ok(_turn) = turn else { return Err(TOO_MANY) };
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }

    /// Returns the record of an address whose key must wait.
    fn exceeded(&self, address: IpAddr, key: &str, now: Instant) -> Option<Arc<Address>> {
        let network = network(address);
        let known = lock(&self.addresses).get(&network).cloned()?;
        {
            let mut bucket = lock(&known.bucket);
            bucket.refill(now);
            if bucket.left >= 1.0 {
                return None;
            }
        }
        let was_tried = lock(&known.tried).contains(&self.hash(network, key));
        (!was_tried && !self.is_accepted(network, key)).then_some(known)
    }

    /// Remembers a key that was accepted.
    pub fn accept(&self, address: IpAddr, key: &str) {
        let hash = self.hash(network(address), key);
        let mut accepted = lock(&self.accepted);
        if accepted.len() >= ENTRIES_MAX && !accepted.contains(&hash) {
            accepted.clear();
        }
        accepted.insert(hash);
    }

    /// Counts a wrong key. A key that was accepted before is not counted: it was revoked.
    ///
    /// # Errors
    /// [`TooManyWrongKeys`] if the address has tried too many.
    pub fn count(&self, address: IpAddr, key: &str) -> Result<(), TooManyWrongKeys> {
        self.count_at(address, key, Instant::now())
    }

    fn count_at(&self, address: IpAddr, key: &str, now: Instant) -> Result<(), TooManyWrongKeys> {
        let network = network(address);
        if self.is_accepted(network, key) {
            return Ok(());
        }
        let known = {
            let mut addresses = lock(&self.addresses);
            if addresses.len() >= ENTRIES_MAX && !addresses.contains_key(&network) {
                addresses.clear();
            }
            addresses.entry(network).or_insert_with(|| Arc::new(Address::new(now))).clone()
        };
        let mut tried = lock(&known.tried);
        let hash = self.hash(network, key);
        if tried.contains(&hash) {
            return Ok(());
        }
        let mut bucket = lock(&known.bucket);
        bucket.refill(now);
        if bucket.left < 1.0 {
            return Err(TOO_MANY);
        }
        bucket.left -= 1.0;
        if tried.len() >= TRIED_MAX {
            tried.clear();
        }
        tried.insert(hash);
        Ok(())
    }

    fn is_accepted(&self, network: IpAddr, key: &str) -> bool {
        lock(&self.accepted).contains(&self.hash(network, key))
    }

    fn hash(&self, network: IpAddr, key: &str) -> u64 {
        self.hasher.hash_one((network, key))
    }
}

impl Address {
    fn new(now: Instant) -> Self {
        Self {
            bucket: Mutex::new(Bucket { left: BURST, at: now }),
            tried: Mutex::default(),
            waiting: Semaphore::new(WAITING_MAX),
            turn: tokio::sync::Mutex::default(),
        }
    }
}

/// Returns what counts as one address: an IPv4 address, or the first 64 bits of an IPv6 address, which one client has.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_may_try_some_wrong_keys_at_once_and_more_later() {
        let keys = WrongKeys::default();
        let start = Instant::now();
        let guess = std::cell::Cell::new(0);
        let count = |from: &str, at| {
            guess.set(guess.get() + 1);
            keys.count_at(address(from), &format!("wrong-{}", guess.get()), at).is_ok()
        };

        assert_eq!((0..40).filter(|_| count("10.0.0.1", start)).count(), 20);
        assert!(count("10.0.0.2", start), "other addresses have their own rate");
        assert!(!count("::ffff:10.0.0.1", start), "it is the same address");
        assert!(count("10.0.0.1", start + REFILL) && !count("10.0.0.1", start + REFILL));
        assert_eq!((0..40).filter(|_| count("2001:db8::1", start)).count(), 20);
        assert!(!count("2001:db8::2", start), "a client has all addresses of its network");
        assert!(count("2001:db8:0:1::1", start));
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_the_rate_only_keys_that_were_accepted_are_not_delayed() {
        let keys = WrongKeys::default();
        let from = address("10.0.0.1");
        keys.accept(from, "right");
        assert!((0..100).all(|_| keys.count(from, "in its settings").is_ok()), "a repeated key counts once");
        let mut guesses = 0..;
        while keys.count(from, &format!("wrong-{}", guesses.next().unwrap())).is_ok() {}

        let began = tokio::time::Instant::now();
        assert_eq!(keys.wait(from, "right").await, Ok(()));
        assert_eq!(keys.wait(from, "in its settings").await, Ok(()));
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(keys.count(from, "right"), Ok(()), "it was revoked");
        assert_eq!(keys.wait(from, "new").await, Ok(()));
        assert_eq!(began.elapsed(), PAUSE);
        let many = (0..100).map(|guess| keys.wait(from, if guess % 2 == 0 { "guess" } else { "another" }));
        let many = futures_util::future::join_all(many).await;
        assert_eq!(many.iter().filter(|waited| waited.is_ok()).count(), WAITING_MAX);
        assert_eq!(began.elapsed(), PAUSE * 17);
        assert_eq!(keys.wait(address("10.0.0.2"), "right").await, Ok(()), "another address does not wait");
    }
}
