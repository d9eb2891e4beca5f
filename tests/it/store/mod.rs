//! Tests of the store on both databases.

mod code;
mod files;
mod ledger;
mod vector_stores;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use assistd::api::page::Order;
use assistd::api::rule::Request as _;
use assistd::api::run::RunState;
use assistd::api::usage::Usage;
use assistd::api::{
    Assistant, CreateAssistant, CreateMessage, CreateRun, CreateThread, Ids, Message, PageQuery, Run, Scope, Thread,
    Timestamp,
};
use assistd::clock::Clock;
use assistd::runs::machine::{self, Input, Progress};
use assistd::store::{
    ClaimedRun, ConversationPage, Error, FIRST_VERSION, JobKind, Lease, NewRun, NextLease, SavedText, Start, Store,
    Versioned,
};
use serde_json::json;

use crate::both_stores;
use crate::support::database::Database;
use crate::support::run::{NOTHING, origin};
use crate::support::transition;

const NOW: Timestamp = Timestamp(1_000);

fn scope() -> Scope {
    Scope::default_project()
}

fn ids() -> &'static Ids {
    static IDS: std::sync::OnceLock<Ids> = std::sync::OnceLock::new();
    IDS.get_or_init(Ids::unique_everywhere)
}

fn assistant(name: &str) -> Assistant {
    CreateAssistant::parse(json!({"model": "m", "name": name})).unwrap().into_assistant(ids(), NOW).0
}

fn thread() -> Thread {
    CreateThread::parse(json!({})).unwrap().into_thread(ids(), NOW).0
}

fn message(thread: &Thread, text: &str, at: Timestamp) -> Message {
    let request = CreateMessage::parse(json!({"role": "user", "content": text})).unwrap();
    request.into_message(ids(), &thread.id, at)
}

fn run(thread: &Thread) -> Run {
    let assistant = assistant("a");
    let request = CreateRun::parse(json!({"assistant_id": assistant.id})).unwrap();
    request.into_run(ids(), origin(&thread.id, &assistant, NOW)).0
}

/// Opens a store with a clock that is stopped at [`NOW`] until the test advances it.
async fn open(database: &Database) -> (Arc<dyn Store>, Arc<Clock>) {
    let clock = Arc::new(Clock::manual(NOW));
    (database.open_at(clock.clone()).await, clock)
}

fn new_run(run: &Run, start: Start) -> NewRun<'_> {
    NewRun { run, thread: None, messages: &[], new: &NOTHING, owner: "", active_runs_max: 0, start }
}

async fn create(store: &Arc<dyn Store>, run: &Run) -> Result<(), Error> {
    store.create_run(&new_run(run, Start::Due)).await
}

/// Creates a thread and a run on it.
async fn create_run(store: &Arc<dyn Store>, owner: &str) -> Run {
    let thread = thread();
    store.create_thread(&scope(), &thread, &[], &NOTHING).await.unwrap();
    let run = run(&thread);
    store.create_run(&NewRun { owner, ..new_run(&run, Start::Due) }).await.unwrap();
    run
}

const LEASE: Duration = Duration::from_secs(15);

async fn claim(store: &Arc<dyn Store>) -> Option<ClaimedRun> {
    store.claim_run(LEASE, "", &[], u32::MAX).await.unwrap()
}

fn lease(claimed: &ClaimedRun) -> Lease {
    let Versioned { run, lease, .. } = &claimed.versioned;
    Lease { id: run.spec.id.to_string(), number: *lease }
}

fn deadline() -> Input {
    Input::DeadlinePassed { usage: Usage::default() }
}

/// Commits the transition that `input` causes on a new run.
async fn commit(store: &Arc<dyn Store>, run: &Run, version: i64, input: Input) -> Result<i64, Error> {
    let transition = machine::step(&Progress::new(run.clone()), input, NOW, ids()).unwrap();
    let is_over = transition.progress.run.state.has_ended();
    let next_lease = if is_over { NextLease::None } else { NextLease::Keep };
    store.commit(transition::commit(&transition, version, next_lease)).await.map(|committed| committed.version)
}

/// Returns the `newest` messages of a run's prompt context, oldest first.
async fn context(store: &Arc<dyn Store>, run: &Run, newest: u32) -> Vec<Message> {
    let page =
        store.conversation_page(&scope(), &run.spec.thread_id, &run.spec.id, None, newest, usize::MAX).await.unwrap();
    page.messages.into_iter().rev().collect()
}

