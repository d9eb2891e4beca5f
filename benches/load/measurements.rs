//! The measurements, one function per group of rows.

use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use serde::Deserialize;

use crate::client::Client;
use crate::closed_loop::{self, Errors, Load, Operation, Outcome, REQUEST_TIMEOUT, create_thread};
use crate::contestant::{Contestant, Counters, Kind, Setup, Target, time_to_first_answer};
use crate::report::{Report, Row, milliseconds, p50_and_p95};
use crate::upstream::{Mode, PACED_ANSWER, Upstream};
use crate::{Measurement, Plan, Result, engine, table};

/// Number of clients of the message operations, of the round-trip count and of the preparation of measurements.
const CLIENTS: usize = 16;
/// Number of messages in the short thread.
const MESSAGES_SHORT: usize = 10;
/// Number of streams that are opened concurrently.
const STREAMS_OPENING: usize = 50;

/// Measures one store.
pub async fn measure(plan: &Plan, setup: &Setup, upstream: &Upstream, report: &mut Report) -> Result<()> {
    eprintln!("load: measuring on {}", setup.store.name());
    if plan.includes(Measurement::Start) {
        measure_start(plan, setup, report).await?;
    }
    let loads =
        [Measurement::Streamed, Measurement::Polled, Measurement::Paced, Measurement::Messages, Measurement::List];
    if loads.into_iter().any(|measurement| plan.includes(measurement)) {
        measure_loads(plan, setup, report).await?;
    }
    if plan.includes(Measurement::IdleStreams) {
        measure_idle_streams(plan, setup, upstream, report).await?;
    }
    if plan.includes(Measurement::SlowStreams) {
        engine::measure_slow_streams(plan, setup, upstream, report).await?;
    }
    if plan.includes(Measurement::QueuedStreams) {
        engine::measure_queued_streams(plan, setup, upstream, report).await?;
    }
    if plan.includes(Measurement::LargeThread) {
        engine::measure_large_thread(plan, setup, report).await?;
    }
    if plan.includes(Measurement::Table) {
        table::measure(plan, setup, report).await?;
    }
    if plan.includes(Measurement::RoundTrips) {
        measure_round_trips(plan, setup, report).await?;
    }
    Ok(())
}

/// Measures cold starts on an empty and on a used database, and the resource usage of an idle server.
async fn measure_start(plan: &Plan, setup: &Setup, report: &mut Report) -> Result<()> {
    let mut fresh = [Vec::new(), Vec::new()];
    let mut used = [Vec::new(), Vec::new()];
    for _ in 0..plan.starts {
        for (n, kind) in [Kind::Floor, Kind::Assistd].into_iter().enumerate() {
            let database_url = setup.store.create_database().await?;
            fresh[n].push(time_to_first_answer(setup, kind, &database_url).await?);
            used[n].push(time_to_first_answer(setup, kind, &database_url).await?);
        }
    }
    for (what, [floor, assistd]) in [("empty database", fresh), ("used database", used)] {
        report.add(Row {
            what: format!("start to first answer, {what}, p50 / p95"),
            unit: "ms",
            direct: Vec::new(),
            floor: p50_and_p95(floor),
            assistd: p50_and_p95(assistd),
            ratios: true,
        });
    }

    let both = Both::start(setup).await?;
    tokio::time::sleep(plan.settling).await;
    let watched = plan.settling * 3;
    let before = both.each(|contestant| contestant.counters(&setup.store));
    tokio::time::sleep(watched).await;
    let after = both.each(|contestant| contestant.counters(&setup.store));
    let percent = |n: usize| {
        let gained = after[n].since(before[n]).server_cpu;
        gained.map(|cpu| 100.0 * cpu.as_secs_f64() / watched.as_secs_f64()).into_iter().collect()
    };
    report.add(Row {
        what: "idle server, processor".to_owned(),
        unit: "% of a core",
        direct: Vec::new(),
        floor: percent(0),
        assistd: percent(1),
        ratios: false,
    });
    report.add(both.memory_row("idle server, resident memory"));
    Ok(())
}

/// Performs all measurements on one pair of servers, and measures their memory afterwards.
async fn measure_loads(plan: &Plan, setup: &Setup, report: &mut Report) -> Result<()> {
    let both = Both::start(setup).await?;
    if plan.includes(Measurement::Streamed) {
        measure_streamed(plan, setup, &both, report).await;
    }
    if plan.includes(Measurement::Polled) {
        measure_polled(plan, setup, &both, report).await;
    }
    if plan.includes(Measurement::Paced) {
        measure_paced(plan, setup, &both, report).await;
    }
    if plan.includes(Measurement::Messages) {
        let cell = Cell { what: "message create / get / list", clients: CLIENTS, operation: Operation::Messages };
        let outcomes = contest(plan, setup, &both, &cell, report).await;
        report.add(cell.rate_row("requests/s", &outcomes));
    }
    if plan.includes(Measurement::List) {
        measure_list(plan, setup, &both, report).await?;
    }
    tokio::time::sleep(plan.settling).await;
    report.add(both.memory_row("resident memory after load"));
    Ok(())
}

