//! What `check` and `run` say of inputs that are wrong: one clear error with its place, and the exit code that tells a wrong
//! input (1) from one that cannot be read (2).
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use common::{POLICY, Pki, RECORDS};
use phiward::identity::{Ca, SpiffeId, TrustDomain};
use rustls_pki_types::UnixTime;

const CONFIG: &str = "version: 1
workload: {service: records, namespace: clinic}
identity:
  trust_domain: hospital.local
  files: {certificate: svid.pem, private_key: svid.key, bundle: bundle.pem}
inbound:
  listeners: [{name: api, bind: \"127.0.0.1:0\", app: \"127.0.0.1:1\"}]
policy: {file: policy.yaml}
audit: {spool: {dir: audit}, key_file: audit-hmac.key}
admin: {bind: \"127.0.0.1:0\"}
";

/// A folder in which everything is good, for a test to spoil.
struct Folder {
    pki: Pki,
    dir: PathBuf,
}

impl Folder {
    fn new() -> Self {
        let pki = Pki::new();
        let dir = pki.workload("records", RECORDS);
        let folder = Self { pki, dir };
        folder.write("policy.yaml", POLICY);
        folder.write("sidecar.yaml", CONFIG);
        folder
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.dir.join(name), text).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.dir.join(name)).unwrap();
    }

    fn phiward(&self, command: &str) -> Output {
        run(command, &self.dir.join("sidecar.yaml"))
    }

    /// `check` and `run` must both refuse, with this code and these words.
    fn refused(&self, code: i32, words: &[&str]) {
        for command in ["check", "run"] {
            let output = self.phiward(command);
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(code), "{command}: {stderr}");
            for word in words {
                assert!(stderr.contains(word), "{command}: {word:?} is not in: {stderr}");
            }
            assert!(!stderr.contains("panicked"), "{command}: {stderr}");
        }
    }
}

fn run(command: &str, config: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_phiward")).arg(command).arg("--config").arg(config).output().unwrap()
}

/// If this fails, none of the tests below shows anything.
#[test]
fn the_unspoilt_folder_is_good() {
    let output = Folder::new().phiward("check");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains(RECORDS));
}

/// If this fails, a typing error costs a night.
#[test]
fn a_wrong_configuration_is_refused_with_every_place() {
    let folder = Folder::new();
    folder.write("sidecar.yaml", CONFIG.replace("bind: \"127.0.0.1:0\", app", "bnid: \"127.0.0.1:0\", app"));
    folder.refused(1, &["sidecar.yaml:7:", "did you mean `bind`", "needs the key `bind`"]);
    folder.write("sidecar.yaml", "version: 1\n  workload: {");
    folder.refused(1, &["sidecar.yaml:2:"]);
    folder.write("sidecar.yaml", CONFIG.replace("version: 1", "version: &a 1"));
    folder.refused(1, &["sidecar.yaml:1:", "anchor"]);
    folder.write("sidecar.yaml", format!("{CONFIG}admin: {{}}\n"));
    folder.refused(1, &["sidecar.yaml:11:1", "admin"]);
    folder.remove("sidecar.yaml");
    folder.refused(2, &["sidecar.yaml", "No such file"]);
}

/// If this fails, a wrong policy is taken for a good one, or nobody finds the wrong line.
#[test]
fn a_wrong_policy_is_refused_with_its_place() {
    let folder = Folder::new();
    folder.write("policy.yaml", POLICY.replace("role: chart-read", "role: chart-raed"));
    folder.refused(1, &["policy.yaml:11:", "chart-raed"]);
    folder.write("policy.yaml", POLICY.replace("metadata:", "rate_limits: {}\nmetadata:"));
    folder.refused(1, &["policy.yaml:3:", "rate_limits", "not supported"]);
    let failing = format!("{POLICY}tests:\n  - {{as: any, request: GET /open/a, expect: allow}}\n");
    folder.write("policy.yaml", failing);
    folder.refused(1, &["policy.yaml:16:", "the test expects allow"]);
    folder.remove("policy.yaml");
    folder.refused(2, &["policy.yaml", "No such file"]);
}

/// If this fails, a sidecar runs with a key that is not its own, or dies without saying why.
#[test]
fn wrong_identity_files_are_refused_by_name() {
    let folder = Folder::new();
    let other = folder.pki.workload("other", "spiffe://hospital.local/ns/clinic/sa/other");
    folder.write("svid.key", std::fs::read(other.join("svid.key")).unwrap());
    folder.refused(1, &["svid.key", "does not belong"]);

    let folder = Folder::new();
    folder.write("svid.pem", "-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n");
    folder.refused(1, &["svid.pem"]);

    let folder = Folder::new();
    let stranger = Pki::new();
    folder.write("bundle.pem", stranger.ca.cert_pem());
    folder.refused(1, &["bundle"]);

    let folder = Folder::new();
    folder.write("bundle.pem", "");
    folder.refused(1, &["bundle.pem"]);

    let folder = Folder::new();
    folder.remove("svid.pem");
    folder.refused(2, &["svid.pem"]);
}