/// Returns all messages of a thread in the order of a prompt context.
async fn conversation(store: &Arc<dyn Store>, thread: &Thread) -> Vec<Message> {
    context(store, &run(thread), 1_000).await
}

fn text(message: &Message) -> String {
    serde_json::to_value(&message.content).unwrap()[0]["text"]["value"].as_str().unwrap().to_owned()
}

fn query(limit: u32, order: Order) -> PageQuery {
    PageQuery { limit, order, ..PageQuery::default() }
}

both_stores!(stored_values_are_returned_unchanged, async |database: Database| {
    let store = database.open().await;
    let assistant = assistant("NUL \u{0} and \u{1F600}");
    let thread = thread();
    store.create_assistant(&scope(), &assistant, &NOTHING).await.unwrap();
    store.create_thread(&scope(), &thread, &[], &NOTHING).await.unwrap();
    let message = store.create_message(&scope(), message(&thread, "NUL \u{0}", NOW), false, &NOTHING).await.unwrap();
    let run = run(&thread);
    create(&store, &run).await.unwrap();

    assert_eq!(store.assistant(&scope(), &assistant.id).await.unwrap(), Some(assistant));
    assert_eq!(store.thread(&scope(), &thread.id).await.unwrap(), Some(thread.clone()));
    assert_eq!(store.message(&scope(), &thread.id, &message.id).await.unwrap(), Some(message));
    assert_eq!(store.run(&scope(), &thread.id, &run.spec.id).await.unwrap().unwrap().run, run);
});

both_stores!(rows_with_equal_times_are_listed_in_insertion_order, async |database: Database| {
    let store = database.open().await;
    for number in 0..30 {
        store.create_assistant(&scope(), &assistant(&number.to_string()), &NOTHING).await.unwrap();
    }

    let names = |page: assistd::api::Page<Assistant>| -> Vec<String> {
        page.data.into_iter().map(|assistant| assistant.name.unwrap()).collect()
    };
    let newest = names(store.list_assistants(&scope(), &query(3, Order::Descending)).await.unwrap());
    let oldest = names(store.list_assistants(&scope(), &query(3, Order::Ascending)).await.unwrap());
    assert_eq!(
        (newest, oldest),
        (vec!["29".into(), "28".into(), "27".into()], vec!["0".into(), "1".into(), "2".into()])
    );
});

both_stores!(pages_have_no_gaps_or_repeats_in_both_directions, async |database: Database| {
    let store = database.open().await;
    let thread = thread();
    store.create_thread(&scope(), &thread, &[], &NOTHING).await.unwrap();
    for number in 0..7 {
        store.create_message(&scope(), message(&thread, &number.to_string(), NOW), false, &NOTHING).await.unwrap();
    }
    let list = async |query: PageQuery| {
        let page = store.list_messages(&scope(), &thread.id, None, &query).await.unwrap();
        let texts: String = page.data.iter().map(text).collect();
        (
            texts,
            page.has_more,
            page.data.last().map(|last| last.id.to_string()),
            page.data.first().map(|first| first.id.to_string()),
        )
    };

    let (first, more, last, _) = list(query(3, Order::Descending)).await;
    assert_eq!((first.as_str(), more), ("654", true));
    let (second, more, last, head) = list(PageQuery { after: last, ..query(3, Order::Descending) }).await;
    assert_eq!((second.as_str(), more), ("321", true));
    let (third, more, ..) = list(PageQuery { after: last.clone(), ..query(3, Order::Descending) }).await;
    assert_eq!((third.as_str(), more), ("0", false));
    let (back, more, ..) = list(PageQuery { before: head, ..query(2, Order::Descending) }).await;
    assert_eq!((back.as_str(), more), ("54", true), "the page before the cursor");
    let (full, more, ..) = list(query(7, Order::Ascending)).await;
    assert_eq!((full.as_str(), more), ("0123456", false), "no page follows a full last page");
    let (before, more, ..) = list(PageQuery { before: last, ..query(20, Order::Ascending) }).await;
    assert_eq!((before.as_str(), more), ("0", false));
    let unknown = PageQuery { after: Some("msg_x".into()), ..PageQuery::default() };
    let rejected = store.list_messages(&scope(), &thread.id, None, &unknown).await;
    assert!(matches!(rejected, Err(Error::NoCursor(id)) if id == "msg_x"));
});

