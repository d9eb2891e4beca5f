//! The store's contract, on both databases.

use std::collections::HashSet;
use std::sync::Arc;

use assistd::api::page::Order;
use assistd::api::rule::Request as _;
use assistd::api::run::RunState;
use assistd::api::tool::ToolResources;
use assistd::api::{
    Assistant, CreateAssistant, CreateMessage, CreateRun, CreateThread, Ids, Message, PageQuery, Run, Thread, Timestamp,
};
use assistd::runs::machine::{self, Input, Progress};
use assistd::store::{Error, FIRST_VERSION, NewRun, Store};
use serde_json::json;

use crate::both_stores;
use crate::support::database::Database;

const NOW: Timestamp = Timestamp(1_000);

fn ids() -> &'static Ids {
    static IDS: std::sync::OnceLock<Ids> = std::sync::OnceLock::new();
    IDS.get_or_init(Ids::unique_everywhere)
}

fn assistant(name: &str) -> Assistant {
    CreateAssistant::parse(json!({"model": "m", "name": name})).unwrap().into_assistant(ids().make(), NOW)
}

fn thread() -> Thread {
    CreateThread::parse(json!({})).unwrap().into_thread(ids().make(), NOW).0
}

fn message(thread: &Thread, text: &str, at: Timestamp) -> Message {
    let request = CreateMessage::parse(json!({"role": "user", "content": text})).unwrap();
    request.into_message(ids(), &thread.id, at)
}

fn run(thread: &Thread) -> Run {
    let assistant = assistant("a");
    let request = CreateRun::parse(json!({"assistant_id": assistant.id})).unwrap();
    request.into_run(ids(), &thread.id, &assistant, ToolResources::default(), NOW, 600).0
}

async fn create(store: &Arc<dyn Store>, run: &Run, due_at: Timestamp) -> Result<(), Error> {
    store.create_run(&NewRun { run, thread: None, messages: &[], due_at: Some(due_at) }).await
}

/// A commit of what `input` makes of a run that nothing was done of.
async fn commit(store: &Arc<dyn Store>, run: &Run, version: i64, input: Input) -> Result<i64, Error> {
    let transition = machine::step(&Progress::new(run.clone()), input, NOW, ids()).unwrap();
    let due_at = transition.progress.run.state.needs_executor().then_some(NOW);
    store.commit(transition.commit(version, due_at)).await.map(|committed| committed.version)
}

/// All of a thread, as a run that nobody knows would read it.
async fn conversation(store: &Arc<dyn Store>, thread: &Thread) -> Vec<Message> {
    store.conversation(&thread.id, &ids().make(), None).await.unwrap()
}

fn text(message: &Message) -> String {
    serde_json::to_value(&message.content).unwrap()[0]["text"]["value"].as_str().unwrap().to_owned()
}

fn query(limit: u32, order: Order) -> PageQuery {
    PageQuery { limit, order, ..PageQuery::default() }
}

both_stores!(values_come_back_as_they_were_kept, async |database: Database| {
    let store = database.open().await;
    let assistant = assistant("NUL \u{0} and \u{1F600}");
    let thread = thread();
    store.create_assistant(&assistant).await.unwrap();
    store.create_thread(&thread, &[]).await.unwrap();
    let message = store.create_message(message(&thread, "NUL \u{0}", NOW), false).await.unwrap();
    let run = run(&thread);
    create(&store, &run, NOW).await.unwrap();

    assert_eq!(store.assistant(&assistant.id).await.unwrap(), Some(assistant));
    assert_eq!(store.thread(&thread.id).await.unwrap(), Some(thread.clone()));
    assert_eq!(store.message(&thread.id, &message.id).await.unwrap(), Some(message));
    assert_eq!(store.run(&thread.id, &run.spec.id).await.unwrap().unwrap().run, run);
});

