//! The usage ledger.

use assistd::api::organization::usage::{CallKind, DAY_S, ModelCall, UsageKind, UsageQuery};
use assistd::api::run::{ErrorCode, FinishReason, LastError};
use assistd::api::{ApiKeyId, ProjectId};
use assistd::runs::machine::Transition;
use serde_json::Value;

use super::*;

/// The start of a day.
const DAY: i64 = 20_000 * DAY_S;

fn call(project: &str, key: Option<&str>, model: &str, tokens: u32, stood: bool) -> ModelCall {
    ModelCall {
        kind: CallKind::Completions,
        scope: Scope::of(ProjectId::from_stored(project)),
        api_key_id: key.map(ApiKeyId::from_stored),
        origin: None,
        model: model.to_owned(),
        input_tokens: tokens,
        cached_tokens: tokens / 2,
        output_tokens: tokens * 2,
        stood,
    }
}

fn parse(kind: CallKind, text: &str, now: i64) -> UsageQuery {
    let pairs = text.split('&').map(|pair| pair.split_once('=').unwrap());
    UsageQuery::parse(kind, pairs, Timestamp(now)).unwrap()
}

/// Returns the response to a query of completions.
async fn usage(store: &Arc<dyn Store>, text: &str) -> Value {
    json!(store.usage(&parse(CallKind::Completions, text, DAY + DAY_S)).await.unwrap())
}

/// Returns each result as its bucket, these members, and its number of requests.
fn results(page: &Value, members: &[&str]) -> Vec<Value> {
    let buckets = page["data"].as_array().unwrap().iter();
    let of = |bucket: &Value| {
        let start = bucket["start_time"].as_i64().unwrap() - DAY;
        let values = |result: &Value| {
            let named = members.iter().map(|name| result[name].clone());
            Value::Array(
                [json!(start)].into_iter().chain(named).chain([result["num_model_requests"].clone()]).collect(),
            )
        };
        bucket["results"].as_array().unwrap().iter().map(values).collect::<Vec<_>>()
    };
    buckets.flat_map(of).collect()
}

/// Opens a store whose clock shows the start of [`DAY`].
async fn open(database: &Database) -> (Arc<dyn Store>, Arc<Clock>) {
    let clock = Arc::new(Clock::manual(Timestamp(DAY)));
    (database.open_at(clock.clone()).await, clock)
}

async fn record(store: &Arc<dyn Store>, clock: &Clock, at: i64, call: ModelCall) {
    clock.advance(DAY + at - clock.now().0);
    store.record_call(&call).await.unwrap();
}

both_stores!(usage_is_summed_by_bucket_and_group, async |database: Database| {
    let (store, clock) = open(&database).await;
    record(&store, &clock, 5, call("proj_a", Some("key_1"), "m", 10, true)).await;
    record(&store, &clock, 59, call("proj_a", Some("key_2"), "m", 20, false)).await;
    record(&store, &clock, 60, call("proj_a", None, "n", 40, true)).await;
    record(&store, &clock, 3_600, call("proj_b", None, "m\0", 80, true)).await;
    let embedding = ModelCall { kind: CallKind::Embeddings, ..call("proj_a", None, "e", 1, true) };
    record(&store, &clock, 3_600, embedding).await;

    let all = usage(&store, &format!("start_time={DAY}")).await;
    assert_eq!(results(&all, &["input_tokens", "input_cached_tokens", "output_tokens"]), [json!([0, 150, 75, 300, 4])]);
    assert_eq!(all["data"][0]["results"][0]["project_id"], Value::Null);
    let minutes = usage(&store, &format!("start_time={}&bucket_width=1m&project_ids=proj_a", DAY + 30)).await;
    assert_eq!(results(&minutes, &["input_tokens"]), [json!([0, 20, 1]), json!([60, 40, 1])], "the start is exact");
    let groups = "group_by=project_id&group_by=api_key_id&group_by[]=model";
    let grouped = usage(&store, &format!("start_time={DAY}&bucket_width=1h&limit=2&{groups}")).await;
    assert_eq!(
        results(&grouped, &["project_id", "api_key_id", "model"]),
        [
            json!([0, "proj_a", null, "n", 1]),
            json!([0, "proj_a", "key_1", "m", 1]),
            json!([0, "proj_a", "key_2", "m", 1]),
            json!([3_600, "proj_b", null, "m\u{fffd}", 1]),
        ]
    );
    for (filter, requests) in [
        ("project_ids=proj_b", 1),
        ("project_ids[]=proj_a&project_ids[]=proj_b", 4),
        ("api_key_ids=key_1&api_key_ids=key_2", 2),
        ("models=m&project_ids=proj_a", 2),
        ("batch=false", 4),
    ] {
        let page = usage(&store, &format!("start_time={DAY}&{filter}")).await;
        assert_eq!(results(&page, &[]), [json!([0, requests])], "{filter}");
    }
    for filter in ["user_ids=user_1", "batch=true", "models=x"] {
        assert_eq!(results(&usage(&store, &format!("start_time={DAY}&{filter}")).await, &[]), [] as [Value; 0]);
    }
    let query = parse(CallKind::Embeddings, &format!("start_time={DAY}&group_by=model"), DAY + DAY_S);
    let embeddings = json!(store.usage(&query).await.unwrap());
    assert_eq!(results(&embeddings, &["model", "input_tokens"]), [json!([0, "e", 1, 1])]);
});

