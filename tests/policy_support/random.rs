//! Policies and requests from a seed: small alphabets, so that rules and requests meet often.

use fastrand::Rng;

use super::{Asked, Binding, Deny, Header, Model, Permission, Query, TIMES, Time};

const METHODS: [&str; 3] = ["GET", "POST", "DELETE"];
const HOSTS: [&str; 2] = ["a.b", "c.d"];
const IDS: [&str; 6] =
    ["spiffe://d/a", "spiffe://d/b", "spiffe://d/*", "spiffe://d/x/**", "spiffe://d/**", "spiffe://e/a"];
const WHO: [&str; 6] =
    ["spiffe://d/a", "spiffe://d/b", "spiffe://d/x/y", "spiffe://d/x/y/z", "spiffe://e/a", "spiffe://f/a"];
const HEADERS: [&str; 2] = ["x-a", "content-type"];
const VALUES: [&str; 3] = ["a", "b", "A;q"];
const PARAMS: [&str; 4] = ["p", "_count", "q.r", "p:exact"];
const TEXTS: [&str; 4] = ["1", "a b", "a+b", "9"];
const LISTENERS: [&str; 2] = ["db", "mq"];

fn pick<'a>(rng: &mut Rng, all: &[&'a str]) -> &'a str {
    all[rng.usize(..all.len())]
}

fn one_in(rng: &mut Rng, many: u32) -> bool {
    rng.u32(..many) == 0
}

/// Some of `all`, at least one, each once.
fn some(rng: &mut Rng, all: &[&str]) -> Vec<String> {
    let mut found: Vec<String> = all.iter().filter(|_| rng.bool()).map(|text| (*text).to_owned()).collect();
    if found.is_empty() {
        found.push(pick(rng, all).to_owned());
    }
    rng.shuffle(&mut found);
    found
}

fn maybe<T>(rng: &mut Rng, many: u32, make: impl FnOnce(&mut Rng) -> T) -> Option<T> {
    one_in(rng, many).then(|| make(rng))
}

pub fn model(rng: &mut Rng) -> Model {
    let shadow = one_in(rng, 6);
    let hosts = rng.bool().then(|| some(rng, &HOSTS));
    let mut model = Model {
        shadow,
        hosts,
        health: maybe(rng, 3, |_| vec!["/a".to_owned(), "/".to_owned()]).unwrap_or_default(),
        slashes: one_in(rng, 3),
        matrix: one_in(rng, 3),
        ..Model::default()
    };
    for role in 0..rng.usize(1..4) {
        let permissions =
            (0..rng.usize(1..5)).map(|at| permission(rng, &model, format!("p{role}-{at}"))).collect();
        model.roles.push(permissions);
    }
    for _ in 0..rng.usize(1..5) {
        let (mut from, mut until) = (maybe(rng, 4, time), maybe(rng, 4, time));
        if from.zip(until).is_some_and(|(from, until)| from.1 >= until.1) {
            (from, until) = (None, until);
        }
        let role = rng.usize(..model.roles.len());
        model.bindings.push(Binding { role, ids: some(rng, &IDS), from: from.take(), until });
    }
    for at in 0..rng.usize(..4) {
        let deny = deny(rng, &model, format!("d{at}"));
        model.denies.push(deny);
    }
    model
}

fn time(rng: &mut Rng) -> Time {
    TIMES[rng.usize(..TIMES.len())]
}

fn permission(rng: &mut Rng, model: &Model, name: String) -> Permission {
    let shadow = !model.shadow && one_in(rng, 5);
    if one_in(rng, 8) {
        return Permission { name, tcp: Some(some(rng, &LISTENERS)), shadow, ..Permission::default() };
    }
    Permission {
        name,
        methods: some(rng, &METHODS),
        paths: paths(rng, model),
        hosts: maybe(rng, 5, |rng| hosts(rng, model)),
        headers: headers(rng, 5),
        query: maybe(rng, 3, query),
        tcp: None,
        shadow,
    }
}

fn hosts(rng: &mut Rng, model: &Model) -> Vec<String> {
    match &model.hosts {
        Some(hosts) => some(rng, &hosts.iter().map(String::as_str).collect::<Vec<_>>()),
        None => some(rng, &HOSTS),
    }
}

fn headers(rng: &mut Rng, many: u32) -> Vec<Header> {
    let names = maybe(rng, many, |rng| some(rng, &HEADERS)).unwrap_or_default();
    names.into_iter().map(|name| (name, some(rng, &VALUES))).collect()
}

fn deny(rng: &mut Rng, model: &Model, name: String) -> Deny {
    let mut deny = Deny {
        name,
        paths: rng.bool().then(|| paths(rng, model)),
        methods: maybe(rng, 3, |rng| some(rng, &METHODS)),
        hosts: maybe(rng, 5, |rng| hosts(rng, model)),
        headers: headers(rng, 4),
        ids: maybe(rng, 3, |rng| some(rng, &IDS)),
        until: maybe(rng, 4, time),
        shadow: !model.shadow && one_in(rng, 4),
    };
    let bare = deny.paths.is_none() && deny.methods.is_none() && deny.hosts.is_none();
    if bare && deny.headers.is_empty() && deny.ids.is_none() {
        deny.paths = Some(paths(rng, model));
    }
    deny
}

