//! Protected health information stays out of the trail, of what sinks are sent and collectors keep, out of the log at its
//! most talkative, metrics, the admin endpoint and error replies.
//!
//! Runs the real program, because what other libraries log is held back where the process sets its log up.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone
#![allow(missing_docs, unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;

mod marker;
mod process;
mod traffic;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use common::app::{After, App};
use common::wire::Message;
use common::{HOST, POLICY, Pki, RECORDS, WEB, eventually};
use marker::{MARKER, base64, found_in};
use process::{Process, files_in};
use serde_json::Value;

const COLLECTOR: &str = "spiffe://hospital.local/ns/audit/sa/collector";
/// Opens every receiver, and is shown to nobody else.
const TOKEN: &str = "sink-t0ken-0815";

/// An app that says the marker in every part of its answers, right and wrong.
fn app(request: &Message) -> (Vec<u8>, After) {
    let c = MARKER;
    let path = request.start.split(' ').nth(1).unwrap_or_default();
    let (answer, after) = match path {
        "/open/broken" => (format!("{c}\r\n\r\n"), After::Close),
        "/open/redirect" => (
            format!("HTTP/1.1 302 {c}\r\nLocation: http://{c}.example/{c}?{c}\r\nContent-Length: 0\r\n\r\n"),
            After::Keep,
        ),
        "/open/ws" => (
            format!(
                "HTTP/1.1 101 {c}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: {c}\r\n\r\n{c}"
            ),
            After::Keep,
        ),
        _ => (
            format!(
                "HTTP/1.1 103 {c}\r\nLink: <{c}>\r\n\r\nHTTP/1.1 200 {c}\r\nTransfer-Encoding: chunked\r\n\
                 Set-Cookie: {c}={}\r\nX-{c}: {c}\r\nTrailer: X-{c}\r\n\r\n24\r\n{c}\r\n0\r\nX-{c}: {c}\r\n\r\n",
                base64(c.as_bytes())
            ),
            After::Keep,
        ),
    };
    (answer.into_bytes(), after)
}

/// A receiver of events that says yes to any sink's batch.
async fn receiver() -> App {
    App::start(|request| {
        let events =
            request.body.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"{\"create\"")).count();
        let items = vec![r#"{"create":{"status":201}}"#; events].join(",");
        let body = format!(r#"{{"errors":false,"items":[{items}],"text":"Success","code":0}}"#);
        let body = if request.start.contains("/v1/logs") { String::new() } else { body };
        (format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes(), After::Keep)
    })
    .await
}

/// One sink of each type, and a collector besides.
fn sinks(dir: &Path, addr: SocketAddr, collector: SocketAddr) -> String {
    std::fs::write(dir.join("token"), TOKEN).unwrap();
    let sink =
        |kind: &str, more: &str| format!("{{name: {kind}, type: {kind}, endpoint: \"http://{addr}\"{more}}}");
    let all = [
        sink("phiward", ""),
        format!(
            "{{name: collector, type: phiward, endpoint: \"https://{collector}\", identities: [\"{COLLECTOR}\"]}}"
        ),
        sink("ndjson", ", bearer_token_file: token"),
        sink("otlp", ", basic: {username: phiward, password_file: token}"),
        sink("elasticsearch", ", api_key_file: token"),
        sink("splunk_hec", ", token_file: token, indexer_ack: false"),
    ];
    format!("[{}]", all.join(", "))
}

/// If this fails, patients' data lies in files that were never meant to hold it.
#[tokio::test(flavor = "multi_thread")]
async fn a_marker_in_every_part_of_a_request_is_nowhere_in_trail_sinks_store_log_metrics_and_refusals() {
    let (app, receiver) = (App::start(app).await, receiver().await);
    let pki = Pki::new();
    let collector = Process::collector(&pki.workload("collector", COLLECTOR));
    let (dir, web_dir) = (pki.workload("records", RECORDS), pki.workload("web", WEB));
    std::fs::write(dir.join("policy.yaml"), POLICY).unwrap();
    let inbound = format!(
        "inbound: {{listeners: [{{name: api, bind: \"127.0.0.1:0\", app: \"{}\"}}], probes: {{bind: \"127.0.0.1:0\", paths: [/healthz]}}}}
policy: {{file: policy.yaml}}",
        app.addr
    );
    let records =
        Process::sidecar(&dir, "records", &sinks(&dir, receiver.addr, collector.addr("address")), &inbound);
    let outbound = format!(
        "outbound: {{audit: all, bind: \"127.0.0.1:0\", services: [{{name: records, hosts: [{HOST}], \
         endpoints: [\"{}\"], identities: [\"{RECORDS}\"]}}]}}",
        records.addr("inbound")
    );
    let web = Process::sidecar(
        &web_dir,
        "web",
        &sinks(&web_dir, receiver.addr, collector.addr("address")),
        &outbound,
    );

    traffic::to_outbound(web.addr("outbound")).await;
    traffic::to_inbound(records.addr("inbound"), &pki, &web_dir).await;
    traffic::to_collector(collector.addr("address"), &pki, &web_dir).await;
    traffic::to_side_ports(&[records.addr("probes"), records.addr("admin"), collector.addr("admin")]).await;
    let all_sinks = ["/v1/events", "POST / ", "/v1/logs", "/_bulk", "/services/collector"];
    let kinds = || {
        all_sinks
            .iter()
            .filter(|path| receiver.seen().iter().any(|batch| batch.start.contains(**path)))
            .count()
    };
    eventually("every type of sink has sent events", async || kinds() == all_sinks.len()).await;

    let decisions = |process: &Process| -> BTreeSet<String> {
        let files = process.files();
        let records = String::from_utf8_lossy(&files);
        let events = records.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let decisions = events.filter(|event| event["type"] == "access.decision");
        decisions.map(|event| event["id"].to_string()).collect()
    };
    eventually("the collector has every decision", async || {
        let (written, stored) = (&decisions(&web) | &decisions(&records), decisions(&collector));
        written.len() > 50 && stored == written
    })
    .await;

    for process in [web, records, collector] {
        let places = [("admin", process.shown().await), ("running spool", process.files())];
        let folder = process.folder();
        let places = places
            .into_iter()
            .chain([("log", process.end().into_bytes()), ("spool or store", files_in(&folder))]);
        for (place, bytes) in places {
            assert!(bytes.len() > 500, "{place} is empty");
            let line = String::from_utf8_lossy(&bytes)
                .lines()
                .find(|line| found_in(line.as_bytes()).is_some())
                .map(str::to_owned);
            assert_eq!(line, None, "in the {place}");
            assert!(
                !String::from_utf8_lossy(&bytes).contains(TOKEN),
                "the receivers' token is in the {place}"
            );
        }
    }
    assert!(
        receiver.seen().iter().any(|batch| String::from_utf8_lossy(&batch.body).contains("access.decision"))
    );
    let token_sent =
        |batch: &Message| batch.header("authorization").is_some_and(|value| value.contains(TOKEN));
    assert!(receiver.seen().iter().any(token_sent));
    for batch in receiver.seen() {
        assert!(!String::from_utf8_lossy(&batch.body).contains(TOKEN), "{} was sent it", batch.start);
        assert_eq!(found_in(format!("{batch:?}").as_bytes()), None, "{} was sent it", batch.start);
        assert_eq!(found_in(&batch.body), None, "{} was sent it", batch.start);
    }
}
