//! The blocks `identity` and `tls` of both configuration files: who gives a workload its identity, and how it is shown.

use super::model::{BundleEndpoint, EndpointTrust, IdentityConfig, IdentitySource};
use super::read::Reading;
use super::sidecar::{from_environment, transpose};
use crate::identity::{BundlePaths, FilePaths, TrustDomain};
use crate::tls::{MinVersion, PostQuantum, Posture};
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

/// Reads the block `tls`.
pub(super) fn read_posture(r: &Reading<'_>, node: &Node) -> Option<Posture> {
    let mut f = r.fields(node, "tls")?;
    let min_version = f.optional("min_version").map_or(Some(MinVersion::default()), |n| {
        r.reader.one_of(n, "min_version", &[("1.3", MinVersion::Tls13), ("1.2", MinVersion::Tls12)])
    });
    let post_quantum = f.optional("post_quantum").map_or(Some(PostQuantum::default()), |n| {
        r.reader.one_of(n, "post_quantum", &[("off", PostQuantum::Off), ("prefer", PostQuantum::Prefer)])
    });
    f.finish();
    Some(Posture { min_version: min_version?, post_quantum: post_quantum? })
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
        let bundle = read_bundle(r, &mut f);
        f.finish();
        Some((certificate?, private_key?, bundle?))
    });
    let partners = f.optional("federation").map_or(Some(Vec::new()), |n| {
        let items = r.reader.list(n, "federation")?.iter().map(|item| read_partner(r, item));
        items.collect::<Vec<_>>().into_iter().collect::<Option<Vec<_>>>()
    });
    let (certificate, private_key, bundle) = files?;
    let (mut federation, mut endpoints) = (Vec::new(), Vec::new());
    for Partner { domain, bundle, endpoint } in partners? {
        federation.extend(bundle.map(|bundle| (domain, bundle)));
        endpoints.extend(endpoint);
    }
    Some(IdentitySource::Files(FilePaths { certificate, private_key, bundle, federation }, endpoints))
}

/// An entry of `federation`.
struct Partner {
    domain: TrustDomain,
    bundle: Option<BundlePaths>,
    endpoint: Option<BundleEndpoint>,
}

fn read_partner(r: &Reading<'_>, node: &Node) -> Option<Partner> {
    let mut f = r.fields(node, "a federation entry")?;
    let domain = f.required("trust_domain").and_then(|n| r.trust_domain(n, "trust_domain"));
    let anchors = f.optional("bundle").map(|n| r.path(n, "bundle"));
    let crl = f.optional("crl").map(|n| (n.at, r.path(n, "crl")));
    let endpoint = f.optional("endpoint").map(|n| read_bundle_endpoint(r, n, domain.as_ref()));
    if anchors.is_none() && endpoint.is_none() {
        r.reader.problem_with_hint(
            node.at,
            "a federation entry needs the bundle of its trust domain",
            "add `bundle: FILE`, or `endpoint: {url: ..., profile: https_web}`",
        );
    }
    if let Some((at, _)) = &crl
        && anchors.is_none()
    {
        r.reader.problem(*at, "`crl` belongs to a `bundle` in a file: an endpoint gives none");
    }
    if let (None, Some(Some(BundleEndpoint { trust: EndpointTrust::Spiffe(id), trust_domain, .. }))) =
        (&anchors, &endpoint)
        && id.trust_domain() == trust_domain.as_str()
    {
        r.reader.problem_with_hint(
            node.at,
            "an endpoint that is known by an ID of its own trust domain needs a first bundle",
            "add `bundle: FILE` with the CA certificates that its operator gave you; the endpoint renews them",
        );
    }
    f.finish();
    let crl = transpose(crl.map(|(_, path)| path));
    let bundle = transpose(anchors)?.map(|anchors| BundlePaths { anchors, crl: crl.clone().flatten() });
    crl?;
    Some(Partner { domain: domain?, bundle, endpoint: transpose(endpoint)? })
}

fn read_bundle_endpoint(
    r: &Reading<'_>,
    node: &Node,
    domain: Option<&TrustDomain>,
) -> Option<BundleEndpoint> {
    let mut f = r.fields(node, "a bundle endpoint")?;
    let url = f.required("url").and_then(|n| {
        let parsed = r.reader.string(n, "url")?.parse::<http::Uri>().ok();
        let good = parsed.filter(|uri| {
            uri.scheme_str() == Some("https")
                && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
        });
        if good.is_none() {
            r.reader.problem(n.at, "the URL of a bundle endpoint must be https://HOST[:PORT][/PATH]");
        }
        good
    });
    let web = f
        .required("profile")
        .and_then(|n| r.reader.one_of(n, "profile", &[("https_web", true), ("https_spiffe", false)]));
    let ca_file = f.optional("ca_file").map(|n| (n.at, r.path(n, "ca_file")));
    let spiffe_id = f.optional("spiffe_id").map(|n| (n.at, r.identity(n, "spiffe_id")));
    f.finish();
    let trust = match (web?, ca_file, spiffe_id) {
        (true, ca_file, None) => EndpointTrust::Web(transpose(ca_file.map(|(_, path)| path))?),
        (false, None, Some((_, id))) => EndpointTrust::Spiffe(id?),
        (true, _, Some((at, _))) => {
            r.reader.problem(at, "`spiffe_id` belongs to `profile: https_spiffe`");
            return None;
        }
        (false, Some((at, _)), _) => {
            r.reader.problem(at, "`ca_file` belongs to `profile: https_web`");
            return None;
        }
        (false, None, None) => {
            r.reader.problem(node.at, "`profile: https_spiffe` needs the `spiffe_id` of the endpoint");
            return None;
        }
    };
    let url = url?;
    Some(BundleEndpoint {
        trust_domain: domain?.clone(),
        host: url.host()?.trim_matches(['[', ']']).to_owned(),
        port: url.port_u16().unwrap_or(443),
        path: url.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned(),
        trust,
    })
}

fn read_bundle(r: &Reading<'_>, f: &mut Fields<'_, '_>) -> Option<BundlePaths> {
    let anchors = f.required("bundle").and_then(|n| r.path(n, "bundle"));
    let crl = f.optional("crl").map(|n| r.path(n, "crl"));
    Some(BundlePaths { anchors: anchors?, crl: transpose(crl)? })
}