/// If this fails, a sidecar starts with an identity that every peer refuses.
#[test]
fn an_expired_svid_is_refused() {
    let folder = Folder::new();
    let hours_ago = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() - 7200));
    let domain = TrustDomain::parse("hospital.local").unwrap();
    let ca = Ca::new(&domain, Duration::from_secs(360_000), hours_ago).unwrap();
    let svid = ca.issue(&SpiffeId::parse(RECORDS).unwrap(), Duration::from_secs(60), hours_ago).unwrap();
    folder.write("svid.pem", &svid.cert_pem);
    folder.write("svid.key", &svid.key_pem);
    folder.write("bundle.pem", ca.cert_pem());
    folder.refused(1, &["svid.pem", "expired"]);
}

/// If this fails, the pseudonyms of patients can be guessed.
#[test]
fn a_short_audit_key_is_refused() {
    let folder = Folder::new();
    folder.write("audit-hmac.key", "short");
    folder.refused(1, &["audit-hmac.key", "openssl rand -hex 32"]);
    folder.remove("audit-hmac.key");
    folder.refused(2, &["audit-hmac.key"]);
}

/// If this fails, a sidecar runs for days before somebody notices that no receiver lets it in, or shows a token to say so.
#[test]
fn a_sink_without_its_secret_or_its_ca_is_refused() {
    let folder = Folder::new();
    let sink = "{name: a, type: otlp, endpoint: \"https://a:1\", ca_file: ca.pem, bearer_token_file: token}";
    folder.write(
        "sidecar.yaml",
        CONFIG.replace("audit-hmac.key}", &format!("audit-hmac.key, sinks: [{sink}]}}")),
    );
    folder.refused(2, &["token", "cannot be read", "No such file"]);
    folder.write("token", "t0ken-0815\nt0ken-0815\n");
    folder.refused(1, &["token", "must be one line"]);
    assert!(!String::from_utf8(folder.phiward("check").stderr).unwrap().contains("0815"));
    folder.write("token", "t0ken-0815\n");
    folder.refused(2, &["ca.pem", "cannot be read"]);
    folder.write("ca.pem", std::fs::read(folder.dir.join("svid.key")).unwrap());
    folder.refused(1, &["ca.pem", "no file of CA certificates"]);
    folder.write("ca.pem", folder.pki.ca.cert_pem());
    assert_eq!(folder.phiward("check").status.code(), Some(0));
}

/// If this fails, a taken port is found out after traffic was accepted.
#[test]
fn a_taken_port_is_refused() {
    let folder = Folder::new();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    let config = CONFIG.replace("bind: \"127.0.0.1:0\", app", &format!("bind: \"{taken}\", app"));
    folder.write("sidecar.yaml", config);
    let output = folder.phiward("run");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(&taken) && stderr.contains("api"), "{stderr}");
}

/// If this fails, usage errors look like wrong inputs to a script.
#[test]
fn usage_errors_are_2_and_help_is_0() {
    let phiward = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_phiward")).args(args).output().unwrap().status.code()
    };
    assert_eq!(phiward(&["run"]), Some(2));
    assert_eq!(phiward(&["frobnicate"]), Some(2));
    for command in ["run", "dev", "check", "policy", "audit", "collect", "identity"] {
        assert_eq!(phiward(&[command, "--help"]), Some(0), "{command}");
    }
}

/// If this fails, a federation or a TLS posture that was meant is not had, or one that is wrong is found out by the partner.
#[test]
fn a_wrong_federation_or_posture_is_refused_with_its_place() {
    let folder = Folder::new();
    let endpoint = |entry: &str| {
        CONFIG.replace("inbound:", &format!("  federation: [{{trust_domain: p.example, {entry}}}]\ninbound:"))
    };
    for (entry, words) in [
        ("crl: a.crl", "needs the bundle of its trust domain"),
        ("endpoint: {url: \"http://p.example/\", profile: https_web}", "must be https://"),
        ("endpoint: {url: \"https://me@p.example/\", profile: https_web}", "must be https://"),
        ("endpoint: {url: \"https://p.example/\"}", "needs the key `profile`"),
        ("endpoint: {url: \"https://p.example/\", profile: web}", "profile"),
        ("endpoint: {url: \"https://p.example/\", profile: https_spiffe}", "needs the `spiffe_id`"),
        (
            "endpoint: {url: \"https://p.example/\", profile: https_web, spiffe_id: \"spiffe://p.example/s\"}",
            "https_spiffe",
        ),
        (
            "endpoint: {url: \"https://p.example/\", profile: https_spiffe, spiffe_id: \"spiffe://p.example/s\"}",
            "needs a first bundle",
        ),
        (
            "endpoint: {url: \"https://p.example/\", profile: https_web}, crl: a.crl",
            "`crl` belongs to a `bundle`",
        ),
    ] {
        folder.write("sidecar.yaml", endpoint(entry));
        folder.refused(1, &["sidecar.yaml:6:", words]);
    }
    for (tls, words) in [("{min_version: \"1.1\"}", "min_version"), ("{post_quantum: on}", "post_quantum")] {
        folder.write("sidecar.yaml", format!("{CONFIG}tls: {tls}\n"));
        folder.refused(1, &["sidecar.yaml:11:", words]);
    }
    folder.write("sidecar.yaml", CONFIG.replace("bundle: bundle.pem", "bundle: bundle.pem, crl: a.crl"));
    folder.refused(2, &["a.crl: cannot read it"]);
    folder.write("a.crl", folder.pki.ca.cert_pem());
    folder.refused(1, &["a.crl:1:", "holds revocation lists alone"]);
}