both_stores!(equal_times_keep_the_order_of_insertion, async |database: Database| {
    let store = database.open().await;
    for number in 0..30 {
        store.create_assistant(&assistant(&number.to_string())).await.unwrap();
    }

    let names = |page: assistd::api::Page<Assistant>| -> Vec<String> {
        page.data.into_iter().map(|assistant| assistant.name.unwrap()).collect()
    };
    let newest = names(store.list_assistants(&query(3, Order::Descending)).await.unwrap());
    let oldest = names(store.list_assistants(&query(3, Order::Ascending)).await.unwrap());
    assert_eq!(
        (newest, oldest),
        (vec!["29".into(), "28".into(), "27".into()], vec!["0".into(), "1".into(), "2".into()])
    );
});

both_stores!(pages_join_without_gap_or_repeat_in_both_directions, async |database: Database| {
    let store = database.open().await;
    let thread = thread();
    store.create_thread(&thread, &[]).await.unwrap();
    for number in 0..7 {
        store.create_message(message(&thread, &number.to_string(), NOW), false).await.unwrap();
    }
    let list = async |query: PageQuery| {
        let page = store.list_messages(&thread.id, None, &query).await.unwrap();
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
    assert_eq!((back.as_str(), more), ("54", true), "the page that ends at the cursor");
    let (full, more, ..) = list(query(7, Order::Ascending)).await;
    assert_eq!((full.as_str(), more), ("0123456", false), "a full last page has no more behind it");
    let (before, more, ..) = list(PageQuery { before: last, ..query(20, Order::Ascending) }).await;
    assert_eq!((before.as_str(), more), ("0", false));
    let unknown = PageQuery { after: Some("msg_x".into()), ..PageQuery::default() };
    let refused = store.list_messages(&thread.id, None, &unknown).await;
    assert!(matches!(refused, Err(Error::NoCursor(id)) if id == "msg_x"));
});

both_stores!(a_clock_that_is_behind_moves_no_message, async |database: Database| {
    let store = database.open().await;
    let thread = thread();
    store.create_thread(&thread, &[message(&thread, "0", NOW), message(&thread, "1", NOW)]).await.unwrap();

    store.create_message(message(&thread, "2", Timestamp(2_000)), false).await.unwrap();
    let behind = store.create_message(message(&thread, "3", Timestamp(500)), false).await.unwrap();
    let run = run(&thread);
    let late = [message(&thread, "4", Timestamp(400))];
    store.create_run(&NewRun { run: &run, thread: None, messages: &late, due_at: Some(NOW) }).await.unwrap();

    let kept = conversation(&store, &thread).await;
    assert_eq!(kept.iter().map(text).collect::<String>(), "01234");
    let newest = store.conversation(&thread.id, &run.spec.id, Some(2)).await.unwrap();
    assert_eq!(newest.iter().map(text).collect::<String>(), "34");
    let times: Vec<i64> = kept.iter().map(|message| message.created_at.0).collect();
    assert_eq!(times, [1_000, 1_000, 2_000, 2_000, 2_000]);
    assert_eq!(behind.created_at, Timestamp(2_000), "the caller hears of the time that was kept");
});

both_stores!(of_a_hundred_runs_at_once_one_is_created, async |database: Database| {
    let store = database.open().await;
    let thread = thread();
    store.create_thread(&thread, &[]).await.unwrap();

    let attempts = (0..100).map(|_| {
        let (store, run) = (store.clone(), run(&thread));
        tokio::spawn(async move { (create(&store, &run, NOW).await, run.spec.id.clone()) })
    });
    let outcomes = futures_util::future::join_all(attempts).await;

    let (won, lost): (Vec<_>, Vec<_>) =
        outcomes.into_iter().map(Result::unwrap).partition(|(outcome, _)| outcome.is_ok());
    assert_eq!(won.len(), 1);
    let winner = &won[0].1;
    for (outcome, _) in lost {
        assert!(matches!(&outcome, Err(Error::ThreadBusy(run)) if run == winner), "{outcome:?}");
    }
    let refused = store.create_message(message(&thread, "x", NOW), false).await;
    assert!(matches!(refused, Err(Error::ThreadBusy(run)) if run == *winner));
});

both_stores!(a_run_that_is_over_frees_its_thread, async |database: Database| {
    let store = database.open().await;
    let thread = thread();
    store.create_thread(&thread, &[]).await.unwrap();
    let first = run(&thread);
    create(&store, &first, NOW).await.unwrap();

    commit(&store, &first, FIRST_VERSION, Input::DeadlinePassed).await.unwrap();

    store.create_message(message(&thread, "x", NOW), false).await.unwrap();
    create(&store, &run(&thread), NOW).await.unwrap();
});

both_stores!(whoever_was_overtaken_writes_nothing, async |database: Database| {
    let store = database.open().await;
    let thread = thread();
    store.create_thread(&thread, &[]).await.unwrap();
    let run = run(&thread);
    let id = &run.spec.id;
    create(&store, &run, NOW).await.unwrap();
    let version = commit(&store, &run, FIRST_VERSION, Input::CancelRequested).await.unwrap();

    let late = commit(&store, &run, FIRST_VERSION, Input::DeadlinePassed).await;

    assert!(matches!(late, Err(Error::Stale)));
    assert!(matches!(store.keep(id, FIRST_VERSION, NOW, None).await, Err(Error::Stale)));
    let now = store.run(&thread.id, id).await.unwrap().unwrap();
    assert_eq!((now.version, now.run.state), (version, RunState::Cancelling { started_at: None }));
});

both_stores!(each_due_run_is_claimed_once_and_the_longest_wait_first, async |database: Database| {
    let store = database.open().await;
    let mut waiting = Vec::new();
    for number in 0..10 {
        let thread = thread();
        store.create_thread(&thread, &[]).await.unwrap();
        let run = run(&thread);
        create(&store, &run, Timestamp(900 + number / 5)).await.unwrap();
        waiting.push(run.spec.id.clone());
    }
    let claim = |until: i64| store.claim_run(NOW, Timestamp(until));

    let first = claim(1_015).await.unwrap().unwrap();
    assert_eq!((&first.run.spec.id, first.due_at), (&waiting[0], Some(Timestamp(1_015))));
    let rest = futures_util::future::join_all((0..12).map(|_| claim(1_015))).await;
    let claimed: HashSet<_> =
        rest.into_iter().filter_map(|claimed| claimed.unwrap()).map(|claimed| claimed.run.spec.id.clone()).collect();
    assert_eq!(claimed, waiting[1..].iter().cloned().collect());

    assert_eq!(store.claim_run(Timestamp(1_014), Timestamp(1_100)).await.unwrap(), None, "leases hold");
    let again = store.claim_run(Timestamp(1_015), Timestamp(1_100)).await.unwrap().unwrap();
    assert_eq!(again.version, first.version + 1, "a lapsed lease is fenced off");
});

both_stores!(a_released_run_is_due_at_once_and_a_kept_one_later, async |database: Database| {
    let store = database.open().await;
    let thread = thread();
    store.create_thread(&thread, &[]).await.unwrap();
    let run = run(&thread);
    create(&store, &run, Timestamp(1_015)).await.unwrap();
    let id = &run.spec.id;

    store.keep(id, FIRST_VERSION, Timestamp(1_030), None).await.unwrap();
    assert_eq!(store.claim_run(Timestamp(1_020), Timestamp(1_040)).await.unwrap(), None);
    store.release(id, FIRST_VERSION, NOW).await.unwrap();
    assert!(store.claim_run(NOW, Timestamp(1_040)).await.unwrap().is_some());
});

both_stores!(messages_made_at_once_all_get_their_place, async |database: Database| {
    let store = database.open().await;
    let thread = thread();
    store.create_thread(&thread, &[]).await.unwrap();

    let made = (0..50).map(|number| {
        let (store, message) = (store.clone(), message(&thread, &number.to_string(), Timestamp(1_000 - number % 7)));
        tokio::spawn(async move { store.create_message(message, false).await.unwrap() })
    });
    futures_util::future::join_all(made).await;

    let kept = conversation(&store, &thread).await;
    assert_eq!(kept.len(), 50);
    assert!(kept.is_sorted_by_key(|message| message.created_at));
    let again = conversation(&store, &thread).await;
    assert_eq!(kept, again);
});

both_stores!(changes_made_at_once_both_take_effect, async |database: Database| {
    use assistd::api::ModifyAssistant;
    let store = database.open().await;
    let assistant = assistant("before");
    store.create_assistant(&assistant).await.unwrap();
    let changes = [json!({"name": "after"}), json!({"description": "new"}), json!({"model": "other"})];

    let changes = changes.map(|change| {
        let (store, id) = (store.clone(), assistant.id.clone());
        tokio::spawn(async move {
            store.modify_assistant(&id, &ModifyAssistant::parse(change).unwrap()).await.unwrap().unwrap()
        })
    });
    futures_util::future::join_all(changes).await;

    let kept = store.assistant(&assistant.id).await.unwrap().unwrap();
    assert_eq!(
        (kept.name.as_deref(), kept.description.as_deref(), kept.model.as_str()),
        (Some("after"), Some("new"), "other")
    );
});

both_stores!(a_deleted_thread_takes_all_that_is_its_own_along, async |database: Database| {
    let store = database.open().await;
    let (doomed, other) = (thread(), thread());
    for thread in [&doomed, &other] {
        store.create_thread(thread, &[message(thread, "x", NOW)]).await.unwrap();
    }
    let run = run(&doomed);
    create(&store, &run, NOW).await.unwrap();

    assert!(store.delete_thread(&doomed.id).await.unwrap());

    assert!(!store.delete_thread(&doomed.id).await.unwrap());
    assert_eq!(store.thread(&doomed.id).await.unwrap(), None);
    assert_eq!(conversation(&store, &doomed).await, []);
    assert_eq!(store.run(&doomed.id, &run.spec.id).await.unwrap(), None);
    assert_eq!(store.claim_run(NOW, NOW).await.unwrap(), None);
    assert!(matches!(commit(&store, &run, FIRST_VERSION, Input::Claimed).await, Err(Error::Stale)));
    assert!(matches!(store.create_message(message(&doomed, "x", NOW), false).await, Err(Error::NoThread)));
    assert_eq!(conversation(&store, &other).await.len(), 1);
});

both_stores!(a_clients_change_to_a_message_survives_its_run_writing_it, async |database: Database| {
    use assistd::api::Metadata;
    let store = database.open().await;
    let thread = thread();
    store.create_thread(&thread, &[]).await.unwrap();
    let queued = run(&thread);
    create(&store, &queued, NOW).await.unwrap();
    let mut progress = Progress::new(queued);
    let mut version = FIRST_VERSION;
    for input in [Input::Claimed, Input::TextBegan] {
        let transition = machine::step(&progress, input, NOW, ids()).unwrap();
        version = store.commit(transition.commit(version, Some(NOW))).await.unwrap().version;
        progress = transition.progress;
    }
    let id = progress.message.as_ref().unwrap().id.clone();
    let metadata: Metadata = serde_json::from_value(json!({"k": "v"})).unwrap();

    store.modify_message(&thread.id, &id, &metadata).await.unwrap().unwrap();
    progress.append("more");
    store.keep(&progress.run.spec.id, version, NOW, progress.message.as_ref()).await.unwrap();

    let kept = store.message(&thread.id, &id).await.unwrap().unwrap();
    assert_eq!((kept.metadata, kept.content), (metadata, progress.message.unwrap().content));
});

both_stores!(runs_that_wait_have_their_turns_in_order, async |database: Database| {
    let store = database.open().await;
    let thread = thread();
    store.create_thread(&thread, &[]).await.unwrap();
    let runs: Vec<Run> = (0..4).map(|_| run(&thread)).collect();
    create(&store, &runs[0], NOW).await.unwrap();
    for run in &runs[1..] {
        store.create_run(&NewRun { run, thread: None, messages: &[], due_at: None }).await.unwrap();
    }

    assert_eq!(store.promote_run(&thread.id, NOW).await.unwrap(), None, "one is active");
    assert_eq!(store.stalled_threads(10).await.unwrap(), []);
    commit(&store, &runs[1], FIRST_VERSION, Input::CancelRequested).await.unwrap();
    let cancelling = store.run(&thread.id, &runs[1].spec.id).await.unwrap().unwrap();
    commit(&store, &cancelling.run, cancelling.version, Input::Stopped).await.unwrap();
    commit(&store, &runs[0], FIRST_VERSION, Input::DeadlinePassed).await.unwrap();

    assert_eq!(store.stalled_threads(10).await.unwrap(), std::slice::from_ref(&thread.id));
    let late = create(&store, &run(&thread), NOW).await;
    assert!(matches!(late, Err(Error::ThreadBusy(first)) if first == runs[2].spec.id), "nobody jumps the queue");
    assert_eq!(store.promote_run(&thread.id, NOW).await.unwrap(), Some(runs[2].spec.id.clone()));
    assert_eq!(store.promote_run(&thread.id, NOW).await.unwrap(), None);
    let claimed = store.claim_run(NOW, Timestamp(1_015)).await.unwrap().unwrap();
    assert_eq!(claimed.run.spec.id, runs[2].spec.id);
    assert_eq!(store.claim_run(NOW, Timestamp(1_015)).await.unwrap(), None, "the next one waits");
    let refused = store.create_message(message(&thread, "x", NOW), false).await;
    assert!(matches!(refused, Err(Error::ThreadBusy(run)) if run == runs[2].spec.id));

    let overdue = store.overdue_runs(Timestamp(5_000), 10).await.unwrap();
    let overdue: HashSet<_> = overdue.into_iter().map(|found| found.run.spec.id.clone()).collect();
    assert_eq!(overdue, HashSet::from([runs[2].spec.id.clone(), runs[3].spec.id.clone()]));
});

both_stores!(a_run_answers_what_was_there_when_it_was_created, async |database: Database| {
    let store = database.open().await;
    let thread = thread();
    store.create_thread(&thread, &[message(&thread, "1", NOW)]).await.unwrap();
    let (first, second) = (run(&thread), run(&thread));
    create(&store, &first, NOW).await.unwrap();
    let question = [message(&thread, "2", NOW)];
    store.create_run(&NewRun { run: &second, thread: None, messages: &question, due_at: None }).await.unwrap();
    store.create_message(message(&thread, "3", NOW), true).await.unwrap();
    let read = async |run: &Run, newest: Option<usize>| {
        let kept = store.conversation(&thread.id, &run.spec.id, newest).await.unwrap();
        kept.iter().map(text).collect::<String>()
    };

    assert_eq!(read(&first, None).await, "1");
    let mut progress = Progress::new(first.clone());
    let mut version = FIRST_VERSION;
    for input in [Input::Claimed, Input::TextBegan, Input::DeadlinePassed] {
        let mut transition = machine::step(&progress, input, NOW, ids()).unwrap();
        if let Some(message) = transition.message.as_mut().filter(|message| message.content.is_empty()) {
            message.content.push(assistd::api::message::Content::text("a"));
        }
        version = store.commit(transition.commit(version, Some(NOW))).await.unwrap().version;
        progress = transition.progress;
    }

    assert_eq!(read(&second, None).await, "1a2", "the answer stands behind its question, not where it was written");
    assert_eq!(read(&second, Some(2)).await, "a2");
    assert_eq!(read(&run(&thread), None).await, "1a23");
    let listed = store.list_messages(&thread.id, None, &query(9, Order::Ascending)).await.unwrap();
    assert_eq!(listed.data.iter().map(text).collect::<String>(), "123a", "lists tell when");
});
