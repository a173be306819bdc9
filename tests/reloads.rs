//! New policies and SVIDs while requests go on: they take effect, bad ones do not, and nothing fails meanwhile.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone

mod common;

use std::path::Path;
use std::time::Duration;

use common::app::App;
use common::wire::Wire;
use common::{Mesh, POLICY, Pki, Setup, Side, WEB, client, eventually, in_front_of, peer, reloads};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

async fn mesh() -> Mesh {
    Mesh::with(App::answering(OK).await.addr, Setup::default()).await
}

async fn status<S: AsyncRead + AsyncWrite + Unpin>(wire: &mut Wire<S>, target: &str) -> u16 {
    wire.send(format!("GET {target} HTTP/1.1\r\nHost: records.clinic\r\n\r\n")).await;
    wire.response("GET").await.status()
}

async fn ready(side: &Side) -> (u16, Value) {
    let reply = client::get(side.admin(), "/ready").await;
    (reply.status, serde_json::from_str(reply.text()).unwrap())
}

/// A folder whose files are behind a symlink that is swapped, as Kubernetes projects a ConfigMap.
fn project(dir: &Path, version: &str, policy: &str) {
    std::fs::create_dir(dir.join(version)).unwrap();
    std::fs::write(dir.join(version).join("policy.yaml"), policy).unwrap();
    std::os::unix::fs::symlink(version, dir.join("..data_tmp")).unwrap();
    std::fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
}

/// If this fails, revoking access does not bite until pods restart, or until callers reconnect.
#[tokio::test]
async fn a_new_deny_rule_counts_for_the_next_request_on_the_same_connection() {
    let mesh = mesh().await;
    let mut wire = Wire::connect(mesh.outbound()).await;
    assert_eq!(status(&mut wire, "/open/a").await, 200);
    let stricter = POLICY.replace("/open/admin/**", "/open/a").replace("\"r1\"", "\"r2\"");
    std::fs::write(mesh.records.dir.join("policy.yaml"), stricter).unwrap();
    eventually("the deny rule counts", async || status(&mut wire, "/open/a").await == 403).await;
    assert_eq!(status(&mut wire, "/open/b").await, 200);
    let trail = mesh.trail().await;
    let loaded: Vec<&str> = trail
        .of_type("policy.loaded")
        .iter()
        .map(|event| event["policy"]["revision"].as_str().unwrap())
        .collect();
    assert_eq!(loaded, ["r1", "r2"]);
    let by_r1 = |event: &&&Value| event["decision"]["policy_revision"] == "r1";
    assert!(trail.decisions().iter().filter(by_r1).all(|event| event["decision"]["outcome"] == "allow"));
}

/// If this fails, a typing error in the policy opens or closes everything, or nobody is told.
#[tokio::test]
async fn a_broken_policy_changes_nothing_and_is_told() {
    let mesh = mesh().await;
    let mut wire = Wire::connect(mesh.outbound()).await;
    let broken = POLICY.replace("paths: [\"/open/**\"]", "paths: [\"open/**\"]");
    assert_ne!(broken, POLICY);
    std::fs::write(mesh.records.dir.join("policy.yaml"), broken).unwrap();
    eventually("the policy is refused", async || reloads(&mesh.records, "policy", "refused").await == 1)
        .await;
    assert_eq!(status(&mut wire, "/open/a").await, 200);
    assert_eq!(status(&mut wire, "/open/admin/a").await, 403);
    let (code, detail) = ready(&mesh.records).await;
    assert_eq!((code, &detail["policy"]["revision"]), (200, &"r1".into()), "the last good one is in force");
    assert!(detail["reload_errors"]["policy"].as_str().unwrap().contains("policy.yaml:"), "{detail}");

    std::fs::write(mesh.records.dir.join("policy.yaml"), POLICY).unwrap();
    eventually("the complaint is over", async || {
        ready(&mesh.records).await.1["reload_errors"] == serde_json::json!({})
    })
    .await;
    let trail = mesh.trail().await;
    assert_eq!(trail.of_type("policy.refused").len(), 1, "{}", trail.text);
}

/// If this fails, a policy whose own tests say that it is wrong comes into force.
#[tokio::test]
async fn a_policy_that_fails_its_own_tests_changes_nothing_and_is_told() {
    let mesh = mesh().await;
    let mut wire = Wire::connect(mesh.outbound()).await;
    let failing = POLICY.replace("\"r1\"", "\"r2\"")
        + &format!("tests: [{{as: \"{WEB}\", request: GET /open/a, expect: deny}}]\n");
    std::fs::write(mesh.records.dir.join("policy.yaml"), &failing).unwrap();
    eventually("the policy is refused", async || reloads(&mesh.records, "policy", "refused").await == 1)
        .await;
    assert_eq!(status(&mut wire, "/open/a").await, 200);
    let (_, detail) = ready(&mesh.records).await;
    assert_eq!(detail["policy"]["revision"], "r1", "the last good one is in force");
    assert!(
        detail["reload_errors"]["policy"].as_str().unwrap().contains("the test expects deny"),
        "{detail}"
    );

    std::fs::write(mesh.records.dir.join("policy.yaml"), failing.replace("expect: deny", "expect: allow"))
        .unwrap();
    eventually("the mended policy is in force", async || {
        client::get(mesh.records.admin(), "/policy").await.text().contains("\"revision\":\"r2\"")
    })
    .await;
    let trail = mesh.trail().await;
    assert_eq!(trail.of_type("policy.refused")[0]["policy"]["errors"], 1, "{}", trail.text);
}