both_stores!(a_clock_that_is_behind_does_not_reorder_messages, async |database: Database| {
    let store = database.open().await;
    let thread = thread();
    store
        .create_thread(&scope(), &thread, &[message(&thread, "0", NOW), message(&thread, "1", NOW)], &NOTHING)
        .await
        .unwrap();

    store.create_message(&scope(), message(&thread, "2", Timestamp(2_000)), false, &NOTHING).await.unwrap();
    let behind = store.create_message(&scope(), message(&thread, "3", Timestamp(500)), false, &NOTHING).await.unwrap();
    let run = run(&thread);
    let late = [message(&thread, "4", Timestamp(400))];
    store.create_run(&NewRun { messages: &late, ..new_run(&run, Start::Due) }).await.unwrap();

    let stored = conversation(&store, &thread).await;
    assert_eq!(stored.iter().map(text).collect::<String>(), "01234");
    let newest = context(&store, &run, 2).await;
    assert_eq!(newest.iter().map(text).collect::<String>(), "34");
    let times: Vec<i64> = stored.iter().map(|message| message.created_at.0).collect();
    assert_eq!(times, [1_000, 1_000, 2_000, 2_000, 2_000]);
    assert_eq!(behind.created_at, Timestamp(2_000), "the caller receives the stored time");
});

both_stores!(only_one_of_a_hundred_concurrent_runs_is_created, async |database: Database| {
    let store = database.open().await;
    let thread = thread();
    store.create_thread(&scope(), &thread, &[], &NOTHING).await.unwrap();

    let attempts = (0..100).map(|_| {
        let (store, run) = (store.clone(), run(&thread));
        tokio::spawn(async move { (create(&store, &run).await, run.spec.id.clone()) })
    });
    let outcomes = futures_util::future::join_all(attempts).await;

    let (created, rejected): (Vec<_>, Vec<_>) =
        outcomes.into_iter().map(Result::unwrap).partition(|(outcome, _)| outcome.is_ok());
    assert_eq!(created.len(), 1);
    let winner = &created[0].1;
    for (outcome, _) in rejected {
        assert!(matches!(&outcome, Err(Error::ThreadBusy(run)) if run == winner), "{outcome:?}");
    }
    let rejected = store.create_message(&scope(), message(&thread, "x", NOW), false, &NOTHING).await;
    assert!(matches!(rejected, Err(Error::ThreadBusy(run)) if run == *winner));
});

both_stores!(a_finished_run_unlocks_its_thread, async |database: Database| {
    let store = database.open().await;
    let thread = thread();
    store.create_thread(&scope(), &thread, &[], &NOTHING).await.unwrap();
    let first = run(&thread);
    create(&store, &first).await.unwrap();

    commit(&store, &first, FIRST_VERSION, deadline()).await.unwrap();

    store.create_message(&scope(), message(&thread, "x", NOW), false, &NOTHING).await.unwrap();
    create(&store, &run(&thread)).await.unwrap();
});

both_stores!(a_write_with_a_stale_version_changes_nothing, async |database: Database| {
    let store = database.open().await;
    let thread = thread();
    store.create_thread(&scope(), &thread, &[], &NOTHING).await.unwrap();
    let run = run(&thread);
    let id = &run.spec.id;
    create(&store, &run).await.unwrap();
    let version = commit(&store, &run, FIRST_VERSION, Input::CancelRequested).await.unwrap();

    let late = commit(&store, &run, FIRST_VERSION, deadline()).await;

    assert!(matches!(late, Err(Error::Stale)));
    let written = message(&thread, "late", NOW);
    let saved = store.save_messages(&[SavedText { run: id, version: FIRST_VERSION, message: &written }]).await;
    assert_eq!(saved.unwrap(), []);
    let now = store.run(&scope(), &thread.id, id).await.unwrap().unwrap();
    assert_eq!((now.version, now.run.state), (version, RunState::Cancelling { started_at: None }));
});

