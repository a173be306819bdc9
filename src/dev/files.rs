//! The files of the development mesh: a CA, SVIDs, keys, a policy and configurations, as an operator would write them.
//!
//! They are real: the mesh is started from them by the loader that `run` uses, and a reader can change and reuse them.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::UnixTime;

use super::DevError;
use crate::identity::{Ca, SpiffeId, TrustDomain};

const TRUST_DOMAIN: &str = "hospital.local";
const CA_VALIDITY: Duration = Duration::from_secs(30 * 24 * 3600);
const SVID_VALIDITY: Duration = Duration::from_secs(24 * 3600);

const POLICY: &str = include_str!("policy.yaml");

/// Where the files are.
pub(super) struct Files {
    dir: PathBuf,
}

impl Files {
    /// Writes everything under `dir`, which may hold the state of an earlier run: identities and configurations are made
    /// anew, pseudonym keys, spools and the collector's store stay.
    pub(super) fn write(dir: PathBuf) -> Result<Self, DevError> {
        let files = Self { dir };
        files.make_folder(&files.dir)?;
        let domain = TrustDomain::parse(TRUST_DOMAIN)?;
        let now = UnixTime::now();
        let ca = Ca::new(&domain, CA_VALIDITY, now)?;
        files.write_secret("ca/ca.key", &ca.key_pem())?;
        files.write_file("ca/ca.pem", ca.cert_pem())?;
        for name in ["web", "records", "billing", "collector"] {
            let id = SpiffeId::parse(&identity_of(name))?;
            let svid = ca.issue(&id, SVID_VALIDITY, now)?;
            files.write_file(&format!("{name}/svid.pem"), &svid.cert_pem)?;
            files.write_secret(&format!("{name}/svid.key"), &svid.key_pem)?;
            files.write_file(&format!("{name}/bundle.pem"), ca.cert_pem())?;
        }
        for name in ["web", "records", "billing"] {
            if !files.path(&format!("{name}/audit-hmac.key")).exists() {
                files.write_secret(&format!("{name}/audit-hmac.key"), &random_hex()?)?;
            }
        }
        files.write_file("records/policy.yaml", POLICY)?;
        files.write_file("records/sidecar.yaml", &sidecar("records", 15010, RECORDS_SIDE))?;
        files.write_file("web/sidecar.yaml", &sidecar("web", 15000, &caller_side(15001)))?;
        files.write_file("billing/sidecar.yaml", &sidecar("billing", 15020, &caller_side(15002)))?;
        files.write_file("collector/collector.yaml", COLLECTOR)?;
        Ok(files)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn write_file(&self, name: &str, text: &str) -> Result<(), DevError> {
        self.put(name, text, 0o644)
    }

    fn write_secret(&self, name: &str, text: &str) -> Result<(), DevError> {
        self.put(name, text, 0o600)
    }

    fn put(&self, name: &str, text: &str, mode: u32) -> Result<(), DevError> {
        let path = self.path(name);
        if let Some(folder) = path.parent() {
            self.make_folder(folder)?;
        }
        let written = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&path)
            .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
        written.map_err(|error| DevError::Files { path, error })
    }

    fn make_folder(&self, path: &Path) -> Result<(), DevError> {
        fs::create_dir_all(path).map_err(|error| DevError::Files { path: path.to_owned(), error })
    }
}

fn identity_of(name: &str) -> String {
    match name {
        "collector" => format!("spiffe://{TRUST_DOMAIN}/ns/audit/sa/collector"),
        _ => format!("spiffe://{TRUST_DOMAIN}/ns/clinic/sa/{name}"),
    }
}

fn random_hex() -> Result<String, DevError> {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| DevError::Random)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n")
}

fn sidecar(name: &str, admin: u16, side: &str) -> String {
    format!(
        "version: 1
workload: {{service: {name}, namespace: clinic}}
identity:
  trust_domain: {TRUST_DOMAIN}
  files: {{certificate: svid.pem, private_key: svid.key, bundle: bundle.pem}}
{side}
audit:
  spool: {{dir: audit}}
  key_file: audit-hmac.key
  sinks:
    - name: collector
      type: phiward
      endpoint: \"https://127.0.0.1:15200\"
      identities: [\"{collector}\"]
admin: {{bind: \"127.0.0.1:{admin}\"}}
workers: 1
",
        collector = identity_of("collector"),
    )
}

const RECORDS_SIDE: &str = "inbound:
  listeners:
    - {name: api, bind: \"127.0.0.1:15006\", app: \"127.0.0.1:18080\"}
policy: {file: policy.yaml}";

fn caller_side(port: u16) -> String {
    format!(
        "outbound:
  bind: \"127.0.0.1:{port}\"
  services:
    - name: records
      hosts: [records.clinic, records.clinic.svc.cluster.local]
      endpoints: [\"127.0.0.1:15006\"]
      identities: [\"{records}\"]",
        records = identity_of("records"),
    )
}

const COLLECTOR: &str = "version: 1
identity:
  trust_domain: hospital.local
  files: {certificate: svid.pem, private_key: svid.key, bundle: bundle.pem}
bind: \"127.0.0.1:15200\"
store: {dir: store}
";
