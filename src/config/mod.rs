//! The configuration files: read strictly, every problem reported at once with its place.
//!
//! `check` and `run` share this loader. It reads the file and the environment's names of the pod; it does not open the
//! files that the configuration names, nor any socket.

mod identity;
mod model;
mod read;
pub mod schema;
mod sidecar;
mod sinks;
mod traffic;
mod webhook;

use std::path::{Path, PathBuf};

pub use model::{
    AdminConfig, AppProtocol, AuditConfig, Bind, BundleEndpoint, CollectorConfig, Endpoint, EndpointTrust,
    IdentityConfig, IdentitySource, InboundConfig, InboundListener, Limits, MeshProtocol, Mode,
    OutboundAudit, OutboundConfig, ProbesConfig, ServiceConfig, SidecarConfig, SinkConfig, SinkTrust,
    Unknown, Workload,
};

pub use webhook::{IdentityVolume, Injection, WebhookConfig, WebhookServer};

use crate::yaml;
use read::Reading;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read at all.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file was read, and this is everything that is wrong with it, one `file:line:column: error: ...` each.
    #[error("{0}")]
    Invalid(String),
}

impl ConfigError {
    /// 2 for an input that cannot be read, 1 for one that is wrong.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unreadable { .. } => 2,
            Self::Invalid(_) => 1,
        }
    }
}

/// Loads the configuration of `phiward run`.
///
/// # Errors
/// [`ConfigError`], with every problem of the file.
pub fn load_sidecar(path: &Path) -> Result<SidecarConfig, ConfigError> {
    load(path, sidecar::read_sidecar)
}

/// Loads the configuration of `phiward collect`.
///
/// # Errors
/// [`ConfigError`], with every problem of the file.
pub fn load_collector(path: &Path) -> Result<CollectorConfig, ConfigError> {
    load(path, sidecar::read_collector)
}

/// Loads the configuration of `phiward k8s webhook`.
///
/// # Errors
/// [`ConfigError`], with every problem of the file.
pub fn load_webhook(path: &Path) -> Result<WebhookConfig, ConfigError> {
    load(path, webhook::read_webhook)
}

/// Reads a sidecar's configuration that is not in a file yet and will be at `path`.
///
/// # Errors
/// [`ConfigError::Invalid`], with every problem.
pub fn parse_sidecar(text: &str, path: &Path) -> Result<SidecarConfig, ConfigError> {
    parse(text.as_bytes(), path, sidecar::read_sidecar)
}