both_stores!(due_runs_are_claimed_once_and_oldest_first, async |database: Database| {
    let (store, clock) = open(&database).await;
    let mut waiting = Vec::new();
    for number in 0..10 {
        waiting.push(create_run(&store, "").await.spec.id.clone());
        clock.advance(number % 2);
    }

    let first = claim(&store).await.unwrap();
    assert_eq!((&first.versioned.run.spec.id, first.attempts), (&waiting[0], 1));
    let rest = futures_util::future::join_all((0..12).map(|_| claim(&store))).await;
    let claimed: HashSet<_> = rest.into_iter().flatten().map(|claimed| claimed.versioned.run.spec.id.clone()).collect();
    assert_eq!(claimed, waiting[1..].iter().cloned().collect());

    clock.advance(14);
    assert_eq!(claim(&store).await, None, "leases are still valid");
    clock.advance(1);
    let again = claim(&store).await.unwrap();
    let (before, now) = (&first.versioned, &again.versioned);
    assert_eq!((now.version, now.lease, again.attempts), (before.version + 1, before.lease + 1, 2));
});

both_stores!(a_lease_is_never_shorter_than_requested, async |database: Database| {
    // This store uses the database's clock.
    let store = database.open().await;
    create_run(&store, "").await;

    let claimed = store.claim_run(Duration::from_secs(1), "", &[], u32::MAX).await.unwrap().unwrap();
    let started = std::time::Instant::now();
    while store.claim_run(LEASE, "", &[], u32::MAX).await.unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    assert!(started.elapsed() >= Duration::from_millis(950), "{:?} of {claimed:?}", started.elapsed());
});

both_stores!(a_lease_can_be_renewed_until_another_server_claims_the_run, async |database: Database| {
    let (store, clock) = open(&database).await;
    create_run(&store, "").await;
    create_run(&store, "").await;
    let (renewed_run, lost) = (claim(&store).await.unwrap(), claim(&store).await.unwrap());

    clock.advance(15);
    let renewed = store.renew_leases(JobKind::Run, &[lease(&renewed_run)], LEASE).await.unwrap();
    assert_eq!(renewed, [lease(&renewed_run).id]);
    let taken = claim(&store).await.unwrap();
    assert_eq!(taken.versioned.run.spec.id, lost.versioned.run.spec.id, "the other lease has expired");

    let all = [lease(&renewed_run), lease(&lost), lease(&taken)];
    let mut renewed = store.renew_leases(JobKind::Run, &all, LEASE).await.unwrap();
    renewed.sort();
    let mut valid = [lease(&renewed_run).id, lease(&taken).id];
    valid.sort();
    assert_eq!(renewed, valid);
    assert!(matches!(store.release_lease(JobKind::Run, &lease(&lost)).await, Err(Error::Stale)));
});

both_stores!(a_released_run_is_due_immediately_without_counting_the_attempt, async |database: Database| {
    let (store, _clock) = open(&database).await;
    create_run(&store, "").await;
    let claimed = claim(&store).await.unwrap();

    store.release_lease(JobKind::Run, &lease(&claimed)).await.unwrap();

    assert_eq!(claim(&store).await.unwrap().attempts, 1);
});

both_stores!(failed_attempts_are_counted_until_the_run_makes_progress, async |database: Database| {
    let (store, clock) = open(&database).await;
    create_run(&store, "").await;
    let first = claim(&store).await.unwrap();

    let pause = Duration::from_secs(2);
    store.record_failed_attempt(JobKind::Run, &lease(&first), "it broke", pause).await.unwrap();
    assert_eq!(claim(&store).await, None, "the run is not due before the pause ends");
    clock.advance(2);
    let second = claim(&store).await.unwrap();
    assert_eq!((second.attempts, second.last_failure.as_deref()), (2, Some("it broke")));

    let Versioned { run, version, .. } = second.versioned;
    let mut transition = machine::step(&Progress::new(run), Input::Claimed, NOW, ids()).unwrap();
    transition.made_progress = true;
    store.commit(transition::commit(&transition, version, NextLease::Due)).await.unwrap();
    let third = claim(&store).await.unwrap();
    assert_eq!((third.attempts, third.last_failure), (1, None));
});

