//! A policy as areas of requests: one for each pattern of a permission or deny rule, with all its conditions.

use std::collections::{BTreeSet, HashMap};

use super::super::PathRules;
use super::super::compile::{CompiledDeny, CompiledPermission, Policy, Template};
use super::super::headers::HeaderRule;
use super::super::method::{Method, MethodSet};
use super::super::params::QueryRule;
use super::super::pattern::PathPattern;
use super::super::wording;
use super::walk::Track;

/// The requests that one pattern of one rule is about.
#[derive(Debug)]
pub(super) struct Area<'p> {
    /// `role/permission`, or the deny rule's name; none for what is allowed whatever the rules say.
    pub(super) rule: Option<String>,
    /// The same for areas of the same requests, in both policies.
    pub(super) key: u32,
    pub(super) methods: MethodSet,
    pub(super) hosts: Option<&'p [String]>,
    /// The pattern as written.
    pub(super) path: &'p str,
    pub(super) track: Track,
    pub(super) headers: &'p [HeaderRule],
    pub(super) query: Option<&'p QueryRule>,
    /// In words, what a request must be besides.
    pub(super) conditions: Vec<String>,
}

impl Area<'_> {
    /// True when method, host and path are all that it asks for.
    pub(super) fn is_plain(&self) -> bool {
        self.headers.is_empty() && self.query.is_none()
    }

    pub(super) fn is_for_host(&self, host: &str) -> bool {
        self.hosts.is_none_or(|hosts| hosts.iter().any(|known| known == host))
    }
}

/// Numbers for areas of the same requests.
#[derive(Default)]
pub(super) struct Interner(HashMap<String, u32>);

impl Interner {
    fn key(&mut self, area: &Area<'_>) -> u32 {
        let Area { methods, hosts, track, headers, query, .. } = area;
        let fresh = self.0.len() as u32; // fits: bounded by the bytes of two files
        *self
            .0
            .entry(format!("{methods:?} {hosts:?} {} {headers:?} {query:?}", track.signature()))
            .or_insert(fresh)
    }
}

/// All areas of one policy.
pub(super) struct Side<'p> {
    pub(super) policy: &'p Policy,
    /// With the role.
    allow: Vec<(u32, Area<'p>)>,
    /// With the deny rule.
    deny: Vec<(u32, Area<'p>)>,
    pub(super) health: Vec<Area<'p>>,
    /// Every request there is: what a policy in shadow mode allows.
    everything: Vec<Area<'p>>,
}

impl<'p> Side<'p> {
    pub(super) fn new(policy: &'p Policy, interner: &mut Interner) -> Self {
        let mut allow = Vec::new();
        for permission in policy.permissions.iter().filter(|permission| !permission.shadow) {
            for template in &policy.templates[permission.paths.clone()] {
                allow.push((permission.role, permission_area(policy, permission, template)));
            }
        }
        let mut deny = Vec::new();
        for (rule, compiled) in (0..).zip(&policy.denies).filter(|(_, deny)| !deny.shadow) {
            match &compiled.paths {
                None => deny.push((rule, deny_area(compiled, None))),
                Some(paths) => policy.templates[paths.clone()]
                    .iter()
                    .for_each(|template| deny.push((rule, deny_area(compiled, Some(template))))),
            }
        }
        let mut health: Vec<_> = policy.health.iter().map(|template| bare(&template.0, get())).collect();
        let mut everything = vec![anything()];
        let numbered = allow.iter_mut().chain(&mut deny).map(|(_, area)| area);
        for area in numbered.chain(&mut health).chain(&mut everything) {
            area.key = interner.key(area);
        }
        Self { policy, allow, deny, health, everything }
    }

    /// Every list of hosts in the policy.
    pub(super) fn host_lists(&self) -> impl Iterator<Item = &'p [String]> {
        let areas = self.allow.iter().chain(&self.deny).filter_map(|(_, area)| area.hosts);
        areas.chain(self.policy.hosts.as_deref())
    }

    /// Every track, for texts that none of them has.
    pub(super) fn tracks(&self) -> impl Iterator<Item = &Track> {
        let rules = self.allow.iter().chain(&self.deny).map(|(_, area)| area);
        rules.chain(&self.health).map(|area| &area.track)
    }
}

