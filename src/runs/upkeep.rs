//! Background loops for all runs of this server: they save text, notice changes by other servers and passed deadlines, and
//! follow runs that this server streams and does not drive. Each handles all runs of this server in few statements.

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

/// How often text is saved: what a crash may lose of it.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// How many texts are saved in that time: of more, each is saved less often, down to a twentieth.
const SAVE_EACH_TIME: usize = 200;
const SAVE_LESS_OFTEN_MAX: usize = 20;
/// How often runs are compared with the store.
const COMPARE_EVERY: Duration = Duration::from_millis(500);
/// Maximum size of one statement's texts, in bytes, and how many there are at most.
const SAVE_BYTES: usize = 4 * 1024 * 1024;
const SAVE_COUNT: usize = 200;
/// How many runs one statement compares.
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
        let turns = driven.len().div_ceil(SAVE_EACH_TIME).clamp(1, SAVE_LESS_OFTEN_MAX);
        // By the run's id, so that each has its turn although runs come and go.
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
            tracing::warn!(error, runs = batch.len(), "texts cannot be saved; trying again");
            for (live, ..) in &batch {
                live.mark_unsaved();
            }
        }
    }
}

/// Has drivers reload runs that another server has changed, as it is notified.
pub async fn listen_for_changes(runs: RunService) {
    let mut changes = runs.dependencies.store.run_changes();
    while let Some(run) = changes.next().await {
        if let Some(live) = runs.transitions.registry().get(&run) {
            live.changed.notify_one();
        }
    }
}

/// Compares the runs of this server with the store: drivers reload what was changed elsewhere, deadlines are noticed,
/// and streams of runs that are driven elsewhere, or wait, continue.
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
        // A store that is not shared is changed by this server alone.
        let compared: Vec<&Arc<Live>> =
            lives.iter().filter(|live| if live.is_driven() { is_shared } else { live.listeners() > 0 }).collect();
        if seen.len() > compared.len() {
            let followed: HashSet<&RunId> = compared.iter().map(|live| live.run()).collect();
            seen.retain(|id, _| followed.contains(id));
        }
        for some in compared.chunks(COMPARE_COUNT) {
            if let Err(error) = compare(&runs, some, &mut seen).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "runs cannot be compared with the store");
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
            // A driver that is notified of its own commit finds nothing changed.
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

/// Publishes what is stored of a run that this server does not drive.
async fn follow(runs: &RunService, live: &Arc<Live>) -> Result<(), store::Error> {
    let Some(thread) = live.thread_id() else { return Ok(()) };
    let Some(found) = runs.dependencies.store.run(&thread, live.run()).await? else { return Ok(()) };
    let current = runs.transitions.load(found).await?;
    let _gate = live.gate.lock().await;
    if !live.is_driven() && current.version >= live.version() {
        live.publish(&current.progress, current.version, current.lease);
    }
    Ok(())
}
