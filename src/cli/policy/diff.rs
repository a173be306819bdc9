//! `phiward policy diff`: prints what a new version of a policy gives and takes.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::shared::{
    Format, NO, Paint, UNREADABLE, clock, complain, load, parse_now, policy_json, say, time,
};
use crate::policy::diff::{self, Change, Diff, Example, Group, Moved, Moving, Period, Who};
use crate::policy::{Method, Policy, UnixSeconds};

/// How many exceptions and identities are named in one line of text; JSON has all.
const SHOWN: usize = 4;

/// What `diff` is told.
#[derive(Debug, clap::Args)]
pub struct DiffArgs {
    /// The policy file as it was
    #[arg(value_name = "OLD")]
    old: PathBuf,
    /// The policy file as it shall be
    #[arg(value_name = "NEW")]
    new: PathBuf,
    /// Exit with 1 when the new version allows a request that the old one does not, or goes into shadow
    #[arg(long)]
    fail_on_widening: bool,
    /// Compare from this time on, instead of now: 2026-12-31 or 2026-12-31T18:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_now)]
    now: Option<UnixSeconds>,
    /// How to report
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) fn diff(args: DiffArgs) -> u8 {
    let (old, new) = (load(&args.old), load(&args.new));
    let (Some((_, old)), Some((_, new))) = (old, new) else { return UNREADABLE };
    let now = args.now.unwrap_or_else(clock);
    let found = diff::diff(&old, &new, now);
    let report = Report { old: &old, new: &new, now, found: &found };
    match args.format {
        Format::Text => say(&report.text()),
        Format::Json => say(&format!("{}\n", report.json())),
    }
    if !found.undecided.is_empty() {
        for what in &found.undecided {
            complain(&format!("error: not compared: {what}\n"));
        }
        return if args.fail_on_widening { NO } else { UNREADABLE };
    }
    if args.fail_on_widening && found.is_widened() { NO } else { 0 }
}

struct Report<'r> {
    old: &'r Policy,
    new: &'r Policy,
    now: UnixSeconds,
    found: &'r Diff,
}

impl Report<'_> {
    fn text(&self) -> String {
        let paint = Paint::stdout();
        let name = |policy: &Policy| format!("{} {}", policy.name(), policy.revision());
        let mut text = format!("{} -> {}\n", name(self.old), name(self.new));
        if !self.found.moved.is_empty() {
            text += &format!("\n{}\n", paint.bold("shadow"));
        }
        for moved in &self.found.moved {
            let sign = if moved.widens() { paint.red("+") } else { paint.green("-") };
            text += &format!("  {sign} {}\n", moved_text(moved));
        }
        for group in &self.found.groups {
            text += "\n";
            for line in heading(group, self.now) {
                text += &format!("{}\n", paint.bold(&line));
            }
            for change in &group.gained {
                text += &self.change(change, &paint.red("+"), "before");
            }
            for change in &group.lost {
                text += &self.change(change, &paint.green("-"), "now");
            }
        }
        text + "\n" + &self.verdict() + "\n"
    }

    fn verdict(&self) -> String {
        let (groups, moved) = (&self.found.groups, &self.found.moved);
        let gained = !self.found.undecided.is_empty() || groups.iter().any(|group| !group.gained.is_empty());
        let lost = groups.iter().any(|group| !group.lost.is_empty());
        let mut text = match (gained, lost) {
            (false, false) => "nobody gains or loses anything",
            (true, false) => "widened: requests are allowed that were not",
            (false, true) => "narrowed: requests are not allowed any more that were",
            (true, true) => {
                "widened and narrowed: some requests are allowed that were not, and some not any more"
            }
        }
        .to_owned();
        if !gained && moved.iter().any(Moved::widens) {
            text += "; widened all the same: less is enforced";
        }
        if !lost && moved.iter().any(|moved| !moved.widens()) {
            text += "; narrowed all the same: more is enforced, or less granted";
        }
        text
    }

    fn change(&self, change: &Change, sign: &str, when: &str) -> String {
        let what = match change.methods.as_slice() {
            [] => change.path.clone(),
            methods => format!("{} {}", methods_text(methods), change.path),
        };
        let rule = change.permission.as_ref().map(|rule| format!("  ({rule})")).unwrap_or_default();
        let mut text = format!("  {sign} {what}{rule}\n");
        // Writing to a String cannot fail.
        if let Some(hosts) = &change.hosts {
            let _ = writeln!(text, "      on {}", hosts.join(", "));
        }
        if !change.conditions.is_empty() {
            let _ = writeln!(text, "      if {}", change.conditions.join("; "));
        }
        let except: Vec<_> =
            change.except.iter().map(|except| format!("{} ({})", except.path, except.because)).collect();
        if !except.is_empty() {
            let _ = writeln!(text, "      but for {}", shortened(&except));
        }
        let _ = writeln!(text, "      {when}: {}", change.because);
        let _ = writeln!(text, "      e.g. {}", self.example(&change.example));
        let (old, new) = self.answers(&change.example);
        let _ = writeln!(text, "           {old} -> {new}");
        text
    }

    /// What either version decides about an example: the engine's own answer.
    fn answers(&self, example: &Example) -> (String, String) {
        (answer(self.old, example), answer(self.new, example))
    }

    /// The request as `explain` takes it.
    fn example(&self, example: &Example) -> String {
        let mut text = format!("--as {} --request '{}'", example.id.as_str(), example.line);
        let is_default = |name: &str, value: &str| {
            name == "host" && [self.old, self.new].iter().all(|policy| policy.default_host() == value)
        };
        // Writing to a String cannot fail.
        for (name, value) in example.headers.iter().filter(|(name, value)| !is_default(name, value)) {
            let _ = write!(text, " --header '{name}: {value}'");
        }
        if example.now != self.now {
            let _ = write!(text, " --now {}", time(example.now));
        }
        text
    }

    fn json(&self) -> Value {
        let groups = self.found.groups.iter().map(|group| {
            let changes = |changes: &[Change]| -> Vec<_> {
                changes.iter().map(|change| self.change_json(change)).collect()
            };
            json!({
                "everyone": group.everyone,
                "identities": group.who.iter().map(who_json).collect::<Vec<_>>(),
                "during": group.during.iter().map(period_json).collect::<Vec<_>>(),
                "gained": changes(&group.gained),
                "lost": changes(&group.lost),
            })
        });
        json!({
            "old": policy_json(self.old),
            "new": policy_json(self.new),
            "widened": self.found.is_widened(),
            "narrowed": self.found.is_narrowed(),
            "moved": self.found.moved.iter().map(moved_json).collect::<Vec<_>>(),
            "not_compared": self.found.undecided,
            "groups": groups.collect::<Vec<_>>(),
        })
    }

    fn change_json(&self, change: &Change) -> Value {
        let except =
            change.except.iter().map(|except| json!({"path": except.path, "because": except.because}));
        let (old, new) = self.answers(&change.example);
        let headers = change.example.headers.iter().map(|(name, value)| format!("{name}: {value}"));
        json!({
            "methods": change.methods.iter().map(|method| method.as_str()).collect::<Vec<_>>(),
            "path": change.path,
            "hosts": change.hosts,
            "conditions": change.conditions,
            "except": except.collect::<Vec<_>>(),
            "permission": change.permission,
            "because": change.because,
            "example": {
                "as": change.example.id.as_str(),
                "request": change.example.line,
                "headers": headers.collect::<Vec<_>>(),
                "now": time(change.example.now),
                "old": old,
                "new": new,
            },
        })
    }
}