/// Measures the throughput of streamed runs, and their processor time.
async fn measure_streamed(plan: &Plan, setup: &Setup, both: &Both, report: &mut Report) {
    for clients in plan.clients.iter().copied() {
        let cell = Cell { what: "streamed runs", clients, operation: Operation::Streamed(Mode::Fast) };
        let outcomes = contest(plan, setup, both, &cell, report).await;
        report.add(cell.rate_row("runs/s", &outcomes));
        let cpu_row = |whose: &str, cpu: fn(Counters) -> Option<Duration>| {
            let per_run = |outcome: &Outcome| {
                let cpu = outcome.counters.and_then(cpu);
                cpu.map(|cpu| milliseconds(cpu) / outcome.count()).into_iter().collect::<Vec<f64>>()
            };
            cell.row(
                &format!("{whose} processor time per streamed run"),
                "ms",
                [Vec::new(), per_run(&outcomes[1]), per_run(&outcomes[2])],
            )
        };
        report.add(cpu_row("server", |counters| counters.server_cpu));
        if setup.store.cpu().is_some() {
            report.add(cpu_row("database", |counters| counters.database_cpu));
        }
    }
}

/// Measures the throughput of polled runs.
async fn measure_polled(plan: &Plan, setup: &Setup, both: &Both, report: &mut Report) {
    for clients in plan.clients.iter().copied() {
        let cell = Cell { what: "polled runs", clients, operation: Operation::Polled };
        let outcomes = contest(plan, setup, both, &cell, report).await;
        report.add(cell.rate_row("runs/s", &outcomes));
    }
}

/// Measures the latency that a server adds to that of the model server.
async fn measure_paced(plan: &Plan, setup: &Setup, both: &Both, report: &mut Report) {
    for clients in plan.clients.iter().copied() {
        let cell = Cell { what: "paced runs", clients, operation: Operation::Streamed(Mode::Paced) };
        let outcomes = contest(plan, setup, both, &cell, report).await;
        let first_token = outcomes.each_ref().map(|outcome| times(outcome, |timing| timing.first_token));
        let end = outcomes.each_ref().map(|outcome| times(outcome, |timing| timing.end));
        for (what, [direct, floor, assistd]) in [("first token", first_token), ("end of run", end)] {
            let added = |values: Vec<f64>| values.iter().zip(&direct).map(|(ours, direct)| ours - direct).collect();
            let values = [direct.clone(), added(floor), added(assistd)];
            report.add(Row { ratios: false, ..cell.row(&format!("{what} over direct, p50 / p95"), "ms", values) });
        }
    }
}

/// Measures lists of a short and of a long thread, and runs on them with the last ten messages.
async fn measure_list(plan: &Plan, setup: &Setup, both: &Both, report: &mut Report) -> Result<()> {
    for messages in [MESSAGES_SHORT, plan.messages_long] {
        let mut outcomes = [Outcome::default(), Outcome::default()];
        for (outcome, contestant) in outcomes.iter_mut().zip(both.all()) {
            let target = &contestant.target;
            let thread_id = create_long_thread(target, messages).await?;
            let load = Load { clients: 1, warm_up: warm_up(plan), measured: plan.measured / 2, spread: Duration::ZERO };
            *outcome = closed_loop::run(load, target, &Operation::ListNewest { thread_id }, || {
                Some(contestant.counters(&setup.store))
            })
            .await;
            report.add_errors(&format!("list of {messages}, {}", target.kind.name()), &outcome.errors);
        }
        let [floor, assistd] = outcomes.map(|outcome| times(&outcome, |timing| timing.end));
        report.add(Row {
            what: format!("newest 20 of a thread of {messages} messages, p50 / p95"),
            unit: "ms",
            direct: Vec::new(),
            floor,
            assistd,
            ratios: true,
        });
    }
    for messages in [MESSAGES_SHORT, plan.messages_long] {
        let target = &both.assistd.target;
        let thread_id = create_long_thread(target, messages).await?;
        let operation = Operation::RunOnLastMessages { thread_id };
        let assistd = time_alone(plan, target, &operation, &format!("run on {messages}"), report).await;
        let what = format!("run with last_messages 10 on a thread of {messages} messages, p50 / p95");
        report.add(Row { what, unit: "ms", direct: Vec::new(), floor: Vec::new(), assistd, ratios: false });
    }
    Ok(())
}