/// If this fails, a sidecar starts with a policy that is known to be wrong.
#[tokio::test]
async fn no_sidecar_starts_with_a_policy_that_fails_its_tests() {
    let pki = Pki::new();
    let dir = pki.workload("records", common::RECORDS);
    let failing = format!("{POLICY}tests: [{{as: \"{WEB}\", request: GET /open/a, expect: deny}}]\n");
    std::fs::write(dir.join("policy.yaml"), failing).unwrap();
    let text = "version: 1\nworkload: {service: records, namespace: clinic}\nidentity: {trust_domain: hospital.local, files: \
                {certificate: svid.pem, private_key: svid.key, bundle: bundle.pem}}\naudit: {spool: {dir: audit}, key_file: \
                audit-hmac.key}\nadmin: {bind: \"127.0.0.1:0\"}\ninbound: {listeners: [{name: api, bind: \"127.0.0.1:0\", app: \
                \"127.0.0.1:1\"}]}\npolicy: {file: policy.yaml}\n";
    std::fs::write(dir.join("sidecar.yaml"), text).unwrap();
    let config = phiward::config::load_sidecar(&dir.join("sidecar.yaml")).unwrap_or_else(|e| panic!("{e}"));
    let refused = phiward::runtime::Loaded::load(config).err().map(|error| error.to_string()).unwrap();
    assert!(refused.contains("the test expects deny") && refused.contains("policy.yaml:"), "{refused}");
}

/// If this fails, a ConfigMap's new version is never seen, as by programs that watch the file.
#[tokio::test]
async fn a_policy_behind_a_swapped_symlink_is_followed() {
    let pki = Pki::new();
    let dir = pki.workload("records", common::RECORDS);
    project(&dir, "..2026_01", POLICY);
    std::os::unix::fs::symlink("..data/policy.yaml", dir.join("policy.yaml")).unwrap();
    let app = App::answering(OK).await;
    let rest = format!(
        "inbound: {{listeners: [{{name: api, bind: \"127.0.0.1:0\", app: \"{}\"}}]}}
policy: {{file: policy.yaml}}",
        app.addr
    );
    let side = Side::start(dir.clone(), "records", &rest).await;
    project(&dir, "..2026_02", &POLICY.replace("\"r1\"", "\"r2\""));
    std::fs::remove_dir_all(dir.join("..2026_01")).unwrap();
    eventually("the new version is in force", async || {
        client::get(side.admin(), "/policy").await.text().contains("\"revision\":\"r2\"")
    })
    .await;
}

/// If this fails, every rotation of an SVID (each half hour, in every pod) fails requests.
#[tokio::test]
async fn an_svid_that_is_written_file_by_file_is_taken_up_without_a_failed_request() {
    for leg in ["", ", mesh: h1"] {
        let app = App::answering(OK).await;
        let mesh = Mesh::with(app.addr, Setup { service_extra: leg, ..Setup::default() }).await;
        let mut wire = Wire::connect(mesh.outbound()).await;
        let mut requests = 0;
        for (side, id) in [(&mesh.records, common::RECORDS), (&mesh.web, WEB)] {
            let fresh = mesh.pki.workload("fresh", id);
            for (file, seen) in [("svid.pem", "refused"), ("svid.key", "loaded")] {
                std::fs::copy(fresh.join(file), side.dir.join(file)).unwrap();
                eventually("the files were looked at", async || {
                    assert_eq!(status(&mut wire, "/open/a").await, 200, "{leg} {id} {file}");
                    requests += 1;
                    reloads(side, "identity", seen).await == 1
                })
                .await;
            }
            for _ in 0..20 {
                assert_eq!(status(&mut wire, "/open/a").await, 200, "{leg} {id} with the new SVID");
                requests += 1;
            }
            assert_eq!(ready(side).await.0, 200);
            assert_eq!(ready(side).await.1["reload_errors"], serde_json::json!({}));
        }
        let shown = shown_by_web(&mesh);
        let (records, web) = mesh.trails().await;
        assert_eq!(
            (records.of_type("identity.rotated").len(), web.of_type("identity.rotated").len()),
            (1, 1)
        );
        assert_eq!(records.decisions().len(), requests, "{leg}");
        let last = records.decisions().last().unwrap()["subject"]["cert_sha256"].as_str().unwrap().to_owned();
        assert_eq!(last, shown, "{leg}: the caller shows its new SVID");
    }
}