fn query(rng: &mut Rng) -> Query {
    let names = some(rng, &PARAMS);
    let mut query = Query::default();
    for name in &names {
        match rng.u32(..4) {
            0 => query.any.push(name.clone()),
            1 => query.require.push((name.clone(), some(rng, &TEXTS))),
            2 => query.max.push((name.clone(), rng.u64(..12))),
            _ => {}
        }
    }
    let nothing = query.any.is_empty() && query.require.is_empty() && query.max.is_empty();
    if nothing || rng.bool() {
        query.allow = Some(if nothing && one_in(rng, 4) { Vec::new() } else { names });
    }
    query
}

fn paths(rng: &mut Rng, model: &Model) -> Vec<String> {
    let mut all: Vec<String> = (0..rng.usize(1..4)).map(|_| pattern(rng, model)).collect();
    all.sort();
    all.dedup();
    rng.shuffle(&mut all);
    all
}

fn pattern(rng: &mut Rng, model: &Model) -> String {
    let mut segments = vec!["a", "b", "A", "$x", "%24x", "*", "{id}", "a.b"];
    segments.extend(model.slashes.then_some("a%2Fb"));
    segments.extend(model.matrix.then_some("a;v"));
    let mut text = String::new();
    for _ in 0..rng.usize(..4) {
        let segment = pick(rng, &segments);
        if segment != "{id}" || !text.contains("{id}") {
            text += &format!("/{segment}");
        }
    }
    match rng.u32(..5) {
        0 => text += "/**",
        1 => text += "/",
        _ if text.is_empty() => text += "/",
        _ => {}
    }
    text
}

pub fn asked(rng: &mut Rng) -> Asked {
    let now = TIMES[rng.usize(..TIMES.len())].1 + rng.i64(-1..=1);
    let (method, target) = if one_in(rng, 10) {
        ("TCP", pick(rng, &["db", "mq", "none"]).to_owned())
    } else {
        (pick(rng, &["GET", "GET", "GET", "POST", "DELETE", "PUT", "get"]), target(rng))
    };
    let mut headers = Vec::new();
    while one_in(rng, 2) && headers.len() < 4 {
        let name = pick(rng, &["x-a", "X-A", "x_a", "content-type", "Content_Type", "connection", "x-other"]);
        let values = [
            "a",
            "b",
            "A",
            "a, b",
            " a ",
            "a;q",
            "A;q",
            "\"a\"",
            "b;q=1, a",
            "",
            "x",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "close, X-A",
            "content-type",
        ];
        headers.push((name.to_owned(), pick(rng, &values).to_owned()));
    }
    let host = pick(rng, &["a.b", "a.b", "A.B:80", "a.b.", "c.d", "c.d", "e.f"]).to_owned();
    Asked { id: pick(rng, &WHO).to_owned(), method: method.to_owned(), target, host, headers, now }
}

/// A raw target: mostly one that can be read, with some of everything that cannot.
pub fn target(rng: &mut Rng) -> String {
    let usual = ["a", "b", "A", "$x", "%24x", "a.b", "%61", "a.", "a%20", "a%2E%2eb", "B", "1"];
    let odd = [
        "..", ".", "", "%2e", "%2E.", "a%2Fb", "a%2f..", "a;v", "%3Bv", ";", "a;../x", "%252e", "%2", "%zz",
        "é", "a\\b", "%5c", "%00", "%0a", "a b", "..%20", "%C3%A9", "%c0%ae", "{", "a%2F", "%2Fa", "..;v",
        "a%3b%2Fb", "%25", "%25zz", "a#b",
    ];
    let mut text = String::new();
    for _ in 0..rng.usize(..5) {
        let segment = if one_in(rng, 14) { pick(rng, &odd) } else { pick(rng, &usual) };
        text += &format!("/{segment}");
    }
    if text.is_empty() || one_in(rng, 5) {
        text += "/";
    }
    if one_in(rng, 60) {
        text.remove(0);
    }
    if rng.bool() {
        text += "?";
        let names = ["p", "p", "_count", "_count", "q.r", "p:exact", "other"];
        let odd_names = [
            "P", "%70", "p[]", "p%5B0%5D", "p:x", "%2570", "+p", "p%20", ".count", "q_r", "", "pp",
            "_method", "p%00", "%",
        ];
        let values = [
            "1",
            "1",
            "9",
            "12",
            "a%20b",
            "a+b",
            "a%2Bb",
            "",
            "+",
            "%20",
            "09",
            "%39",
            "%2539",
            "1;p=2",
            "x",
            "999999999999999999999",
        ];
        let mut separator = "";
        while one_in(rng, 2) || separator.is_empty() {
            let name = if one_in(rng, 8) { pick(rng, &odd_names) } else { pick(rng, &names) };
            text += separator;
            text += name;
            if !one_in(rng, 10) {
                text += &format!("={}", pick(rng, &values));
            }
            separator = if one_in(rng, 20) { "&&" } else { "&" };
        }
    }
    if text.is_empty() { "x".to_owned() } else { text }
}