/// Measures the latency of an operation with one client.
pub async fn time_alone(
    plan: &Plan,
    target: &Target,
    operation: &Operation,
    what: &str,
    report: &mut Report,
) -> Vec<f64> {
    let load = Load { clients: 1, warm_up: warm_up(plan), measured: plan.measured / 2, spread: Duration::ZERO };
    let outcome = closed_loop::run(load, target, operation, || None).await;
    report.add_errors(what, &outcome.errors);
    times(&outcome, |timing| timing.end)
}

#[derive(Deserialize)]
struct List {
    data: Vec<serde_json::Value>,
}

/// Creates a thread with `messages` messages, and checks that the newest are listed.
async fn create_long_thread(target: &Target, messages: usize) -> Result<String> {
    let mut client = Client::new(target.address);
    let thread_id = create_thread(&mut client).await?;
    closed_loop::repeat(target, &Operation::CreateMessage { thread_id: thread_id.clone() }, messages, CLIENTS).await?;
    let path = format!("/v1/threads/{thread_id}/messages?limit=20&order=desc");
    let list: List = client.fetch_json(Method::GET, &path, Bytes::new()).await?;
    if list.data.len() != messages.min(20) {
        return Err(format!("{} lists {} messages of {messages}", target.kind.name(), list.data.len()).into());
    }
    Ok(thread_id)
}

/// Measures the memory of open idle streams.
async fn measure_idle_streams(plan: &Plan, setup: &Setup, upstream: &Upstream, report: &mut Report) -> Result<()> {
    let both = Both::start(setup).await?;
    let mut growth = [Vec::new(), Vec::new()];
    for (growth, contestant) in growth.iter_mut().zip(both.all()) {
        closed_loop::repeat(&contestant.target, &Operation::Streamed(Mode::Fast), 200, CLIENTS).await?;
        tokio::time::sleep(plan.settling).await;
        let before = contestant.resident_kib();
        let mut streams = open_streams(&contestant.target, Mode::Idle, plan.streams).await?;
        tokio::time::sleep(plan.settling).await;
        let gained = contestant.resident_kib().zip(before).map(|(now, before)| now - before);
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52 streams")]
        growth.extend(gained.map(|kib| kib / plan.streams as f64));
        upstream.end_idle_answers();
        let errors = read_to_end(&mut streams).await;
        report.add_errors(&format!("idle streams, {}", contestant.target.kind.name()), &errors);
    }
    let [floor, assistd] = growth;
    let what = format!("memory for each of {} open idle streams", plan.streams);
    report.add(Row { what, unit: "KiB", direct: Vec::new(), floor, assistd, ratios: true });
    Ok(())
}

/// Reads streams to their end. Returns the errors.
pub async fn read_to_end(streams: &mut [crate::client::Stream]) -> Errors {
    let mut errors = Errors::default();
    for stream in streams {
        let end = tokio::time::timeout(REQUEST_TIMEOUT, stream.read_to_end()).await;
        if let Err(error) = end.map_err(Into::into).flatten() {
            errors.record(error.to_string());
        }
    }
    errors
}

/// Opens streams and reads each to its first token.
pub async fn open_streams(target: &Target, mode: Mode, count: usize) -> Result<Vec<crate::client::Stream>> {
    let mut streams = Vec::with_capacity(count);
    while streams.len() < count {
        let opening = (count - streams.len()).min(STREAMS_OPENING);
        let opened = futures_util::future::try_join_all((0..opening).map(|_| async {
            let mut client = Client::new(target.address);
            let body = target.streamed_run(mode);
            let mut stream = client.open_stream(target.stream_path(), body, target.marks()).await?;
            stream.read_first_token().await?;
            Ok::<_, crate::Error>(stream)
        }));
        streams.extend(tokio::time::timeout(REQUEST_TIMEOUT, opened).await??);
    }
    Ok(streams)
}

/// Measures the round trips, pings and statements per run, counted by a relay in front of Postgres.
async fn measure_round_trips(plan: &Plan, setup: &Setup, report: &mut Report) -> Result<()> {
    let mut values: [[Vec<f64>; 2]; 4] = Default::default();
    for (n, kind) in [Kind::Floor, Kind::Assistd].into_iter().enumerate() {
        let Some(contestant) = Contestant::start_counted(setup, kind).await? else { return Ok(()) };
        let counters = || Some(contestant.counters(&setup.store));
        let operation = Operation::Streamed(Mode::Fast);
        let load =
            Load { clients: CLIENTS, warm_up: warm_up(plan), measured: plan.measured / 2, spread: Duration::ZERO };
        let outcome = closed_loop::run(load, &contestant.target, &operation, counters).await;
        report.add_errors(&format!("round trips, {}", kind.name()), &outcome.errors);
        tokio::time::sleep(plan.settling).await;
        let before = contestant.counters(&setup.store);
        tokio::time::sleep(plan.settling * 3).await;
        let gained = contestant.counters(&setup.store).since(before);

        let per_run = |count: Option<u64>| count.map(|count| number(count) / outcome.count());
        let loaded = outcome.counters.unwrap_or_default();
        values[0][n].extend(per_run(loaded.round_trips));
        values[1][n].extend(per_run(loaded.pings));
        values[2][n].extend(per_run(loaded.statements));
        values[3][n].extend(gained.round_trips.map(|count| number(count) / (plan.settling * 3).as_secs_f64()));
    }
    let rows = [
        ("database round trips per streamed run", ""),
        ("database pings per streamed run", ""),
        ("database statements per streamed run", ""),
        ("idle server, database round trips", "1/s"),
    ];
    for ((what, unit), [floor, assistd]) in rows.into_iter().zip(values) {
        report.add(Row { what: what.to_owned(), unit, direct: Vec::new(), floor, assistd, ratios: false });
    }
    Ok(())
}