/// The digest of the certificate that lies in the caller's folder now.
fn shown_by_web(mesh: &Mesh) -> String {
    common::peer::settings(&mesh.web.dir).material().svid.leaf_sha256_hex().to_owned()
}

/// If this fails, a node whose clock is a little behind keeps its old SVID until that expires.
#[tokio::test]
async fn an_svid_whose_time_has_not_come_is_taken_up_when_it_has() {
    let mesh = mesh().await;
    let id = phiward::identity::SpiffeId::parse(common::RECORDS).unwrap();
    // SVIDs are valid from a minute before they are issued.
    let early = rustls_pki_types::UnixTime::now().as_secs() + 63;
    let early = rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(early));
    let svid = mesh.pki.ca.issue(&id, Duration::from_secs(3000), early).unwrap();
    std::fs::write(mesh.records.dir.join("svid.pem"), svid.cert_pem).unwrap();
    std::fs::write(mesh.records.dir.join("svid.key"), svid.key_pem).unwrap();
    eventually("it is in use", async || reloads(&mesh.records, "identity", "loaded").await == 1).await;
    assert_eq!(reloads(&mesh.records, "identity", "refused").await, 1, "it was told once that it is early");
    let trail = mesh.trail().await;
    let lost = trail.of_type("identity.lost");
    assert_eq!(lost.iter().map(|event| &event["svid"]["reason"]).collect::<Vec<_>>(), ["not_yet_valid"]);
}

/// If this fails, a CA that was dropped still lets in who connected before, or its end disturbs others.
#[tokio::test]
async fn a_withdrawn_ca_closes_what_it_vouched_for_and_nothing_else() {
    let (mesh, other) = (mesh().await, Pki::new());
    let bundle = mesh.records.dir.join("bundle.pem");
    let both = [mesh.pki.ca.cert_pem(), other.ca.cert_pem()].concat();
    std::fs::write(&bundle, both).unwrap();
    eventually("both CAs are in use", async || reloads(&mesh.records, "identity", "loaded").await == 1).await;
    let mut ours = Wire::connect(mesh.outbound()).await;
    assert_eq!(status(&mut ours, "/open/a").await, 200);
    let (cert, key) = peer::forged(&other, &[WEB], (-60, 3600));
    let mut theirs = Vec::new();
    for _ in 0..3 {
        let mut wire = Wire::new(peer::http1(mesh.records.inbound(), (&cert, &key)).await);
        assert_eq!(status(&mut wire, "/open/b").await, 200);
        theirs.push(wire);
    }
    std::fs::write(&bundle, mesh.pki.ca.cert_pem()).unwrap();
    for wire in &mut theirs {
        eventually("the connection is closed", async || !wire.fill().await).await;
    }
    assert_eq!(status(&mut ours, "/open/c").await, 200);
    let trail = mesh.trail().await;
    let rejected = trail.of_type("conn.rejected");
    let told: Vec<_> =
        rejected.iter().map(|event| (&event["decision"]["reason"], &event["subject"]["spiffe_id"])).collect();
    assert_eq!(told, vec![(&Value::from("untrusted_chain"), &Value::from(WEB)); 3]);
}

/// If this fails, a certificate whose key was stolen opens connections, and keeps those it has, although its CA revoked it.
#[tokio::test]
async fn a_revoked_certificate_loses_its_connections_and_gets_no_new_one() {
    let pki = Pki::new();
    let dir = pki.workload("records", common::RECORDS);
    std::fs::write(dir.join("policy.yaml"), POLICY).unwrap();
    std::fs::write(dir.join("ca.crl"), peer::crl(&pki, &[])).unwrap();
    let app = App::answering(OK).await.addr;
    let identity = "files: {certificate: svid.pem, private_key: svid.key, bundle: bundle.pem, crl: ca.crl}";
    let side = Side::start_as(dir.clone(), "records", identity, &in_front_of(app)).await;
    let (stolen, good) = (peer::forged(&pki, &[WEB], (-60, 3600)), peer::forged(&pki, &[WEB], (-60, 3600)));
    let mut theirs = Wire::new(peer::http1(side.inbound(), (&stolen.0, &stolen.1)).await);
    let mut ours = Wire::new(peer::http1(side.inbound(), (&good.0, &good.1)).await);
    assert_eq!((status(&mut theirs, "/open/a").await, status(&mut ours, "/open/a").await), (200, 200));
    std::fs::write(dir.join("ca.crl"), peer::crl(&pki, &[&stolen.0])).unwrap();
    eventually("the connection is closed", async || !theirs.fill().await).await;
    assert_eq!(status(&mut ours, "/open/b").await, 200);
    peer::turned_away(side.inbound(), peer::showing(Some((&stolen.0, &stolen.1)))).await;
    let trail = side.trail().await;
    let rejected = trail.of_type("conn.rejected");
    let reasons: Vec<_> = rejected.iter().map(|event| &event["decision"]["reason"]).collect();
    assert_eq!(reasons, ["revoked", "revoked"], "{}", trail.text);
}
