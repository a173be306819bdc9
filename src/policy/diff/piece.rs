//! One piece of what is gained: whether it is empty for which methods, hosts and forms of a path, and how it is told.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::super::method::Method;
use super::conditions::{Wants, solve};
use super::gain::{World, example};
use super::view::{Area, View};
use super::walk::{Goal, TooMany};
use super::{Change, Exception};

/// The form of a path, as far as the `path:` block of one policy may refuse what that of the other lets pass. The least is
/// that which every policy lets pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Form {
    /// The other policy refuses it.
    pub(super) refused: bool,
    pub(super) slash: bool,
    pub(super) params: bool,
    pub(super) longer_than: usize,
    pub(super) at_most: usize,
}

/// Requests that one version allows: of one area, and of a second one if that is what the other version denies.
pub(super) struct Piece<'s, 'p> {
    pub(super) area: &'s Area<'p>,
    pub(super) denied: Option<&'s Area<'p>>,
    /// The other version allows the area too, so it is new only where that version refuses a request before all rules.
    pub(super) is_kept: bool,
}

pub(super) struct Search<'a, 's, 'p> {
    pub(super) world: &'a World,
    pub(super) from: &'a View<'s, 'p>,
    pub(super) to: &'a View<'s, 'p>,
    pub(super) forms: &'a [Form],
    pub(super) undecided: &'a mut Vec<String>,
}

/// A request of a piece.
#[derive(Clone)]
struct Witness {
    path: String,
    wants: Wants,
}

/// Why the other version does not allow a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    Rules,
    Host,
    Form,
}

/// Where a piece is not empty.
struct Hit {
    class: usize,
    form: Form,
    why: Why,
    methods: Vec<(Method, Witness)>,
}

/// The areas that may take something from a piece.
struct Near<'s, 'p> {
    /// This version denies them.
    denied: Vec<&'s Area<'p>>,
    /// Told for everyone.
    health: Vec<&'s Area<'p>>,
    /// The other version lets everyone ask for them, in any form that it does not refuse.
    other_health: Vec<&'s Area<'p>>,
    /// The other version allows them.
    allowed: Vec<&'s Area<'p>>,
}

