//! The resource usage of runs that wait for their model or for a slot, and of runs on a large thread.

use bytes::Bytes;
use hyper::Method;
use serde::Deserialize;
use serde_json::json;

use crate::client::Client;
use crate::closed_loop::{self, Operation};
use crate::contestant::{Contestant, Created, Kind, Setup, json_bytes};
use crate::measurements::{Both, open_streams, read_to_end};
use crate::report::{Report, Row};
use crate::upstream::{Mode, Upstream};
use crate::{Plan, Result};

/// Number of runs before memory is measured.
const RUNS_BEFORE: usize = 200;
/// Number of concurrent clients of these runs.
const CLIENTS: usize = 16;
/// Number of messages of the large thread.
const LARGE_MESSAGES: usize = 120;
/// Size of each message of the large thread, in bytes.
const LARGE_MESSAGE_BYTES: usize = 250_000;

/// Measures memory and processor time of streams that receive one token per second.
pub async fn measure_slow_streams(plan: &Plan, setup: &Setup, upstream: &Upstream, report: &mut Report) -> Result<()> {
    let both = Both::start(setup).await?;
    let mut memory = [Vec::new(), Vec::new()];
    let mut processor = [Vec::new(), Vec::new()];
    for (n, contestant) in both.all().into_iter().enumerate() {
        closed_loop::repeat(&contestant.target, &Operation::Streamed(Mode::Fast), RUNS_BEFORE, CLIENTS).await?;
        tokio::time::sleep(plan.settling).await;
        let before = contestant.resident_kib();
        let streams = open_streams(&contestant.target, Mode::Slow, plan.streams).await?;
        let readers: Vec<_> = streams
            .into_iter()
            .map(|mut stream| tokio::spawn(async move { read_to_end(std::slice::from_mut(&mut stream)).await }))
            .collect();
        tokio::time::sleep(plan.settling).await;
        processor[n].extend(processor_percent(plan, setup, contestant).await);
        let gained = contestant.resident_kib().zip(before).map(|(now, before)| now - before);
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52 streams")]
        memory[n].extend(gained.map(|kib| kib / plan.streams as f64));
        upstream.end_idle_answers();
        for reader in readers {
            report.add_errors(&format!("slow streams, {}", contestant.target.kind.name()), &reader.await?);
        }
    }
    let row = |what: &str, unit, [floor, assistd]: [Vec<f64>; 2]| Row {
        what: format!("{what} of {} streams with one token per second", plan.streams),
        unit,
        direct: Vec::new(),
        floor,
        assistd,
        ratios: true,
    };
    report.add(row("memory for each", "KiB", memory));
    report.add(row("processor", "% of a core", processor));
    Ok(())
}

/// Returns the server's processor time during ten times the settling time, in percent of one core.
async fn processor_percent(plan: &Plan, setup: &Setup, contestant: &Contestant) -> Option<f64> {
    let before = contestant.counters(&setup.store);
    let watched = plan.settling * 10;
    tokio::time::sleep(watched).await;
    let gained = contestant.counters(&setup.store).since(before).server_cpu;
    gained.map(|cpu| 100.0 * cpu.as_secs_f64() / watched.as_secs_f64())
}

/// Measures the processor time of streams whose runs wait for the only slot.
pub async fn measure_queued_streams(
    plan: &Plan,
    setup: &Setup,
    upstream: &Upstream,
    report: &mut Report,
) -> Result<()> {
    let setup = Setup { concurrent_runs_max: 1, ..setup.clone() };
    let assistd = Contestant::start(&setup, Kind::Assistd).await?;
    let _running = open_streams(&assistd.target, Mode::Idle, 1).await?;
    let mut queued = Vec::with_capacity(plan.streams);
    for _ in 0..plan.streams {
        let mut client = Client::new(assistd.target.address);
        let body = assistd.target.streamed_run(Mode::Fast);
        queued.push(client.open_stream(assistd.target.stream_path(), body, assistd.target.marks()).await?);
    }
    tokio::time::sleep(plan.settling).await;
    let percent = processor_percent(plan, &setup, &assistd).await;
    upstream.end_idle_answers();
    report.add_errors("queued streams", &read_to_end(&mut queued).await);
    report.add(Row {
        what: format!("processor of {} streams whose runs are queued", plan.streams),
        unit: "% of a core",
        direct: Vec::new(),
        floor: Vec::new(),
        assistd: percent.into_iter().collect(),
        ratios: false,
    });
    Ok(())
}

#[derive(Deserialize)]
struct Stored {}

/// Measures memory and first token of runs on a thread of 30 MB that read the last ten messages or what fits a budget.
pub async fn measure_large_thread(plan: &Plan, setup: &Setup, report: &mut Report) -> Result<()> {
    let assistd = Contestant::start(setup, Kind::Assistd).await?;
    let mut client = Client::new(assistd.target.address);
    closed_loop::repeat(&assistd.target, &Operation::Streamed(Mode::Fast), RUNS_BEFORE, CLIENTS).await?;
    let thread: Created = client.fetch_json(Method::POST, "/v1/threads", Bytes::from_static(b"{}")).await?;
    let filler = "lorem ipsum dolor ".repeat(LARGE_MESSAGE_BYTES / 18);
    for n in 0..LARGE_MESSAGES {
        let message = json_bytes(&json!({"role": "user", "content": format!("{n}: {filler}")}));
        let path = format!("/v1/threads/{}/messages", thread.id);
        let _: Stored = client.fetch_json(Method::POST, &path, message).await?;
    }
    let newest = json_bytes(&json!({"role": "user", "content": "hi"}));
    for _ in 0..10 {
        let path = format!("/v1/threads/{}/messages", thread.id);
        let _: Stored = client.fetch_json(Method::POST, &path, newest.clone()).await?;
    }
    let options = [
        ("last_messages 10", json!({"truncation_strategy": {"type": "last_messages", "last_messages": 10}})),
        ("max_prompt_tokens 2000", json!({"max_prompt_tokens": 2_000})),
    ];
    for (what, mut body) in options {
        body["assistant_id"] = json!(assistd.target.assistant_id);
        body["stream"] = json!(true);
        let path = format!("/v1/threads/{}/runs", thread.id);
        // The first one loads the tokenizer.
        client.stream(&path, json_bytes(&body), assistd.target.marks()).await?;
        tokio::time::sleep(plan.settling).await;
        assistd.take_peak_kib();
        let before = assistd.resident_kib();
        let timing = client.stream(&path, json_bytes(&body), assistd.target.marks()).await?;
        let gained = assistd.take_peak_kib().zip(before).map(|(peak, before)| (peak - before) / 1024.0);
        let row = |value: &str, unit, assistd| Row {
            what: format!("{value} of a run with {what} on a thread of 30 MB"),
            unit,
            direct: Vec::new(),
            floor: Vec::new(),
            assistd,
            ratios: false,
        };
        report.add(row("first token", "ms", vec![timing.first_token.as_secs_f64() * 1000.0]));
        report.add(row("peak memory", "MiB", gained.into_iter().collect()));
    }
    Ok(())
}
