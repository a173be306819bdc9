//! The `identity` block of both configuration files: who gives a workload its identity.

use super::model::{IdentityConfig, IdentitySource};
use super::read::Reading;
use super::sidecar::from_environment;
use crate::identity::FilePaths;
use crate::yaml::{Fields, Node};

/// Reads the block.
pub(super) fn read_identity(r: &Reading<'_>, node: &Node) -> Option<IdentityConfig> {
    let mut f = r.fields(node, "identity")?;
    let trust_domain = f.required("trust_domain").and_then(|n| r.trust_domain(n, "trust_domain"));
    let source = match f.optional("source") {
        None => Some("files"),
        Some(n) => r.reader.string(n, "source").filter(|text| {
            let known = ["files", "spire"].contains(text);
            if !known {
                r.reader.problem(n.at, "source must be `files` or `spire`");
            }
            known
        }),
    };
    let source = match source {
        Some("spire") => read_spire(r, &mut f),
        Some(_) => read_identity_files(r, &mut f),
        None => None,
    };
    f.finish();
    Some(IdentityConfig { trust_domain: trust_domain?, source: source? })
}

fn read_spire(r: &Reading<'_>, f: &mut Fields<'_, '_>) -> Option<IdentitySource> {
    for key in ["files", "federation"] {
        if let Some(n) = f.optional(key) {
            let message =
                format!("`{key}` cannot stand beside `source: spire`: the agent gives SVIDs and bundles");
            r.reader.problem(n.at, message);
        }
    }
    let (at, text) = match f.optional("spire") {
        Some(n) => {
            let mut f = r.fields(n, "spire")?;
            let socket =
                f.required("socket").and_then(|n| Some((n.at, r.reader.string(n, "socket")?.to_owned())));
            f.finish();
            socket?
        }
        None => match from_environment("SPIFFE_ENDPOINT_SOCKET") {
            Some(text) => (f.at(), text),
            None => {
                let hint = "add `spire: {socket: \"unix:///run/spire/sockets/agent.sock\"}`, or set SPIFFE_ENDPOINT_SOCKET";
                r.reader.problem_with_hint(f.at(), "`source: spire` needs the agent's socket", hint);
                return None;
            }
        },
    };
    // SPIFFE Workload Endpoint, section 4: a URI whose path is absolute. TCP endpoints say nothing about who asks.
    match text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")) {
        Some(path) if path.starts_with('/') => Some(IdentitySource::Spire(path.into())),
        _ => {
            let hint = "write unix:///run/spire/sockets/agent.sock";
            r.reader.problem_with_hint(at, "the agent's socket must be unix:// and an absolute path", hint);
            None
        }
    }
}

fn read_identity_files(r: &Reading<'_>, f: &mut Fields<'_, '_>) -> Option<IdentitySource> {
    if let Some(n) = f.optional("spire") {
        r.reader.problem_with_hint(
            n.at,
            "`spire` needs `source: spire`",
            "leave one of `files` and `spire` out",
        );
    }
    let files = f.required("files").and_then(|n| {
        let mut f = r.fields(n, "files")?;
        let certificate = f.required("certificate").and_then(|n| r.path(n, "certificate"));
        let private_key = f.required("private_key").and_then(|n| r.path(n, "private_key"));
        let bundle = f.required("bundle").and_then(|n| r.path(n, "bundle"));
        f.finish();
        Some((certificate?, private_key?, bundle?))
    });
    let federation = f.optional("federation").map_or(Some(Vec::new()), |n| {
        let items = r.reader.list(n, "federation")?.iter().map(|item| {
            let mut f = r.fields(item, "a federation entry")?;
            let domain = f.required("trust_domain").and_then(|n| r.trust_domain(n, "trust_domain"));
            let bundle = f.required("bundle").and_then(|n| r.path(n, "bundle"));
            f.finish();
            Some((domain?, bundle?))
        });
        items.collect::<Vec<_>>().into_iter().collect()
    });
    let (certificate, private_key, bundle) = files?;
    Some(IdentitySource::Files(FilePaths { certificate, private_key, bundle, federation: federation? }))
}
