//! What a rule asks of a request besides its method and path: host, headers, query.

use super::Admitted;
use super::compile::{CompiledDeny, CompiledPermission, names};
use super::headers::{HeaderMiss, HeaderRule, has_form_body};
use super::params::QueryMiss;

/// The first condition of a permission that does not hold, or of a deny rule.
pub(super) enum Miss<'r> {
    Host(&'r [String]),
    Header(&'r HeaderRule, HeaderMiss),
    Query(QueryMiss<'r>),
    /// A deny rule's header has none of the denied values.
    NotDenied(&'r HeaderRule),
}

impl CompiledPermission {
    /// True when it asks for more than a method and a path.
    pub(super) fn is_conditional(&self) -> bool {
        self.hosts.is_some() || !self.headers.is_empty() || self.query.is_some()
    }

    /// Whether host, headers and query are as it wants.
    pub(super) fn check(&self, request: &Admitted<'_>) -> Result<(), Miss<'_>> {
        check_host(self.hosts.as_deref(), request)?;
        for rule in &self.headers {
            rule.allows(request.headers).map_err(|miss| Miss::Header(rule, miss))?;
        }
        if let Some(query) = &self.query {
            query.check(request.query).map_err(Miss::Query)?;
            if has_form_body(request.headers) {
                return Err(Miss::Query(QueryMiss::FormBody));
            }
        }
        Ok(())
    }

    /// True when its conditions hold whenever those of `other` do.
    pub(super) fn conditions_include(&self, other: &Self) -> bool {
        let headers = |ours: &HeaderRule| other.headers.iter().any(|theirs| ours.includes(theirs));
        let query = match (&self.query, &other.query) {
            (None, _) => true,
            (Some(ours), Some(theirs)) => ours.includes(theirs),
            (Some(_), None) => false,
        };
        includes_hosts(self.hosts.as_deref(), other.hosts.as_deref())
            && self.headers.iter().all(headers)
            && query
    }
}

impl CompiledDeny {
    /// True when it is about more than identities, methods and paths.
    pub(super) fn is_conditional(&self) -> bool {
        self.hosts.is_some() || !self.headers.is_empty()
    }

    /// Whether host and headers are as it denies them.
    pub(super) fn check(&self, request: &Admitted<'_>) -> Result<(), Miss<'_>> {
        check_host(self.hosts.as_deref(), request)?;
        let passes = |rule: &&HeaderRule| !rule.denies(request.headers);
        self.headers.iter().find(passes).map_or(Ok(()), |rule| Err(Miss::NotDenied(rule)))
    }

    /// True when its conditions hold whenever those of `other` do.
    pub(super) fn conditions_include(&self, other: &Self) -> bool {
        let headers = |ours: &HeaderRule| other.headers.iter().any(|theirs| ours.includes_folded(theirs));
        includes_hosts(self.hosts.as_deref(), other.hosts.as_deref()) && self.headers.iter().all(headers)
    }

    /// True when it covers a permission whenever that one's conditions hold.
    pub(super) fn conditions_include_permission(&self, permission: &CompiledPermission) -> bool {
        let headers =
            |ours: &HeaderRule| permission.headers.iter().any(|theirs| ours.includes_folded(theirs));
        includes_hosts(self.hosts.as_deref(), permission.hosts.as_deref()) && self.headers.iter().all(headers)
    }
}

fn check_host<'r>(hosts: Option<&'r [String]>, request: &Admitted<'_>) -> Result<(), Miss<'r>> {
    match hosts {
        Some(hosts) if !names(hosts, &request.host) => Err(Miss::Host(hosts)),
        _ => Ok(()),
    }
}

/// True when a rule for the hosts `wider` holds wherever one for `hosts` does; none means any host.
fn includes_hosts(wider: Option<&[String]>, hosts: Option<&[String]>) -> bool {
    match (wider, hosts) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(wider), Some(hosts)) => hosts.iter().all(|host| wider.contains(host)),
    }
}

impl Miss<'_> {
    /// For a person; `host` is the request's. Tells what the rule wants, and nothing of what a header or the query held.
    pub(super) fn describe(&self, host: &str) -> String {
        match self {
            Self::Host(hosts) => format!("it is for the host {}, not {host}", hosts.join(" or ")),
            Self::Header(rule, miss) => {
                let name = &rule.name;
                match miss {
                    HeaderMiss::Absent => format!("it needs the header `{name}`"),
                    HeaderMiss::Repeated => format!("there is more than one line of the header `{name}`"),
                    HeaderMiss::Dropped => format!("Connection names `{name}`, so the app would not see it"),
                    HeaderMiss::Value => format!("`{name}` must be exactly {}", rule.values.join(" or ")),
                }
            }
            Self::NotDenied(rule) => format!("`{}` is not {}", rule.name, rule.values.join(" or ")),
            Self::Query(miss) => describe_query(miss),
        }
    }
}

fn describe_query(miss: &QueryMiss<'_>) -> String {
    match miss {
        QueryMiss::Separator => "the query has a ';', which separates parameters to some servers".into(),
        QueryMiss::FormBody => "the body is a form, which could hold parameters past the query rule".into(),
        QueryMiss::Unlisted => "the query has a parameter that `query.allow` does not list".into(),
        QueryMiss::LooksLike(param) => {
            format!("the query has a parameter that some servers take for `{}`", param.name)
        }
        QueryMiss::Repeated(param) => format!("the query has `{}` more than once", param.name),
        QueryMiss::Missing(param) => format!("it needs the query parameter `{}`", param.name),
        QueryMiss::Value(param) => {
            let values = param.values.as_deref().unwrap_or_default();
            format!("`{}` must be {}", param.name, values.join(" or "))
        }
        QueryMiss::Number(param) => {
            format!("`{}` must be a number up to {}", param.name, param.max.unwrap_or_default())
        }
        QueryMiss::NoneOf(rule) => {
            let names = rule.params().iter().filter(|param| param.any).map(|param| param.name.as_str());
            format!("it needs one of the query parameters {}", names.collect::<Vec<_>>().join(", "))
        }
    }
}
