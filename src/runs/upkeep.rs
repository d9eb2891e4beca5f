//! Background loops for all runs of this server. They save text, detect passed deadlines and changes by other servers, and
//! follow runs that this server streams but does not drive. Each loop handles all runs in a few statements.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::MissedTickBehavior;

use super::service::RunService;
use super::stream::Live;
use crate::api::id::Id;
use crate::api::{Message, RunId, Timestamp};
use crate::store::{self, SavedText};

/// The interval at which text is saved. A crash loses at most the text since the last save.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// Number of texts that are saved per interval. With more runs, each text is saved less often.
const SAVES_PER_INTERVAL: usize = 200;
/// Maximum number of intervals between two saves of a text.
const SAVE_INTERVALS_MAX: usize = 20;
/// The interval at which runs are compared with the store.
const COMPARE_EVERY: Duration = Duration::from_millis(500);
/// Size of the texts after which a statement is executed, in bytes.
const SAVE_BYTES: usize = 4 * 1024 * 1024;
/// Maximum number of texts of one statement.
const SAVE_COUNT: usize = 200;
/// Maximum number of runs that one statement compares.
const COMPARE_COUNT: usize = 1_000;

/// Saves the text of driven runs, without delaying their tokens.
pub async fn save_texts(runs: RunService) {
    let mut ticks = tokio::time::interval(SAVE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut turn: usize = 0;
    loop {
        ticks.tick().await;
        turn = turn.wrapping_add(1);
        let driven = runs.transitions.registry().all().into_iter().filter(|live| live.is_driven());
        let mut batch: Vec<(Arc<Live>, i64, Message)> = Vec::new();
        let mut bytes = 0;
        let driven: Vec<Arc<Live>> = driven.collect();
        let turns = driven.len().div_ceil(SAVES_PER_INTERVAL).clamp(1, SAVE_INTERVALS_MAX);
        // Selected by the run ID, so that each run is saved regularly while others start and end.
        let is_due = |live: &Arc<Live>| {
            let number: usize = live.run().as_str().bytes().map(usize::from).sum();
            number % turns == turn % turns
        };
        for live in driven.into_iter().filter(is_due) {
            let Some((version, message)) = live.take_unsaved() else { continue };
            bytes += super::prompt::content_bytes(&message);
            batch.push((live, version, message));
            if bytes > SAVE_BYTES || batch.len() >= SAVE_COUNT {
                save(&runs, std::mem::take(&mut batch)).await;
                bytes = 0;
            }
        }
        save(&runs, batch).await;
    }
}

async fn save(runs: &RunService, batch: Vec<(Arc<Live>, i64, Message)>) {
    if batch.is_empty() {
        return;
    }
    let texts: Vec<SavedText<'_>> = batch
        .iter()
        .map(|(live, version, message)| SavedText { run: live.run(), version: *version, message })
        .collect();
    match runs.dependencies.store.save_messages(&texts).await {
        Ok(saved) => {
            // The others were changed concurrently; their drivers reload them.
            for (live, ..) in batch.iter().filter(|(live, ..)| !saved.contains(live.run())) {
                live.changed.notify_one();
            }
        }
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, runs = batch.len(), "failed to save texts; retrying");
            for (live, ..) in &batch {
                live.mark_unsaved();
            }
        }
    }
}

/// Listens for changes by other servers, and notifies the drivers of the changed runs.
pub async fn listen_for_changes(runs: RunService) {
    let mut changes = runs.dependencies.store.run_changes();
    while let Some(run) = changes.next().await {
        if let Some(live) = runs.transitions.registry().get(&run) {
            live.changed.notify_one();
        }
    }
}

/// Compares the runs of this server with the store. Notifies drivers of changes by other servers and of passed deadlines,
/// and publishes the progress of runs that this server streams but does not drive.
pub async fn compare_with_store(runs: RunService) {
    let mut ticks = tokio::time::interval(COMPARE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen: HashMap<RunId, i64> = HashMap::new();
    loop {
        ticks.tick().await;
        let lives = runs.transitions.registry().all();
        let now = runs.dependencies.clock.now();
        notify_of_deadlines(&lives, now);
        let is_shared = runs.dependencies.store.is_shared();
        // Only this server changes a store that is not shared.
        let compared: Vec<&Arc<Live>> =
            lives.iter().filter(|live| if live.is_driven() { is_shared } else { live.listeners() > 0 }).collect();
        if seen.len() > compared.len() {
            let followed: HashSet<&RunId> = compared.iter().map(|live| live.run()).collect();
            seen.retain(|id, _| followed.contains(id));
        }
        for some in compared.chunks(COMPARE_COUNT) {
            if let Err(error) = compare(&runs, some, &mut seen).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "failed to compare runs with the store");
            }
        }
    }
}

fn notify_of_deadlines(lives: &[Arc<Live>], now: Timestamp) {
    let is_overdue = |live: &&Arc<Live>| live.is_driven() && live.expires_at().is_some_and(|deadline| now >= deadline);
    lives.iter().filter(is_overdue).for_each(|live| live.changed.notify_one());
}

async fn compare(runs: &RunService, lives: &[&Arc<Live>], seen: &mut HashMap<RunId, i64>) -> Result<(), store::Error> {
    let ids: Vec<RunId> = lives.iter().map(|live| live.run().clone()).collect();
    let stored = runs.dependencies.store.run_revisions(&ids).await?;
    let stored: HashMap<RunId, (i64, i64)> =
        stored.into_iter().map(|(id, version, revision)| (id, (version, revision))).collect();
    for live in lives {
        match stored.get(live.run()) {
            // A driver that is notified of its own commit finds no change.
            Some((version, _)) if live.is_driven() => {
                if *version > live.version() {
                    live.changed.notify_one();
                }
            }
            Some((_, revision)) => {
                if seen.get(live.run()) != Some(revision) {
                    follow(runs, live).await?;
                    seen.insert(live.run().clone(), *revision);
                }
            }
            None if live.is_driven() => live.changed.notify_one(),
            None => live.fail(live.run().not_found()),
        }
    }
    Ok(())
}

/// Publishes the stored state of a run that this server does not drive.
async fn follow(runs: &RunService, live: &Arc<Live>) -> Result<(), store::Error> {
    let Some(spec) = live.spec() else { return Ok(()) };
    let found = runs.dependencies.store.run(&spec.scope, &spec.thread_id, &spec.id).await?;
    let Some(found) = found else { return Ok(()) };
    let current = runs.transitions.load(found).await?;
    let _gate = live.gate.lock().await;
    if !live.is_driven() && current.version >= live.version() {
        live.publish(&current.progress, current.version, current.lease);
    }
    Ok(())
}