impl<'s, 'p> Search<'_, 's, 'p> {
    /// The piece as changes, as far as it is not empty.
    pub(super) fn changes(&mut self, piece: &Piece<'s, 'p>) -> Vec<Change> {
        let near = self.near(piece);
        let mut hits = Vec::new();
        let mut known = HashMap::new();
        for (class, (host, _)) in self.world.hosts.iter().enumerate() {
            let is_for = |hosts: Option<&[String]>| hosts.is_none_or(|hosts| hosts.contains(host));
            let concerns = |area: &Area<'_>| area.is_for_host(host);
            if !is_for(self.to.hosts) || !concerns(piece.area) || !piece.denied.is_none_or(concerns) {
                continue;
            }
            for form in self.forms {
                let why = match form.refused {
                    true => Why::Form,
                    false if !is_for(self.from.hosts) => Why::Host,
                    false => Why::Rules,
                };
                // What the other version refuses before all rules is found with the area alone.
                let is_wanted = match (why, piece.denied) {
                    (Why::Rules, None) => !piece.is_kept,
                    (Why::Rules, Some(_)) => true,
                    (Why::Host | Why::Form, denied) => denied.is_none(),
                };
                if is_wanted {
                    let methods = self.methods(piece, &near, host, (*form, why), &mut known);
                    hits.push(Hit { class, form: *form, why, methods });
                }
            }
        }
        hits.retain(|hit| !hit.methods.is_empty());
        self.told(piece, &near, hits)
    }

    fn near(&self, piece: &Piece<'s, 'p>) -> Near<'s, 'p> {
        let relaxed = self.to.rules.preserve_encoded_slash || self.to.rules.allow_matrix_params;
        let meets = |area: &&Area<'_>| {
            piece.area.methods.meets(area.methods)
                && (relaxed && area.track.is_wide() || piece.area.track.may_meet(&area.track))
        };
        let allowed = self.from.allow.iter().copied().filter(meets);
        Near {
            denied: self.to.deny.iter().copied().filter(meets).collect(),
            health: self.to.health.iter().filter(meets).collect(),
            other_health: self.from.health.iter().filter(meets).collect(),
            allowed: if piece.denied.is_none() { allowed.collect() } else { Vec::new() },
        }
    }

    /// The methods with which the piece is not empty, each with a request.
    fn methods(
        &mut self,
        piece: &Piece<'s, 'p>,
        near: &Near<'s, 'p>,
        host: &str,
        (form, why): (Form, Why),
        known: &mut HashMap<(Vec<u32>, Form), Option<Witness>>,
    ) -> Vec<(Method, Witness)> {
        let mut found = Vec::new();
        for method in Method::ALL {
            let has = |area: &Area<'_>| area.methods.contains(method);
            if !has(piece.area) || !piece.denied.is_none_or(has) {
                continue;
            }
            let outside = near.against(why).filter(|area| has(area) && area.is_for_host(host));
            let outside: Vec<_> = outside.collect();
            let key = (outside.iter().map(|area| area.key).collect(), form);
            let witness = match known.get(&key) {
                Some(witness) => witness.clone(),
                None => {
                    let witness = self.witness(piece, &outside, form);
                    known.insert(key, witness.clone());
                    witness
                }
            };
            found.extend(witness.map(|witness| (method, witness)));
        }
        found
    }

    fn witness(&mut self, piece: &Piece<'_, '_>, outside: &[&Area<'_>], form: Form) -> Option<Witness> {
        let goal = Goal {
            inside: &piece.area.track,
            also: piece.denied.map(|denied| &denied.track),
            outside: outside.iter().map(|area| (&area.track, area.is_plain())).collect(),
            slash: form.slash,
            params: form.params,
            longer_than: form.longer_than,
            at_most: form.at_most,
        };
        let wanted: Vec<_> = std::iter::once(piece.area).chain(piece.denied).collect();
        let found = goal.find(&self.world.fresh, |matched| {
            let unwanted: Vec<_> = matched.iter().map(|at| outside[*at]).collect();
            solve(&wanted, &unwanted)
        });
        match found {
            Ok(found) => found.map(|(path, wants)| Witness { path, wants }),
            Err(TooMany) => {
                let rule = piece.area.rule.as_deref().unwrap_or("the policy");
                self.undecided.push(format!("`{}` of {rule}: too many rules overlap", piece.area.path));
                None
            }
        }
    }

    /// One change for each set of methods and hosts. What is found in a plain form needs no second mention in another.
    fn told(&self, piece: &Piece<'_, '_>, near: &Near<'_, '_>, mut hits: Vec<Hit>) -> Vec<Change> {
        hits.sort_by_key(|hit| (hit.form, hit.class));
        let mut told: BTreeMap<usize, Vec<Method>> = BTreeMap::new();
        let mut groups: Vec<(Vec<Hit>, Vec<Method>)> = Vec::new();
        for mut hit in hits {
            let before = told.entry(hit.class).or_default();
            hit.methods.retain(|(method, _)| !before.contains(method));
            let methods: Vec<_> = hit.methods.iter().map(|(method, _)| *method).collect();
            if methods.is_empty() {
                continue;
            }
            before.extend(&methods);
            let same = |(hits, known): &&mut (Vec<Hit>, Vec<Method>)| {
                *known == methods && (hits[0].form, hits[0].why) == (hit.form, hit.why) // a group has a hit
            };
            match groups.iter_mut().find(same) {
                Some((hits, _)) => hits.push(hit),
                None => groups.push((vec![hit], methods)),
            }
        }
        groups.into_iter().map(|(hits, methods)| self.change(piece, near, &hits, methods)).collect()
    }

    fn change(
        &self,
        piece: &Piece<'_, '_>,
        near: &Near<'_, '_>,
        hits: &[Hit],
        methods: Vec<Method>,
    ) -> Change {
        let first = &hits[0]; // a change has a hit, with a method
        let (method, witness) = &first.methods[0];
        let host = &self.world.hosts[first.class].0;
        let target = match &witness.wants.query {
            Some(query) => format!("{}?{query}", witness.path),
            None => witness.path.clone(),
        };
        let mut headers = vec![("host".to_owned(), host.clone())];
        headers.extend(witness.wants.headers.iter().cloned());
        let conditions =
            piece.area.conditions.iter().chain(piece.denied.iter().flat_map(|area| &area.conditions));
        Change {
            path: piece.area.path.to_owned(),
            hosts: self.hosts(piece, hits),
            conditions: conditions.cloned().chain(form_text(first.form)).collect(),
            except: exceptions(near, first.why, &methods, host),
            permission: piece.area.rule.clone(),
            because: because(piece, first.why),
            example: example(format!("{} {target}", method.as_str()), headers),
            methods,
        }
    }

    /// The hosts of `hits`; none when these are all that the piece is for.
    fn hosts(&self, piece: &Piece<'_, '_>, hits: &[Hit]) -> Option<Vec<String>> {
        let is_meant = |host: &String| {
            self.to.hosts.is_none_or(|hosts| hosts.contains(host))
                && piece.area.is_for_host(host)
                && piece.denied.is_none_or(|area| area.is_for_host(host))
        };
        let meant = self.world.hosts.iter().filter(|(host, _)| is_meant(host)).count();
        let restricted = piece.area.hosts.is_some() || piece.denied.is_some_and(|area| area.hosts.is_some());
        if meant == hits.len() && !restricted {
            return None;
        }
        let names = hits.iter().flat_map(|hit| match &self.world.hosts[hit.class].1 {
            Some(names) => names.clone(),
            None => vec!["every host that is not named".to_owned()],
        });
        Some(names.collect())
    }
}

