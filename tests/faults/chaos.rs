//! Random faults: kills, stops, freezes, and a database that is unreachable, unresponsive, slow or restarted.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;

use crate::relay::Network;
use crate::servers::LEASE_S;
use crate::world::World;

/// A command that restarts the database without a checkpoint; `tests/with-postgres` provides it.
pub const RESTART_COMMAND: &str = "ASSISTD_TEST_POSTGRES_RESTART";

/// Injects faults until the test stops. Leaves the servers running and the network good.
pub async fn inject_faults(world: Arc<World>, seed: u64) {
    let mut rng = Rng::with_seed(seed);
    while !world.is_stopping() {
        tokio::time::sleep(Duration::from_millis(rng.u64(300..2_500))).await;
        let replica = rng.usize(..world.replicas.len());
        let fault = rng.u8(..if world.relay.is_some() { 14 } else { 8 });
        match fault {
            0..4 => kill(&world, replica, &mut rng).await,
            4..6 => terminate(&world, replica).await,
            6..8 => freeze(&world, replica, &mut rng).await,
            8..13 => impair_network(&world, &mut rng).await,
            _ => restart_database(&world).await,
        }
    }
}

async fn kill(world: &World, replica: usize, rng: &mut Rng) {
    world.count("kills");
    world.replicas[replica].kill().await;
    // Restarts immediately, or after a pause that may exceed the lease.
    let pause = if rng.bool() { 0 } else { rng.u64(..LEASE_S * 1_300) };
    tokio::time::sleep(Duration::from_millis(pause)).await;
    start(world, replica).await;
}

async fn terminate(world: &World, replica: usize) {
    world.count("stops");
    if let Err(error) = world.replicas[replica].terminate().await {
        world.violation(error);
    }
    start(world, replica).await;
}

async fn start(world: &World, replica: usize) {
    if let Err(error) = world.replicas[replica].start().await {
        world.violation(format!("replica {replica}: {error}"));
    }
}

/// Freezes a server for a time that may exceed the lease.
async fn freeze(world: &World, replica: usize, rng: &mut Rng) {
    world.count("freezes");
    world.replicas[replica].signal("STOP").await;
    tokio::time::sleep(Duration::from_millis(rng.u64(500..LEASE_S * 1_500))).await;
    world.replicas[replica].signal("CONT").await;
}

async fn impair_network(world: &World, rng: &mut Rng) {
    let Some(relay) = &world.relay else { return };
    let (network, name) = match rng.u8(..3) {
        0 => (Network::Unreachable, "database unreachable"),
        1 => (Network::Unresponsive, "database unresponsive"),
        _ => (Network::Slow(20), "database slow"),
    };
    world.count(name);
    relay.set(network);
    tokio::time::sleep(Duration::from_millis(rng.u64(200..LEASE_S * 1_300))).await;
    relay.set(Network::Good);
}

async fn restart_database(world: &World) {
    let Ok(command) = std::env::var(RESTART_COMMAND) else { return };
    world.count("database restarts");
    let status = tokio::process::Command::new(command).status().await;
    assert!(status.is_ok_and(|status| status.success()), "failed to restart the database");
}
