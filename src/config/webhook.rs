//! Reading what `phiward k8s` puts into pods, and how its webhook is reached.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::read::Reading;
use super::sidecar::transpose;
use crate::identity::TrustDomain;
use crate::yaml::Node;

/// Everything `phiward k8s webhook` needs to know.
#[derive(Debug, Clone)]
pub struct WebhookConfig {
    /// Where the API server asks, and who we are to it; absent where only `inject` reads the file.
    pub server: Option<WebhookServer>,
    /// What is put into pods.
    pub injection: Injection,
}

/// Where the API server asks.
#[derive(Debug, Clone)]
pub struct WebhookServer {
    /// The address.
    pub bind: SocketAddr,
    /// The certificate for the service's name, PEM. Both files are read again when they change.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub private_key: PathBuf,
}

/// What is put into pods, where their annotations do not say otherwise.
#[derive(Debug, Clone)]
pub struct Injection {
    /// The image of the sidecar and of the capture step.
    pub image: String,
    /// Of the workloads.
    pub trust_domain: TrustDomain,
    /// Where a sidecar's identity comes from.
    pub identity: IdentityVolume,
    /// The ConfigMap whose `policy.yaml` decides.
    pub policy: String,
    /// The Secret whose `audit-hmac.key` keys the pseudonyms.
    pub audit_key: String,
    /// `audit.sinks` of each sidecar, as JSON.
    pub sinks: serde_json::Value,
    /// CPU and memory that a sidecar asks for.
    pub cpu: String,
    /// See `cpu`.
    pub memory: String,
}

/// The volume that a sidecar's identity is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityVolume {
    /// The socket of a SPIRE agent, by the SPIFFE CSI driver (`csi.spiffe.io`).
    Spire,
    /// cert-manager's CSI driver for SPIFFE (`spiffe.csi.cert-manager.io`).
    CertManager,
    /// A Secret of the pod's namespace with `svid.pem`, `svid.key` and `bundle.pem`.
    Secret(String),
}

impl std::str::FromStr for IdentityVolume {
    type Err = String;

    /// `spire`, `cert-manager` or `secret/NAME`.
    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("secret/")) {
            ("spire", _) => Ok(Self::Spire),
            ("cert-manager", _) => Ok(Self::CertManager),
            (_, Some(name)) if !name.is_empty() => Ok(Self::Secret(name.to_owned())),
            _ => {
                Err(format!("`{text}` is no source of identities: write spire, cert-manager or secret/NAME"))
            }
        }
    }
}

pub(super) fn read_webhook(r: &Reading<'_>, root: &Node) -> Option<WebhookConfig> {
    let mut f = r.fields(root, "the configuration")?;
    if let Some(node) = f.required("version")
        && r.reader.u64(node, "version", 0..=u64::MAX).is_some_and(|version| version != 1)
    {
        r.reader.problem(node.at, "version must be 1, the only one there is");
    }
    let server = f.optional("server").map(|n| read_server(r, n));
    let injection = f.required("injection").and_then(|n| read_injection(r, n));
    f.finish();
    Some(WebhookConfig { server: transpose(server)?, injection: injection? })
}

fn read_server(r: &Reading<'_>, node: &Node) -> Option<WebhookServer> {
    let mut f = r.fields(node, "server")?;
    let bind = f.required("bind").and_then(|n| r.address(n, "bind"));
    let certificate = f.required("certificate").and_then(|n| r.path(n, "certificate"));
    let private_key = f.required("private_key").and_then(|n| r.path(n, "private_key"));
    f.finish();
    Some(WebhookServer { bind: bind?, certificate: certificate?, private_key: private_key? })
}

fn read_injection(r: &Reading<'_>, node: &Node) -> Option<Injection> {
    let mut f = r.fields(node, "injection")?;
    let text = |n: Option<&Node>, what: &str, default: &str| {
        n.map_or(Some(default.to_owned()), |n| r.reader.string(n, what).map(str::to_owned))
    };
    let image = f.required("image").and_then(|n| text(Some(n), "image", ""));
    let trust_domain = f.required("trust_domain").and_then(|n| r.trust_domain(n, "trust_domain"));
    let identity = f.required("identity").and_then(|n| {
        let parsed = r.reader.string(n, "identity")?.parse();
        parsed.map_err(|error: String| r.reader.problem(n.at, error)).ok()
    });
    let policy = text(f.optional("policy"), "policy", "phiward-policy");
    let audit_key = text(f.optional("audit_key"), "audit_key", "phiward-audit-key");
    // Judged with the rest of a sidecar's configuration; as JSON, which a list of sinks in YAML's flow style is.
    let sinks = f
        .optional("sinks")
        .map_or(Some(serde_json::json!([])), |n| Some(crate::kubernetes::manifest::value(n)));
    let cpu = text(f.optional("cpu"), "cpu", "50m");
    let memory = text(f.optional("memory"), "memory", "64Mi");
    f.finish();
    Some(Injection {
        image: image?,
        trust_domain: trust_domain?,
        identity: identity?,
        policy: policy?,
        audit_key: audit_key?,
        sinks: sinks?,
        cpu: cpu?,
        memory: memory?,
    })
}