fn load<T>(path: &Path, read: fn(&Reading<'_>, &yaml::Node) -> Option<T>) -> Result<T, ConfigError> {
    let bytes =
        std::fs::read(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    parse(&bytes, path, read)
}

fn parse<T>(
    bytes: &[u8],
    path: &Path,
    read: fn(&Reading<'_>, &yaml::Node) -> Option<T>,
) -> Result<T, ConfigError> {
    let file = path.display().to_string();
    let text = String::from_utf8_lossy(bytes);
    let invalid = |problems: &[yaml::Problem]| ConfigError::Invalid(yaml::render(&file, &text, problems));
    let root = yaml::parse(bytes).map_err(|problem| invalid(&[problem]))?;
    let reader = yaml::Reader::new();
    let model = {
        let base = path.parent().unwrap_or(Path::new("."));
        read(&Reading::new(&reader, base), &root)
    };
    reader.finish(model).map_err(|problems| invalid(&problems))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str) -> Result<SidecarConfig, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sidecar.yaml");
        std::fs::write(&path, text).unwrap();
        load_sidecar(&path)
    }

    fn problems(text: &str) -> String {
        load_text(text).unwrap_err().to_string()
    }

    const SMALL: &str = "\
version: 1
workload: {service: records, namespace: clinic}
identity:
  trust_domain: hospital.local
  files: {certificate: svid.pem, private_key: svid.key, bundle: bundle.pem}
inbound:
  listeners: [{name: api, bind: \"0.0.0.0:15006\", app: \"127.0.0.1:8080\"}]
policy: {file: policy.yaml}
audit: {spool: {dir: audit}, key_file: hmac.key}
";

    /// If this fails, the documented example does not load.
    #[test]
    fn the_complete_example_loads() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/sidecar.yaml");
        let config = load_sidecar(&path).unwrap();
        assert_eq!(config.workload.service, "records");
        assert_eq!(config.inbound.unwrap().listeners[0].name, "api");
        assert_eq!(config.outbound.unwrap().services[0].name, "billing");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/collector.yaml");
        load_collector(&path).unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/webhook.yaml");
        assert!(load_webhook(&path).unwrap().server.is_some());
    }

    /// If this fails, a small configuration needs keys that the documentation says have defaults.
    #[test]
    fn defaults_fill_in_and_paths_are_relative_to_the_file() {
        let config = load_text(SMALL).unwrap();
        assert!(config.audit.dir.is_absolute() && config.audit.dir.ends_with("audit"));
        assert_eq!(config.limits.head_bytes, 64 * 1024);
        assert!(config.admin.bind.ip().is_loopback());
        assert!(config.workers >= 1);
        assert!(config.audit.spool_key_files.is_empty());
        for (keys, count) in [("spool.key", 1), ("[new.key, old.key]", 2)] {
            let encrypted =
                SMALL.replace("{dir: audit}", &format!("{{dir: audit, encryption_key_file: {keys}}}"));
            assert_eq!(load_text(&encrypted).unwrap().audit.spool_key_files.len(), count);
        }
    }

    /// If this fails, somebody fixes a configuration one error at a time.
    #[test]
    fn all_problems_are_reported_at_once_with_their_places() {
        let text = SMALL
            .replace("version: 1", "version: 2")
            .replace("trust_domain: hospital.local", "trust_domain: Hospital.local")
            .replace("app: \"127.0.0.1:8080\"", "app: \"localhost\"")
            .replace("key_file: hmac.key", "key_flie: hmac.key");
        let problems = problems(&text);
        for part in [
            "sidecar.yaml:1:10: error: version must be 1",
            "sidecar.yaml:4:17: error: trust_domain",
            "sidecar.yaml:7:55: error: app must be an address with a port",
            "did you mean `key_file`",
            "needs the key `key_file`",
        ] {
            assert!(problems.contains(part), "{part} in\n{problems}");
        }
    }

    /// If this fails, a listener would serve without knowing who may do what.
    #[test]
    fn an_inbound_side_needs_a_policy() {
        let text = SMALL.replace("policy: {file: policy.yaml}\n", "");
        assert!(problems(&text).contains("inbound listeners need a policy"));
    }

    /// If this fails, an option that would do nothing where it stands is silently ignored.
    #[test]
    fn what_does_not_go_together_is_refused() {
        let spire = SMALL.replace("  files:", "  source: spire\n  files:");
        assert!(problems(&spire).contains("`files` cannot stand beside `source: spire`"));
        let tcp = SMALL.replace("app: \"127", "protocol: tcp, app_protocol: h2c, app: \"127");
        assert!(problems(&tcp).contains("app_protocol is for `protocol: http`"));
        let service = |more: &str| {
            let rest = format!("name: a, endpoints: [\"a:1\"], identities: [\"spiffe://d/a\"], {more}");
            problems(&format!("{SMALL}outbound: {{bind: \"127.0.0.1:1\", services: [{{{rest}}}]}}\n"))
        };
        assert!(service("protocol: tcp, hosts: [a]").contains("hosts are for `protocol: http`"));
        assert!(service("protocol: tcp, mesh: h1").contains("mesh is for `protocol: http`"));
        assert!(service("hosts: [a], bind: \"127.0.0.1:2\"").contains("bind is for `protocol: tcp`"));
        let twice = SMALL.replace("bind: \"0.0.0.0:15006\"", "bind: [\"0.0.0.0:15006\", \"0.0.0.0:15006\"]");
        assert!(problems(&twice).contains("is there already"));
    }

    /// If this fails, a missing file is reported as a wrong one, or the other way round.
    #[test]
    fn a_file_that_is_not_there_is_unreadable() {
        let error = load_sidecar(Path::new("/nonexistent/sidecar.yaml")).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("/nonexistent/sidecar.yaml"));
    }
}