both_stores!(a_page_has_the_buckets_of_its_limit_also_without_usage, async |database: Database| {
    let (store, clock) = open(&database).await;
    for at in [0, 130, 190] {
        record(&store, &clock, at, call("proj_a", None, "m", 1, true)).await;
    }
    let query = format!("start_time={DAY}&end_time={}&bucket_width=1m&limit=3", DAY + 250);

    let first = usage(&store, &query).await;
    let next = first["next_page"].as_str().unwrap();
    let second = usage(&store, &format!("{query}&page={next}")).await;

    let starts = |page: &Value| {
        let buckets = page["data"].as_array().unwrap().iter();
        buckets.map(|bucket| bucket["start_time"].as_i64().unwrap() - DAY).collect::<Vec<_>>()
    };
    assert_eq!((starts(&first), starts(&second)), (vec![0, 60, 120], vec![180, 240]));
    assert_eq!(results(&first, &[]), [json!([0, 1]), json!([120, 1])]);
    assert_eq!(results(&second, &[]), [json!([180, 1])]);
    assert_eq!((&first["has_more"], &second["has_more"]), (&json!(true), &json!(false)));
    assert_eq!(second["next_page"], Value::Null);
});

both_stores!(rolled_up_rows_have_the_same_sums_by_day, async |database: Database| {
    let (store, clock) = open(&database).await;
    for (index, at) in [0, 7, 7, 3_600, DAY_S - 1, DAY_S, DAY_S + 5].into_iter().enumerate() {
        let key = (index % 2 == 0).then_some("key_1");
        record(&store, &clock, at, call("proj_a", key, "m", 1 << index, index != 2)).await;
    }
    let query = format!("start_time={DAY}&end_time={}&group_by=api_key_id&group_by=model", DAY + 2 * DAY_S);
    let before = usage(&store, &query).await;

    let mut replaced = Vec::new();
    for _ in 0..4 {
        replaced.push(store.roll_up_calls(Timestamp(DAY + DAY_S), 2).await.unwrap());
    }

    assert_eq!(replaced, [2, 2, 0, 0], "the row at the start of the day is already like the sum of a day");
    assert_eq!(usage(&store, &query).await, before);
    let (old, new) = tokio::join!(
        store.roll_up_calls(Timestamp(DAY + 2 * DAY_S), 100),
        store.roll_up_calls(Timestamp(DAY + 2 * DAY_S), 100)
    );
    assert_eq!(old.unwrap() + new.unwrap(), 1, "a row is replaced once");
    assert_eq!(usage(&store, &query).await, before);
});

/// Commits a transition, and returns the version.
async fn write(store: &Arc<dyn Store>, transition: &Transition, version: i64) -> Result<i64, Error> {
    let next_lease = if transition.progress.run.state.has_ended() { NextLease::None } else { NextLease::Keep };
    store.commit(transition::commit(transition, version, next_lease)).await.map(|committed| committed.version)
}

both_stores!(a_commit_records_its_calls_once, async |database: Database| {
    let (store, _clock) = open(&database).await;
    let run = create_run(&store, "").await;
    let spent = Usage::counted(30, 4);
    let mut progress = Progress::new(run.clone());
    let mut version = FIRST_VERSION;
    // The second claim counts a lost call, which must survive in the database until it is recorded.
    for input in [Input::Claimed, Input::CallsStarted, Input::Claimed] {
        let transition = machine::step(&progress, input, NOW, ids()).unwrap();
        version = write(&store, &transition, version).await.unwrap();
        progress = transition.progress;
    }
    let stored = store.run(&scope(), &run.spec.thread_id, &run.spec.id).await.unwrap().unwrap();
    assert_eq!((stored.run.lost_calls, stored.version), (1, version));
    let reply = Input::ModelReplied { usage: spent, finish: FinishReason::Stop, calls: Vec::new(), replay: None };
    let ended = machine::step(&Progress { run: stored.run, ..progress }, reply, NOW, ids()).unwrap();

    let stale = write(&store, &ended, version - 1).await;
    write(&store, &ended, version).await.unwrap();
    let repeated = write(&store, &ended, version).await;

    assert!(matches!((stale, repeated), (Err(Error::Stale), Err(Error::Stale))));
    let page =
        usage(&store, &format!("start_time={DAY}&group_by=thread_id&group_by=assistant_id&group_by=model")).await;
    assert_eq!(
        results(&page, &["thread_id", "assistant_id", "model", "input_tokens", "output_tokens"]),
        [json!([0, run.spec.thread_id, run.spec.assistant_id, "m", 60, 4, 2])]
    );
});