both_stores!(owners_are_served_round_robin_and_each_in_order, async |database: Database| {
    let (store, _clock) = open(&database).await;
    let mut of_many = Vec::new();
    for _ in 0..5 {
        of_many.push(create_run(&store, "many").await.spec.id.clone());
    }
    let of_one = create_run(&store, "one").await.spec.id.clone();

    let mut order = Vec::new();
    let mut last = String::new();
    while let Some(claimed) = store.claim_run(LEASE, &last, &[], u32::MAX).await.unwrap() {
        last = claimed.owner;
        order.push(claimed.versioned.run.spec.id.clone());
    }

    let expected = [&of_many[0], &of_one, &of_many[1], &of_many[2], &of_many[3], &of_many[4]].map(Clone::clone);
    assert_eq!(order, expected);
});

both_stores!(a_run_that_this_server_already_drives_is_not_claimed, async |database: Database| {
    let (store, _clock) = open(&database).await;
    let run = create_run(&store, "").await;

    assert_eq!(store.claim_run(LEASE, "", std::slice::from_ref(&run.spec.id), u32::MAX).await.unwrap(), None);
    assert!(claim(&store).await.is_some());
});

both_stores!(a_run_with_more_attempts_than_asked_for_is_not_claimed, async |database: Database| {
    let (store, clock) = open(&database).await;
    create_run(&store, "").await;
    claim(&store).await.unwrap();
    clock.advance(LEASE.as_secs().cast_signed() + 1);

    assert_eq!(store.claim_run(LEASE, "", &[], 0).await.unwrap(), None);
    assert_eq!(store.claim_run(LEASE, "", &[], 1).await.unwrap().unwrap().attempts, 2);
});

both_stores!(a_row_written_by_a_newer_release_is_ignored, async |database: Database| {
    let (store, clock) = open(&database).await;
    let future = create_run(&store, "").await;
    let known = create_run(&store, "").await;
    database
        .execute(&format!(
            "update runs set state = '{{\"state\":{{\"hibernating\":{{}}}},\"usage\":{{}}}}' where id = '{}'",
            future.spec.id
        ))
        .await;
    let row = format!(
        "select version || '/' || claims || '/' || attempts || '/' || due_at from runs where id = '{}'",
        future.spec.id
    );
    let before = database.text(&row).await;

    let claimed = claim(&store).await.unwrap();
    assert_eq!(claimed.versioned.run.spec.id, known.spec.id);
    assert_eq!(claim(&store).await, None);
    assert_eq!(database.text(&row).await, before, "the row is unchanged");
    let listed = store.list_runs(&scope(), &future.spec.thread_id, &query(10, Order::Descending)).await.unwrap();
    assert_eq!(listed.data, []);
    clock.advance(10_000);
    let overdue = store.overdue_runs(Duration::ZERO, 10).await.unwrap();
    let overdue: Vec<_> = overdue.into_iter().map(|found| found.run.spec.id.clone()).collect();
    assert_eq!(overdue, std::slice::from_ref(&known.spec.id));
});

both_stores!(creating_the_same_run_twice_is_idempotent, async |database: Database| {
    let (store, _clock) = open(&database).await;
    let thread = thread();
    store.create_thread(&scope(), &thread, &[], &NOTHING).await.unwrap();
    let run = run(&thread);
    let question = [message(&thread, "x", NOW)];
    let new = NewRun { messages: &question, ..new_run(&run, Start::Due) };

    store.create_run(&new).await.unwrap();
    store.create_run(&new).await.unwrap();

    assert_eq!(conversation(&store, &thread).await.len(), 1);
    let with_thread = CreateThread::parse(json!({})).unwrap().into_thread(ids(), NOW).0;
    let run = self::run(&with_thread);
    let new = NewRun { thread: Some(&with_thread), ..new_run(&run, Start::Leased(LEASE)) };
    store.create_run(&new).await.unwrap();
    store.create_run(&new).await.unwrap();
    let stored = store.run(&scope(), &with_thread.id, &run.spec.id).await.unwrap().unwrap();
    assert_eq!((stored.lease, stored.due_at), (1, Some(Timestamp(1_015))));
});

both_stores!(a_cancelling_run_with_an_expired_lease_is_found, async |database: Database| {
    let (store, clock) = open(&database).await;
    let run = create_run(&store, "").await;
    let claimed = claim(&store).await.unwrap();
    commit(&store, &run, claimed.versioned.version, Input::CancelRequested).await.unwrap();

    assert_eq!(store.lapsed_cancelling_runs(10).await.unwrap(), [], "its driver still has the lease");
    clock.advance(15);
    let lapsed = store.lapsed_cancelling_runs(10).await.unwrap();
    assert_eq!(lapsed.iter().map(|found| &found.run.spec.id).collect::<Vec<_>>(), [&run.spec.id]);
});