fn permission_area<'p>(
    policy: &'p Policy,
    permission: &'p CompiledPermission,
    template: &'p Template,
) -> Area<'p> {
    Area {
        rule: Some(format!("{}/{}", policy.roles[permission.role as usize], permission.name)),
        hosts: permission.hosts.as_deref(),
        headers: &permission.headers,
        query: permission.query.as_ref(),
        conditions: wording::conditions(&permission.headers, permission.query.as_ref()),
        ..bare(&template.0, permission.methods)
    }
}

fn deny_area<'p>(deny: &'p CompiledDeny, template: Option<&'p Template>) -> Area<'p> {
    let area = match template {
        Some(template) => Area { track: Track::wide(&template.0), ..bare(&template.0, deny.methods) },
        None => Area { track: Track::everything(true), methods: deny.methods, ..anything() },
    };
    Area {
        rule: Some(deny.name.clone()),
        hosts: deny.hosts.as_deref(),
        headers: &deny.headers,
        conditions: wording::conditions(&deny.headers, None),
        ..area
    }
}

fn bare(pattern: &PathPattern, methods: MethodSet) -> Area<'_> {
    Area {
        rule: None,
        key: 0,
        methods,
        hosts: None,
        path: pattern.as_str(),
        track: Track::narrow(pattern),
        headers: &[],
        query: None,
        conditions: Vec::new(),
    }
}

fn anything<'p>() -> Area<'p> {
    Area {
        rule: None,
        key: 0,
        methods: MethodSet::ALL,
        hosts: None,
        path: "/**",
        track: Track::everything(false),
        headers: &[],
        query: None,
        conditions: Vec::new(),
    }
}

fn get() -> MethodSet {
    let mut methods = MethodSet::default();
    methods.insert(Method::Get);
    methods
}

/// What one policy says about one identity at one time.
pub(super) struct View<'s, 'p> {
    pub(super) allow: Vec<&'s Area<'p>>,
    pub(super) deny: Vec<&'s Area<'p>>,
    pub(super) health: &'s [Area<'p>],
    /// The hosts that the policy is for.
    pub(super) hosts: Option<&'p [String]>,
    pub(super) rules: PathRules,
    /// The TCP listeners it may use; none means all there are.
    pub(super) tcp: Option<BTreeSet<&'p str>>,
}

impl<'s, 'p> View<'s, 'p> {
    pub(super) fn new(side: &'s Side<'p>, (roles, denies): &(Vec<u32>, Vec<u32>)) -> Self {
        let policy = side.policy;
        let rules = *policy.path_rules();
        if policy.shadow {
            // What it would reject passes too: as far as that is a matter of the `path:` block, in every form there can be.
            let rules = PathRules {
                preserve_encoded_slash: true,
                allow_matrix_params: true,
                max_bytes: PathRules::MOST_MAX_BYTES,
            };
            let allow = side.everything.iter().collect();
            return Self { allow, deny: Vec::new(), health: &side.health, hosts: None, rules, tcp: None };
        }
        let of = |list: &'s [(u32, Area<'p>)], ids: &[u32]| {
            list.iter().filter(|(id, _)| ids.binary_search(id).is_ok()).map(|(_, area)| area).collect()
        };
        let shut =
            denies.iter().map(|deny| &policy.denies[*deny as usize]).any(|deny| deny.tcp && !deny.shadow);
        let opens = |permission: &&CompiledPermission| {
            !shut && !permission.shadow && roles.binary_search(&permission.role).is_ok()
        };
        let tcp =
            policy.permissions.iter().filter(opens).flat_map(|permission| permission.tcp.iter().flatten());
        Self {
            allow: of(&side.allow, roles),
            deny: of(&side.deny, denies),
            health: &side.health,
            hosts: policy.hosts.as_deref(),
            rules,
            tcp: Some(tcp.map(String::as_str).collect()),
        }
    }
}