both_stores!(a_commit_records_calls_and_removes_steps_together, async |database: Database| {
    let (store, _clock) = open(&database).await;
    let run = create_run(&store, "").await;
    let begun = machine::step(&Progress::new(run), Input::Claimed, NOW, ids()).unwrap();
    let begun = begun.progress;
    let calling = machine::step(&begun, Input::CallsStarted, NOW, ids()).unwrap();
    let version = write(&store, &calling, FIRST_VERSION).await.unwrap();
    let claimed = machine::step(&calling.progress, Input::Claimed, NOW, ids()).unwrap();
    let error = LastError { code: ErrorCode::ServerError, message: "broke".to_owned() };
    let failed =
        machine::step(&claimed.progress, Input::Failed { error, usage: Usage::counted(5, 1) }, NOW, ids()).unwrap();

    write(&store, &claimed.and(failed), version).await.unwrap();

    let page = usage(&store, &format!("start_time={DAY}")).await;
    assert_eq!(results(&page, &["input_tokens", "output_tokens"]), [json!([0, 10, 1, 2])]);
});

/// Returns the sizes of vector stores as the day after [`DAY`], the project, and the bytes.
async fn sizes(store: &Arc<dyn Store>, text: &str) -> Vec<(i64, Value, i64)> {
    let pairs = text.split('&').map(|pair| pair.split_once('=').unwrap());
    let query = UsageQuery::parse(UsageKind::VectorStores, pairs, Timestamp(DAY + 3 * DAY_S)).unwrap();
    let page = json!(store.usage(&query).await.unwrap());
    let mut found = Vec::new();
    for bucket in page["data"].as_array().unwrap() {
        let day = (bucket["start_time"].as_i64().unwrap() - DAY) / DAY_S;
        for result in bucket["results"].as_array().unwrap() {
            assert_eq!(result["object"], "organization.usage.vector_stores.result");
            found.push((day, result["project_id"].clone(), result["usage_bytes"].as_i64().unwrap()));
        }
    }
    found
}

both_stores!(the_sizes_of_vector_stores_are_those_of_the_last_measurement_of_a_day, async |database: Database| {
    let (store, _clock) = open(&database).await;
    let set = async |project: &str, file: &str, status: &str, bytes: i64| {
        let sql = format!(
            "insert into vector_store_files (id, project_id, vector_store_id, file_id, filename, created_at, status,
                 usage_bytes, attributes, chunking, changed_version, claims, attempts)
             values ('{project}{file}', '{project}', 'vs_{project}', '{file}', 'a.txt', 0, '{status}', {bytes}, '{{}}', '{{}}',
                 1, 0, 0)"
        );
        database.execute(&sql).await;
    };
    for (project, status) in [("proj_a", "live"), ("proj_b", "live"), ("proj_c", "deleted")] {
        let sql = format!(
            "insert into vector_stores (id, project_id, created_at, status, version, purged_version, last_active_at, body)
             values ('vs_{project}', '{project}', 0, '{status}', 1, 0, 0, '{{}}')"
        );
        database.execute(&sql).await;
    }
    set("proj_a", "f1", "completed", 10).await;
    set("proj_a", "f2", "completed", 5).await;
    set("proj_a", "f3", "deleted", 100).await;
    set("proj_b", "f1", "completed", 7).await;
    set("proj_c", "f1", "completed", 1_000).await;

    store.measure_vector_stores(Timestamp(DAY + 10)).await.unwrap();
    store.measure_vector_stores(Timestamp(DAY + DAY_S)).await.unwrap();
    database.execute("update vector_store_files set usage_bytes = 20 where id = 'proj_af1'").await;
    database.execute("update vector_stores set status = 'deleted' where id = 'vs_proj_b'").await;
    store.measure_vector_stores(Timestamp(DAY + 2 * DAY_S - 1)).await.unwrap();

    // The first day counts although the range begins within it.
    let all = format!("start_time={}", DAY + 100);
    assert_eq!(sizes(&store, &all).await, [(0, Value::Null, 22), (1, Value::Null, 25)]);
    let (a, b) = (json!("proj_a"), json!("proj_b"));
    let grouped = [(0, a.clone(), 15), (0, b.clone(), 7), (1, a.clone(), 25), (1, b.clone(), 0)];
    assert_eq!(sizes(&store, &format!("{all}&group_by=project_id")).await, grouped);
    let of_b = format!("{all}&project_ids=proj_b&group_by=project_id&models=ignored");
    assert_eq!(sizes(&store, &of_b).await, [(0, b.clone(), 7), (1, b, 0)]);
    assert_eq!(sizes(&store, &format!("start_time={}", DAY + 2 * DAY_S)).await, []);
});

#[test]
fn sizes_of_vector_stores_exist_for_days_and_projects_alone() {
    let parse = |text: &str| {
        let pairs = text.split('&').map(|pair| pair.split_once('=').unwrap());
        UsageQuery::parse(UsageKind::VectorStores, pairs, Timestamp(DAY))
    };

    let hours = parse("start_time=1&bucket_width=1h").unwrap_err();
    assert_eq!(hours.param.as_deref(), Some("bucket_width"));
    let models = parse("start_time=1&group_by=model").unwrap_err();
    assert_eq!(models.param.as_deref(), Some("group_by"));
    assert!(parse("start_time=1&bucket_width=1d&group_by=project_id").is_ok());
}