both_stores!(the_prompt_context_is_read_in_pages_bounded_by_rows_and_bytes, async |database: Database| {
    let (store, _clock) = open(&database).await;
    let thread = thread();
    let texts: Vec<String> = (0..20).map(|number| format!("{number:02} {}", "x".repeat(1_000))).collect();
    let messages: Vec<Message> = texts.iter().map(|text| message(&thread, text, NOW)).collect();
    store.create_thread(&scope(), &thread, &messages, &NOTHING).await.unwrap();
    let run = run(&thread);

    for (rows, bytes, first_page) in [(7, usize::MAX, 7), (100, 4_000, 4), (100, 1, 1)] {
        let mut read = Vec::new();
        let mut before = None;
        let mut pages = Vec::new();
        loop {
            let ConversationPage { messages, next } =
                store.conversation_page(&scope(), &thread.id, &run.spec.id, before, rows, bytes).await.unwrap();
            pages.push(messages.len());
            read.extend(messages.iter().map(text));
            before = next;
            if before.is_none() {
                break;
            }
        }
        assert!(pages[0] <= first_page && pages[0] > 0, "{pages:?}");
        read.reverse();
        assert_eq!(read, texts);
    }
    let oldest = store.oldest_message(&scope(), &thread.id, &run.spec.id).await.unwrap().unwrap();
    assert_eq!(text(&oldest), texts[0]);
});

both_stores!(a_page_of_large_messages_ends_early, async |database: Database| {
    let (store, _clock) = open(&database).await;
    let thread = thread();
    store.create_thread(&scope(), &thread, &[], &NOTHING).await.unwrap();
    for _ in 0..4 {
        let mut large = message(&thread, "x", NOW);
        large.content = vec![assistd::api::message::Content::text("x".repeat(12 * 1024 * 1024))];
        store.create_message(&scope(), large, false, &NOTHING).await.unwrap();
    }

    let first = store.list_messages(&scope(), &thread.id, None, &query(10, Order::Ascending)).await.unwrap();
    assert_eq!((first.data.len(), first.has_more), (2, true));
    let after = first.data.last().map(|message| message.id.to_string());
    let rest = store
        .list_messages(&scope(), &thread.id, None, &PageQuery { after, ..query(10, Order::Ascending) })
        .await
        .unwrap();
    assert_eq!((rest.data.len(), rest.has_more), (2, false));
});

#[tokio::test]
async fn writes_that_fail_on_a_full_disk_are_not_acknowledged() {
    use assistd::api::Metadata;
    let Some((database, disk)) = Database::on_small_disk() else { return };
    let (store, _clock) = open(&database).await;
    let run = create_run(&store, "").await;
    let thread = run.spec.thread_id.clone();
    let written = store.create_message(&scope(), message_on(&thread, "x"), true, &NOTHING).await.unwrap();
    disk.fill();

    let mut rejected = 0;
    for number in 0..50 {
        let metadata: Metadata = serde_json::from_value(json!({"k": format!("{number} {}", "v".repeat(500))})).unwrap();
        match store.modify_message(&scope(), &thread, &written.id, &metadata).await {
            Ok(_) => {
                assert_eq!(store.message(&scope(), &thread, &written.id).await.unwrap().unwrap().metadata, metadata);
            }
            Err(error) => {
                assert!(matches!(error, Error::Unavailable(_)), "{error}");
                rejected += 1;
            }
        }
    }
    assert!(rejected > 0, "the disk was never full");
    assert!(matches!(store.claim_run(LEASE, "", &[], 9).await, Err(Error::Unavailable(_))), "a claim is a write");
    assert!(matches!(store.check().await, Err(Error::Unavailable(_))));
    store.close().await;
    drop(store);

    let store = database.open_at(Arc::new(Clock::manual(NOW))).await;
    assert!(
        store.message(&scope(), &thread, &written.id).await.unwrap().is_some(),
        "a store opens and reads on a full disk"
    );
    disk.free();
    store.check().await.unwrap();
    assert!(claim(&store).await.is_some());
}

