//! Floods of denials: the first ones of a kind are events of their own, and those that follow within seconds are counted in
//! one `audit.summary`.
//!
//! A caller that is refused a million times must cost neither the spool nor who reads it a million records, and the count
//! must be exact all the same. Owns what is alike, the windows and their counts. Allows never come here. Knows nothing of
//! files, and the time is passed in.

use std::time::Duration;

use tokio::time::Instant;

use super::clock::InstantText;
use super::encode::{self, Pieces, Speller};
use super::event::{ConnFragment, Decision, PolicyFragment};
use super::journal;
use super::json::Members;

/// How long denials of one kind are counted together.
const WINDOW: Duration = Duration::from_secs(10);
/// So many of them in a window are events of their own.
const SINGLY: u32 = 20;
/// Paths are told as the policy writes them, up to so many.
const MAX_TEMPLATES: usize = 8;

/// What was refused, as far as a summary tells it.
pub(crate) struct Denial<'a> {
    pub(crate) time_unix_ns: u64,
    /// The type of the event that it would be.
    pub(crate) of: &'static str,
    pub(crate) conn: &'a ConnFragment,
    pub(crate) decision: Decision<'a>,
    pub(crate) policy: Option<&'a PolicyFragment>,
    pub(crate) template: Option<&'a str>,
}

/// What becomes of a denial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is an event of its own.
    Single,
    /// It is counted, and the first in a summary that will need a place.
    First,
    /// It is counted.
    Counted,
}

/// The windows of one worker. At most as many kinds are counted as the journal has slots; denials of further kinds are
/// events of their own.
pub(crate) struct Coalescer {
    slots: Vec<Slot>,
    /// Reused for each denial's kind.
    scratch: Vec<u8>,
    /// Reused for each summary.
    speller: Speller,
}

#[derive(Default)]
struct Slot {
    window: Option<Window>,
    /// The number of the last summary that was kept in it; it stays until that is recorded otherwise.
    last: u64,
}

/// Denials of one kind, within [`WINDOW`].
struct Window {
    /// What they have in common: the members before `id`, and those between `schema` and `summary`.
    kind: Vec<u8>,
    head_end: usize,
    of: &'static str,
    until: Instant,
    singly: u32,
    count: u64,
    first_ns: u64,
    last_ns: u64,
    /// Sorted, each once.
    templates: Vec<Box<str>>,
    more_templates: bool,
    /// Counted since its slot was written.
    changed: bool,
}

