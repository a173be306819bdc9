//! What one version allows and the other does not, for one identity at one time.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::super::method::Method;
use super::piece::{Form, Piece, Search};
use super::view::{Area, Side, View};
use super::walk::Track;
use super::{Change, Example};
use crate::policy::UnixSeconds;

/// What no rule of either policy tells apart: hosts by class, and texts that occur in no rule.
pub(super) struct World {
    /// One host for each class, with all that the files name of it; none for all that they do not name.
    pub(super) hosts: Vec<(String, Option<Vec<String>>)>,
    listeners: BTreeSet<String>,
    /// A listener that no rule names.
    other_listener: String,
    /// A path segment that no literal begins with.
    pub(super) fresh: String,
}

impl World {
    pub(super) fn new(sides: [&Side<'_>; 2]) -> Self {
        let lists: BTreeSet<_> = sides.iter().flat_map(|side| side.host_lists()).collect();
        let named: BTreeSet<_> = lists.iter().flat_map(|list| list.iter()).collect();
        let mut classes: BTreeMap<Vec<bool>, Vec<String>> = BTreeMap::new();
        for host in named.iter().copied() {
            classes
                .entry(lists.iter().map(|list| list.contains(host)).collect())
                .or_default()
                .push(host.clone());
        }
        let other = numbered("other.invalid").find(|host| !named.contains(host)).unwrap_or_default();
        let mut classes: Vec<_> = classes.into_values().collect();
        classes.sort();
        let known = classes.into_iter().map(|hosts| (hosts[0].clone(), Some(hosts))); // a class has a host
        let starts: BTreeSet<_> = sides
            .iter()
            .flat_map(|side| side.tracks())
            .flat_map(Track::literals)
            .map(str::to_ascii_lowercase)
            .collect();
        let single = "123456789xyzabcdefghijklmnopqrstuvw0".chars().map(String::from);
        let mut candidates = single.chain(numbered("q"));
        let fresh = candidates.find(|text| !starts.iter().any(|literal| literal.starts_with(text.as_str())));
        let listeners = sides.iter().flat_map(|side| side.policy.tcp_listeners());
        let listeners: BTreeSet<_> = listeners.map(str::to_owned).collect();
        let other_listener = numbered("other-listener").find(|name| !listeners.contains(name));
        Self {
            hosts: known.chain([(other, None)]).collect(),
            other_listener: other_listener.unwrap_or_default(),
            listeners,
            fresh: fresh.unwrap_or_default(), // there is always one more number
        }
    }

    /// What `to` allows and `from` does not.
    pub(super) fn gained(
        &self,
        from: &View<'_, '_>,
        to: &View<'_, '_>,
        undecided: &mut Vec<String>,
    ) -> Vec<Change> {
        let kept: HashSet<_> = from.allow.iter().map(|area| area.key).collect();
        let denied: HashSet<_> = to.deny.iter().map(|area| area.key).collect();
        let lifted: Vec<_> = from.deny.iter().filter(|area| !denied.contains(&area.key)).copied().collect();
        let forms = forms(from, to);
        let same_hosts = from.hosts == to.hosts;
        let mut changes = Vec::new();
        for area in &to.allow {
            let is_kept = kept.contains(&area.key);
            if is_kept && lifted.is_empty() && same_hosts && forms.len() == 1 {
                continue;
            }
            let mut search = Search { world: self, from, to, forms: &forms, undecided };
            changes.extend(search.changes(&Piece { area, denied: None, is_kept }));
            // Of an area that is new, what the other version denies is told already, but for what it would allow otherwise.
            let would = |allowed: &&Area<'_>| {
                area.methods.meets(allowed.methods) && area.track.may_meet(&allowed.track)
            };
            let is_told = !is_kept && (lifted.is_empty() || !from.allow.iter().any(would));
            let lifted = lifted.iter().filter(|_| !is_told);
            for denied in lifted.filter(|denied| area.methods.meets(denied.methods)) {
                changes.extend(search.changes(&Piece { area, denied: Some(denied), is_kept }));
            }
        }
        changes.extend(self.tcp(from, to));
        changes
    }

    fn tcp(&self, from: &View<'_, '_>, to: &View<'_, '_>) -> Vec<Change> {
        let may =
            |view: &View<'_, '_>, name: &str| view.tcp.as_ref().is_none_or(|names| names.contains(name));
        let named = self.listeners.iter().map(|name| (name, format!("TCP {name}")));
        let all = named.chain([(&self.other_listener, "TCP *".to_owned())]);
        let gained = all.filter(|(name, _)| may(to, name) && !may(from, name));
        let change = |(name, path): (&String, String)| Change {
            methods: Vec::new(),
            path,
            hosts: None,
            conditions: Vec::new(),
            except: Vec::new(),
            permission: None,
            because: "no permission opens the listener, or a deny rule shuts it".to_owned(),
            example: example(format!("TCP {name}"), Vec::new()),
        };
        gained.map(change).collect()
    }

    /// The health paths that `to` has and `from` has not: everyone may `GET` them.
    pub(super) fn health(&self, from: &Side<'_>, to: &Side<'_>) -> Vec<Change> {
        let open = |side: &Side<'_>, path: &str| {
            let known = side.health.iter().any(|known| known.path == path);
            side.policy.is_shadow() || known && path.len() <= side.policy.path_rules().max_bytes
        };
        let gained = to.health.iter().filter(|area| open(to, area.path) && !open(from, area.path));
        let change = |area: &Area<'_>| Change {
            methods: vec![Method::Get],
            path: area.path.to_owned(),
            hosts: None,
            conditions: Vec::new(),
            except: Vec::new(),
            permission: None,
            because: "it is not a path of service.health".to_owned(),
            example: example(format!("GET {}", area.path), vec![("host".to_owned(), "localhost".to_owned())]),
        };
        gained.map(change).collect()
    }
}

/// The forms of paths that `to` lets pass. The first is that which every policy lets pass.
fn forms(from: &View<'_, '_>, to: &View<'_, '_>) -> Vec<Form> {
    let (old, new) = (&from.rules, &to.rules);
    let mut forms = Vec::new();
    for slash in [false, true] {
        for params in [false, true] {
            if slash && !new.preserve_encoded_slash || params && !new.allow_matrix_params {
                continue;
            }
            let refused = slash && !old.preserve_encoded_slash || params && !old.allow_matrix_params;
            let both = old.max_bytes.min(new.max_bytes);
            forms.push(Form { refused, slash, params, longer_than: 0, at_most: both });
            if new.max_bytes > both {
                forms.push(Form { refused: true, slash, params, longer_than: both, at_most: new.max_bytes });
            }
        }
    }
    forms
}

/// Who asks and when is filled in by who knows.
pub(super) fn example(line: String, headers: Vec<(String, String)>) -> Example {
    Example { id: super::identities::nobody(), now: UnixSeconds(0), line, headers }
}

/// `text`, then `text1`, `text2` and so on.
fn numbered(text: &str) -> impl Iterator<Item = String> {
    std::iter::once(text.to_owned()).chain((1_u64..).map(move |number| format!("{text}{number}")))
}