fn message_on(thread: &assistd::api::ThreadId, text: &str) -> Message {
    let request = CreateMessage::parse(json!({"role": "user", "content": text})).unwrap();
    request.into_message(ids(), thread, NOW)
}

both_stores!(concurrent_messages_are_ordered_consistently, async |database: Database| {
    let store = database.open().await;
    let thread = thread();
    store.create_thread(&scope(), &thread, &[], &NOTHING).await.unwrap();

    let created = (0..50).map(|number| {
        let (store, message) = (store.clone(), message(&thread, &number.to_string(), Timestamp(1_000 - number % 7)));
        tokio::spawn(async move { store.create_message(&scope(), message, false, &NOTHING).await.unwrap() })
    });
    futures_util::future::join_all(created).await;

    let stored = conversation(&store, &thread).await;
    assert_eq!(stored.len(), 50);
    assert!(stored.is_sorted_by_key(|message| message.created_at));
    let again = conversation(&store, &thread).await;
    assert_eq!(stored, again);
});

both_stores!(concurrent_modifications_all_take_effect, async |database: Database| {
    use assistd::api::ModifyAssistant;
    let store = database.open().await;
    let assistant = assistant("before");
    store.create_assistant(&scope(), &assistant, &NOTHING).await.unwrap();
    let changes = [json!({"name": "after"}), json!({"description": "new"}), json!({"model": "other"})];

    let changes = changes.map(|change| {
        let (store, id) = (store.clone(), assistant.id.clone());
        tokio::spawn(async move {
            store.modify_assistant(&scope(), &id, &ModifyAssistant::parse(change).unwrap()).await.unwrap().unwrap()
        })
    });
    futures_util::future::join_all(changes).await;

    let stored = store.assistant(&scope(), &assistant.id).await.unwrap().unwrap();
    assert_eq!(
        (stored.name.as_deref(), stored.description.as_deref(), stored.model.as_str()),
        (Some("after"), Some("new"), "other")
    );
});

both_stores!(deleting_a_thread_deletes_its_messages_and_runs, async |database: Database| {
    let store = database.open().await;
    let (deleted, other) = (thread(), thread());
    for thread in [&deleted, &other] {
        store.create_thread(&scope(), thread, &[message(thread, "x", NOW)], &NOTHING).await.unwrap();
    }
    let run = run(&deleted);
    create(&store, &run).await.unwrap();

    assert!(store.delete_thread(&scope(), &deleted.id).await.unwrap());

    assert!(!store.delete_thread(&scope(), &deleted.id).await.unwrap());
    assert_eq!(store.thread(&scope(), &deleted.id).await.unwrap(), None);
    assert_eq!(conversation(&store, &deleted).await, []);
    assert_eq!(store.run(&scope(), &deleted.id, &run.spec.id).await.unwrap(), None);
    assert_eq!(claim(&store).await, None);
    assert!(matches!(commit(&store, &run, FIRST_VERSION, Input::Claimed).await, Err(Error::Stale)));
    assert!(matches!(
        store.create_message(&scope(), message(&deleted, "x", NOW), false, &NOTHING).await,
        Err(Error::NoThread)
    ));
    assert_eq!(conversation(&store, &other).await.len(), 1);
});

both_stores!(message_metadata_survives_a_concurrent_text_update, async |database: Database| {
    use assistd::api::Metadata;
    let store = database.open().await;
    let thread = thread();
    store.create_thread(&scope(), &thread, &[], &NOTHING).await.unwrap();
    let queued = run(&thread);
    create(&store, &queued).await.unwrap();
    let mut progress = Progress::new(queued);
    let mut version = FIRST_VERSION;
    for input in [Input::Claimed, Input::TextStarted] {
        let transition = machine::step(&progress, input, NOW, ids()).unwrap();
        version = store.commit(transition::commit(&transition, version, NextLease::Keep)).await.unwrap().version;
        progress = transition.progress;
    }
    let id = progress.message.as_ref().unwrap().id.clone();
    let metadata: Metadata = serde_json::from_value(json!({"k": "v"})).unwrap();

    store.modify_message(&scope(), &thread.id, &id, &metadata).await.unwrap().unwrap();
    progress.append("more");
    let written = progress.message.as_ref().unwrap();
    store.save_messages(&[SavedText { run: &progress.run.spec.id, version, message: written }]).await.unwrap();

    let stored = store.message(&scope(), &thread.id, &id).await.unwrap().unwrap();
    assert_eq!((stored.metadata, stored.content), (metadata, progress.message.unwrap().content));
});