impl<'s, 'p> Near<'s, 'p> {
    /// The areas that take something from the piece where the other version does not allow it for the reason `why`. What
    /// a policy refuses for its form is refused before health paths are looked at, what it refuses for its host after that.
    fn against(&self, why: Why) -> impl Iterator<Item = &'s Area<'p>> {
        let other_health = if why == Why::Form { &[] } else { self.other_health.as_slice() };
        let allowed = if why == Why::Rules { self.allowed.as_slice() } else { &[] };
        self.denied.iter().chain(&self.health).chain(other_health).chain(allowed).copied()
    }
}

fn form_text(form: Form) -> Option<String> {
    let mut parts = Vec::new();
    if form.slash {
        parts.push("%2F in the path".to_owned());
    }
    if form.params {
        parts.push("';' in the path".to_owned());
    }
    if form.longer_than > 0 {
        parts.push(format!("a path of more than {} bytes", form.longer_than));
    }
    if parts.is_empty() { None } else { Some(parts.join(", ")) }
}

fn because(piece: &Piece<'_, '_>, why: Why) -> String {
    match (why, piece.denied.and_then(|denied| denied.rule.as_ref())) {
        (Why::Form, _) => "the `path` block refuses such paths".to_owned(),
        (Why::Host, _) => "service.hosts does not name the host".to_owned(),
        (Why::Rules, Some(rule)) => format!("the deny rule `{rule}` denies it"),
        (Why::Rules, None) => "no permission grants it".to_owned(),
    }
}

fn exceptions(near: &Near<'_, '_>, why: Why, methods: &[Method], host: &str) -> Vec<Exception> {
    let concerns = |area: &&&Area<'_>| {
        area.is_for_host(host) && methods.iter().any(|method| area.methods.contains(*method))
    };
    let part = |area: &Area<'_>| if area.is_plain() { "" } else { ", in part" };
    let denied = near.denied.iter().filter(concerns).map(|area| {
        let rule = area.rule.as_deref().unwrap_or_default();
        Exception { path: area.path.to_owned(), because: format!("denied by `{rule}`{}", part(area)) }
    });
    let allowed = near.allowed.iter().filter(|_| why == Why::Rules).filter(concerns).map(|area| {
        let rule = area.rule.as_deref().unwrap_or("shadow mode");
        Exception { path: area.path.to_owned(), because: format!("allowed by both: `{rule}`{}", part(area)) }
    });
    denied.chain(allowed).collect::<BTreeSet<_>>().into_iter().collect()
}