/// A move into shadow or out of it, and what it means.
fn moved_text(moved: &Moved) -> String {
    let (what, enforced, shadow) = match &moved.what {
        Moving::Policy => ("the policy".to_owned(), "it refuses requests", "it refuses nothing any more"),
        Moving::Deny(rule) => (format!("the deny rule `{rule}`"), "it denies", "it denies nothing any more"),
        Moving::Permission(rule) => {
            (format!("the permission `{rule}`"), "it grants", "it grants nothing any more")
        }
    };
    match moved.into_shadow {
        true => format!("{what}: enforce -> shadow: {shadow}"),
        false => format!("{what}: shadow -> enforce: {enforced}"),
    }
}

fn moved_json(moved: &Moved) -> Value {
    let (what, rule) = match &moved.what {
        Moving::Policy => ("policy", None),
        Moving::Deny(rule) => ("deny", Some(rule)),
        Moving::Permission(rule) => ("permission", Some(rule)),
    };
    let mode = |shadow: bool| if shadow { "shadow" } else { "enforce" };
    let (from, to) = (mode(!moved.into_shadow), mode(moved.into_shadow));
    json!({"what": what, "rule": rule, "from": from, "to": to, "widens": moved.widens()})
}

fn answer(policy: &Policy, example: &Example) -> String {
    let Some(decision) = example.decision(policy) else { return "no request".to_owned() };
    let rule = decision.rule.map(|rule| format!(" `{rule}`")).unwrap_or_default();
    format!("{} ({}{rule})", decision.outcome.as_str(), decision.reason.as_str())
}

fn heading(group: &Group, now: UnixSeconds) -> Vec<String> {
    let mut lines: Vec<_> = match group.everyone {
        true => vec!["everyone".to_owned()],
        false => group.who.iter().map(who_text).collect(),
    };
    let whole = Period { from: now, until: None };
    if group.during != [whole] {
        let periods: Vec<_> = group.during.iter().map(period_text).collect();
        lines.push(format!("  {}", periods.join("; ")));
    }
    lines
}

fn who_text(who: &Who) -> String {
    if who.patterns.is_empty() {
        return "everyone whom no pattern names".to_owned();
    }
    let except =
        if who.except.is_empty() { String::new() } else { format!(", but for {}", shortened(&who.except)) };
    format!("{}{except}", who.patterns.join(" and "))
}

fn period_text(period: &Period) -> String {
    match period.until {
        Some(until) => format!("from {} until {}", time(period.from), time(until)),
        None => format!("from {} on", time(period.from)),
    }
}

fn methods_text(methods: &[Method]) -> String {
    if methods.len() == Method::ALL.len() {
        return "any method".to_owned();
    }
    methods.iter().map(|method| method.as_str()).collect::<Vec<_>>().join(", ")
}

fn shortened(all: &[String]) -> String {
    let shown = all.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if all.len() > SHOWN { format!("{shown} and {} more", all.len() - SHOWN) } else { shown }
}

fn who_json(who: &Who) -> Value {
    json!({"patterns": who.patterns, "except": who.except, "example": who.example.as_str()})
}

fn period_json(period: &Period) -> Value {
    json!({"from": time(period.from), "until": period.until.map(time)})
}