both_stores!(waiting_runs_are_promoted_in_order, async |database: Database| {
    let (store, clock) = open(&database).await;
    let thread = thread();
    store.create_thread(&scope(), &thread, &[], &NOTHING).await.unwrap();
    let runs: Vec<Run> = (0..4).map(|_| run(&thread)).collect();
    create(&store, &runs[0]).await.unwrap();
    for run in &runs[1..] {
        store.create_run(&new_run(run, Start::Waiting)).await.unwrap();
    }

    assert_eq!(store.promote_run(&thread.id).await.unwrap(), None, "one run is active");
    assert_eq!(store.stalled_threads(10).await.unwrap(), []);
    commit(&store, &runs[1], FIRST_VERSION, Input::CancelRequested).await.unwrap();
    let cancelling = store.run(&scope(), &thread.id, &runs[1].spec.id).await.unwrap().unwrap();
    commit(&store, &cancelling.run, cancelling.version, Input::Stopped { usage: Usage::default() }).await.unwrap();
    commit(&store, &runs[0], FIRST_VERSION, deadline()).await.unwrap();

    assert_eq!(store.stalled_threads(10).await.unwrap(), std::slice::from_ref(&thread.id));
    let late = create(&store, &run(&thread)).await;
    assert!(
        matches!(late, Err(Error::ThreadBusy(first)) if first == runs[2].spec.id),
        "a new run cannot precede waiting runs"
    );
    assert_eq!(store.promote_run(&thread.id).await.unwrap(), Some(runs[2].spec.id.clone()));
    assert_eq!(store.promote_run(&thread.id).await.unwrap(), None);
    let claimed = claim(&store).await.unwrap();
    assert_eq!(claimed.versioned.run.spec.id, runs[2].spec.id);
    assert_eq!(claim(&store).await, None, "the next run still waits");
    let rejected = store.create_message(&scope(), message(&thread, "x", NOW), false, &NOTHING).await;
    assert!(matches!(rejected, Err(Error::ThreadBusy(run)) if run == runs[2].spec.id));

    clock.advance(4_000);
    let overdue = store.overdue_runs(Duration::ZERO, 10).await.unwrap();
    let overdue: HashSet<_> = overdue.into_iter().map(|found| found.run.spec.id.clone()).collect();
    assert_eq!(overdue, HashSet::from([runs[2].spec.id.clone(), runs[3].spec.id.clone()]));
});

both_stores!(a_run_answers_the_messages_that_existed_when_it_was_created, async |database: Database| {
    let store = database.open().await;
    let thread = thread();
    store.create_thread(&scope(), &thread, &[message(&thread, "1", NOW)], &NOTHING).await.unwrap();
    let (first, second) = (run(&thread), run(&thread));
    create(&store, &first).await.unwrap();
    let question = [message(&thread, "2", NOW)];
    store.create_run(&NewRun { messages: &question, ..new_run(&second, Start::Waiting) }).await.unwrap();
    store.create_message(&scope(), message(&thread, "3", NOW), true, &NOTHING).await.unwrap();
    let read = async |run: &Run, newest: u32| context(&store, run, newest).await.iter().map(text).collect::<String>();

    assert_eq!(read(&first, 99).await, "1");
    let mut progress = Progress::new(first.clone());
    let mut version = FIRST_VERSION;
    for input in [Input::Claimed, Input::TextStarted, deadline()] {
        let mut transition = machine::step(&progress, input, NOW, ids()).unwrap();
        if let Some(message) = transition.message.as_mut().filter(|message| message.content.is_empty()) {
            message.content.push(assistd::api::message::Content::text("a"));
        }
        version = store.commit(transition::commit(&transition, version, NextLease::Keep)).await.unwrap().version;
        progress = transition.progress;
    }

    assert_eq!(read(&second, 99).await, "1a2", "an answer follows its question in the context");
    assert_eq!(read(&second, 2).await, "a2");
    assert_eq!(read(&run(&thread), 99).await, "1a23");
    let listed = store.list_messages(&scope(), &thread.id, None, &query(9, Order::Ascending)).await.unwrap();
    assert_eq!(listed.data.iter().map(text).collect::<String>(), "123a", "lists are ordered by time");
});
