//! `phiward dev --check`: makes the requests itself and checks what they left in the trail.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{BILLING_OUTBOUND, DevError, Mesh, WEB_OUTBOUND};
use crate::audit;

/// One thing that was checked.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Step {
    /// What was done.
    pub what: String,
    /// Whether it came out as it must.
    pub passed: bool,
    /// What came out.
    pub result: String,
}

/// A request, and the status it must get.
struct Probe {
    what: &'static str,
    port: u16,
    target: &'static str,
    expected: u16,
}

const PROBES: [Probe; 3] = [
    Probe {
        what: "allow: web reads a patient",
        port: WEB_OUTBOUND,
        target: "/fhir/Patient/1",
        expected: 200,
    },
    Probe {
        what: "deny: billing reads a patient",
        port: BILLING_OUTBOUND,
        target: "/fhir/Patient/1",
        expected: 403,
    },
    Probe {
        what: "reject: a path that could mean two things",
        port: WEB_OUTBOUND,
        target: "/fhir/Patient/1/../2",
        expected: 400,
    },
];

/// Makes the requests, shuts `mesh` down so that its trails are complete, and checks the records sidecar's spool and the
/// collector's store: intact, and one decision for each request.
///
/// # Errors
/// The mesh could not be shut down. What merely came out wrong is in the steps.
pub async fn check(mut mesh: Mesh) -> Result<Vec<Step>, DevError> {
    let mut steps = Vec::new();
    let before = decisions(&mesh.records_spool());
    let mut requests = 0;
    for probe in &PROBES {
        let result = status_of(probe).await;
        requests += u64::from(result.is_ok());
        steps.push(Step {
            what: probe.what.to_owned(),
            passed: result == Ok(probe.expected),
            result: result.map_or_else(|error| error, |status| status.to_string()),
        });
    }
    mesh.shut_down().await?;
    steps.push(chain_step("spool of the records sidecar", &mesh.records_spool(), before + requests));
    steps.push(chain_step("store of the collector", &mesh.store(), before + requests));
    Ok(steps)
}

/// Decisions already in the trail, of an earlier run in the same folder.
fn decisions(spool: &Path) -> u64 {
    let report = audit::verify(spool);
    report.map_or(0, |report| report.by_type.get("access.decision").copied().unwrap_or(0))
}

fn chain_step(what: &str, dir: &Path, requests: u64) -> Step {
    let what = format!("audit: {what}");
    let report = match audit::verify(dir) {
        Ok(report) => report,
        Err(error) => return Step { what, passed: false, result: error.to_string() },
    };
    // The store has the decisions of the callers' sidecars too, of which these requests leave none.
    let decisions = report.by_type.get("access.decision").copied().unwrap_or(0);
    let chain = if report.intact { "verified" } else { "BROKEN" };
    Step {
        what,
        passed: report.intact && decisions == requests,
        result: format!(
            "chain {chain}, {decisions} decisions for {requests} requests, {} events",
            report.events
        ),
    }
}

async fn status_of(probe: &Probe) -> Result<u16, String> {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, probe.port));
    let stream = TcpStream::connect(addr).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let request = Request::get(probe.target)
        .header(header::HOST, "records.clinic")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = response.status().as_u16();
    // To its end, so that the exchange completes as a client's would.
    response.into_body().collect().await.map_err(|error| error.to_string())?;
    Ok(status)
}