/// The floor and assistd, each on a separate database.
pub struct Both {
    floor: Contestant,
    assistd: Contestant,
}

impl Both {
    pub async fn start(setup: &Setup) -> Result<Self> {
        Ok(Self {
            floor: Contestant::start(setup, Kind::Floor).await?,
            assistd: Contestant::start(setup, Kind::Assistd).await?,
        })
    }

    pub fn all(&self) -> [&Contestant; 2] {
        [&self.floor, &self.assistd]
    }

    fn each<T>(&self, get: impl Fn(&Contestant) -> T) -> [T; 2] {
        self.all().map(get)
    }

    fn memory_row(&self, what: &str) -> Row {
        let [floor, assistd] =
            self.each(|contestant| contestant.resident_kib().map(|kib| kib / 1024.0).into_iter().collect());
        Row { what: what.to_owned(), unit: "MiB", direct: Vec::new(), floor, assistd, ratios: true }
    }
}

/// An operation of a number of clients, measured on each contestant.
struct Cell {
    what: &'static str,
    clients: usize,
    operation: Operation,
}

impl Cell {
    fn row(&self, what: &str, unit: &'static str, [direct, floor, assistd]: [Vec<f64>; 3]) -> Row {
        let clients = if self.clients == 1 { "1 client".to_owned() } else { format!("{} clients", self.clients) };
        Row { what: format!("{what}, {clients}"), unit, direct, floor, assistd, ratios: true }
    }

    fn rate_row(&self, unit: &'static str, outcomes: &[Outcome; 3]) -> Row {
        let rates = outcomes
            .each_ref()
            .map(|outcome| if outcome.measured.is_zero() { Vec::new() } else { vec![outcome.per_second()] });
        self.row(self.what, unit, rates)
    }
}

/// Measures a cell on each contestant in turn: direct if applicable, the floor, assistd.
async fn contest(plan: &Plan, setup: &Setup, both: &Both, cell: &Cell, report: &mut Report) -> [Outcome; 3] {
    let paced = matches!(cell.operation, Operation::Streamed(Mode::Paced));
    let load = if paced {
        // Each client completes an answer in each turn.
        let measured = (plan.measured / plan.turns).max(PACED_ANSWER);
        Load { clients: cell.clients, warm_up: PACED_ANSWER, measured, spread: PACED_ANSWER }
    } else {
        Load {
            clients: cell.clients,
            warm_up: warm_up(plan),
            measured: plan.measured / plan.turns,
            spread: Duration::ZERO,
        }
    };
    let direct = matches!(cell.operation, Operation::Streamed(_)).then(|| Target::direct(setup.upstream));
    let mut outcomes = [Outcome::default(), Outcome::default(), Outcome::default()];
    for turn in 0..plan.turns {
        if let Some(direct) = &direct {
            outcomes[0].add(closed_loop::run(load, direct, &cell.operation, || None).await);
        }
        let mut order = [(1, &both.floor), (2, &both.assistd)];
        if turn % 2 == 1 {
            order.reverse();
        }
        for (n, contestant) in order {
            let counters = || Some(contestant.counters(&setup.store));
            outcomes[n].add(closed_loop::run(load, &contestant.target, &cell.operation, counters).await);
        }
    }
    for (outcome, kind) in outcomes.iter().zip([Kind::Direct, Kind::Floor, Kind::Assistd]) {
        report.add_errors(&format!("{}, {} clients, {}", cell.what, cell.clients, kind.name()), &outcome.errors);
    }
    outcomes
}

/// Returns the warm-up time: a tenth of the measured time, at most half a second.
fn warm_up(plan: &Plan) -> Duration {
    (plan.measured / 10).min(Duration::from_millis(500))
}

fn times(outcome: &Outcome, time: fn(&crate::client::Timing) -> Duration) -> Vec<f64> {
    p50_and_p95(outcome.timings.iter().map(time).collect())
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52 round trips")]
fn number(count: u64) -> f64 {
    count as f64
}