impl Coalescer {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new(), scratch: Vec::new(), speller: Speller::default() }
    }

    /// Counts a denial, or lets it be an event. `is_recorded` says whether an event of that number can be lost no more.
    pub(crate) fn admit(
        &mut self,
        denial: &Denial<'_>,
        now: Instant,
        is_recorded: impl Fn(u64) -> bool,
    ) -> Verdict {
        self.scratch.clear();
        let head_end = write_kind(&mut self.scratch, denial);
        let mut windows = self.slots.iter_mut().filter_map(|slot| slot.window.as_mut());
        if let Some(known) = windows.find(|known| known.of == denial.of && known.kind == self.scratch) {
            return known.admit(denial);
        }
        if self.slots.len() < journal::SLOTS {
            self.slots.push(Slot::default());
        }
        let free = self.slots.iter_mut().find(|slot| slot.window.is_none() && is_recorded(slot.last));
        if let Some(slot) = free {
            let mut window = Window::new(self.scratch.clone(), head_end, denial.of, now + WINDOW);
            let verdict = window.admit(denial);
            slot.window = Some(window);
            return verdict;
        }
        Verdict::Single
    }

    /// When the next window is over.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.slots.iter().filter_map(|slot| slot.window.as_ref()).map(|window| window.until).min()
    }

    /// Gives each summary that grew since this was asked last, with the number of its slot.
    ///
    /// # Errors
    /// What `keep` says; the summary is given again.
    pub(crate) fn grown<E>(
        &mut self,
        mut keep: impl FnMut(usize, Pieces<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        for (number, slot) in self.slots.iter_mut().enumerate() {
            if let Some(window) = slot.window.as_mut().filter(|window| window.changed) {
                keep(number, window.spell(&mut self.speller, window.last_ns))?;
                window.changed = false;
            }
        }
        Ok(())
    }

    /// Ends the windows that are over at `now`, or all of them, and gives the summary of each in which something was counted,
    /// with the number of its slot. `record` gives the number that the summary has as an event.
    pub(crate) fn end(
        &mut self,
        now: Option<Instant>,
        now_ns: u64,
        mut record: impl FnMut(usize, Pieces<'_>) -> u64,
    ) {
        for (number, slot) in self.slots.iter_mut().enumerate() {
            let over = slot.window.take_if(|window| now.is_none_or(|now| window.until <= now));
            if let Some(window) = over.filter(|window| window.count > 0) {
                slot.last = record(number, window.spell(&mut self.speller, now_ns.max(window.last_ns)));
            }
        }
    }
}

impl Window {
    fn new(kind: Vec<u8>, head_end: usize, of: &'static str, until: Instant) -> Self {
        Self {
            kind,
            head_end,
            of,
            until,
            singly: 0,
            count: 0,
            first_ns: 0,
            last_ns: 0,
            templates: Vec::new(),
            more_templates: false,
            changed: false,
        }
    }

    fn admit(&mut self, denial: &Denial<'_>) -> Verdict {
        if self.singly < SINGLY || !self.takes(denial.template) {
            self.singly += 1;
            return Verdict::Single;
        }
        self.first_ns = if self.count == 0 { denial.time_unix_ns } else { self.first_ns };
        self.last_ns = self.last_ns.max(denial.time_unix_ns);
        self.count += 1;
        self.changed = true;
        if self.count == 1 { Verdict::First } else { Verdict::Counted }
    }

    /// Whether a summary that tells the template too can be kept in a slot; a template that does not fit is not told.
    fn takes(&mut self, template: Option<&str>) -> bool {
        const REST: usize = 320; // schema, times, type, numbers and names: some 270 bytes
        if let Some(template) = template
            && let Err(at) = self.templates.binary_search_by(|known| (**known).cmp(template))
        {
            let told: usize = self.templates.iter().map(|known| known.len() + 3).sum();
            let fits = journal::fits_slot(self.kind.len() + REST + told + template.len() + 3)
                && !template.contains(['"', '\\']);
            if self.templates.len() < MAX_TEMPLATES && fits {
                self.templates.insert(at, template.into());
            } else {
                self.more_templates = true;
            }
        }
        journal::fits_slot(self.kind.len() + REST)
    }

    fn spell<'s>(&self, speller: &'s mut Speller, time_ns: u64) -> Pieces<'s> {
        let (head, subject) = self.kind.split_at(self.head_end);
        let templates: Vec<&str> = self.templates.iter().map(|template| &**template).collect();
        speller.summary((head, subject), time_ns, |m| {
            m.number("count", self.count);
            m.plain("first", |out| InstantText::default().write(out, self.first_ns));
            m.plain("last", |out| InstantText::default().write(out, self.last_ns));
            if self.more_templates {
                m.flag("more_templates", true);
            }
            m.code("of", self.of);
            if !templates.is_empty() {
                m.texts("templates", &templates);
            }
        })
    }
}

/// Writes the members that are the same for all denials of a kind; gives where those before `id` end.
fn write_kind(out: &mut Vec<u8>, denial: &Denial<'_>) -> usize {
    out.extend_from_slice(denial.conn.origin.as_bytes());
    encode::decision(&mut Members::new(out), &denial.decision, denial.policy);
    let head_end = out.len();
    out.extend_from_slice(denial.conn.subject().as_bytes());
    head_end
}
