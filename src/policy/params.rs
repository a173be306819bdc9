//! Rules about the parameters of a query: which may be there, which must be, and with what values.
//!
//! Allow matches narrow: names and values are decoded once, a name that a rule is about has one value, a number is written
//! as a number is. What some servers would take for such a name (`Patient`, `patient[]`, `patient:exact`, decoded twice)
//! must not be there besides. Nothing is allocated.

use super::query::Unescaped;

/// The most parameters that one rule can name: one bit each.
pub(super) const MAX_NAMES: usize = 64;

/// What the query must be for a permission to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueryRule {
    /// Sorted by name.
    names: Box<[Param]>,
    /// `allow` was given: no other name may be there.
    only: bool,
}

/// What a rule says about one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Param {
    pub(super) name: String,
    /// One of those of which at least one must be there (`require_any`).
    pub(super) any: bool,
    /// It must be there with one of these values (`require`).
    pub(super) values: Option<Box<[String]>>,
    /// If it is there, its value is a whole number up to this (`max`).
    pub(super) max: Option<u64>,
}

/// Why a query rule does not hold. Names only what the policy names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueryMiss<'r> {
    /// `;`, which separates parameters to some servers (W3C, HTML 4.01 section B.2.2).
    Separator,
    /// The body is a form, whose fields would go past the rule.
    FormBody,
    /// A parameter that `allow` does not list.
    Unlisted,
    /// A parameter that some server may take for this one.
    LooksLike(&'r Param),
    Repeated(&'r Param),
    Missing(&'r Param),
    /// `require` wants another value.
    Value(&'r Param),
    /// `max`: not a number, or too large.
    Number(&'r Param),
    /// None of `require_any` is there with a value.
    NoneOf(&'r QueryRule),
}

impl QueryRule {
    /// `params` with distinct names, at most [`MAX_NAMES`]; `only` when no others may be there.
    pub(super) fn new(mut params: Vec<Param>, only: bool) -> Self {
        params.sort_by(|a, b| a.name.cmp(&b.name));
        Self { names: params.into(), only }
    }

    /// True when no other parameter may be there.
    pub(super) fn only(&self) -> bool {
        self.only
    }

    pub(super) fn params(&self) -> &[Param] {
        &self.names
    }

    /// Whether `query`, which was admitted, is one of those meant.
    pub(super) fn check<'r>(&'r self, query: Option<&str>) -> Result<(), QueryMiss<'r>> {
        let query = query.unwrap_or_default();
        if query.contains(';') {
            return Err(QueryMiss::Separator);
        }
        let (mut seen, mut any) = (0_u64, false);
        for (name, value) in pairs(query) {
            let Some(at) = self.find(name) else {
                if self.only {
                    return Err(QueryMiss::Unlisted);
                }
                if let Some(param) = self.names.iter().find(|param| looks_like(name, &param.name)) {
                    return Err(QueryMiss::LooksLike(param));
                }
                continue;
            };
            let param = &self.names[at];
            if seen & 1 << at != 0 {
                return Err(QueryMiss::Repeated(param));
            }
            seen |= 1 << at;
            param.check(value)?;
            any |= param.any && has_text(value);
        }
        let missing = |(at, param): &(usize, &Param)| param.values.is_some() && seen & 1 << at == 0;
        if let Some((_, param)) = self.names.iter().enumerate().find(missing) {
            return Err(QueryMiss::Missing(param));
        }
        if !any && self.names.iter().any(|param| param.any) {
            return Err(QueryMiss::NoneOf(self));
        }
        Ok(())
    }

    /// True when every query that `other` lets pass is let pass by `self` too. Never true without being so; it may be false
    /// for rules that only come to the same by their values.
    pub(super) fn includes(&self, other: &Self) -> bool {
        let named = |name: &str| other.names.iter().find(|param| param.name == name);
        if self.only
            && !(other.only && other.names.iter().all(|param| self.find(param.name.as_bytes()).is_some()))
        {
            return false;
        }
        // Each name of ours: once at most, and with our values.
        let each = self.names.iter().all(|ours| match named(&ours.name) {
            Some(theirs) => ours.includes(theirs),
            None => other.only && ours.values.is_none(),
        });
        let theirs = || other.names.iter().filter(|param| self.find(param.name.as_bytes()).is_none());
        let alike = !self.only
            && theirs()
                .any(|param| self.names.iter().any(|ours| looks_like(param.name.as_bytes(), &ours.name)));
        let ours_any = |param: &Param| self.names.iter().any(|ours| ours.any && ours.name == param.name);
        let mut theirs_any = other.names.iter().filter(|param| param.any).peekable();
        let any = self.names.iter().all(|param| !param.any)
            || other.names.iter().any(|param| param.values.is_some() && ours_any(param))
            || theirs_any.peek().is_some() && theirs_any.all(ours_any);
        each && !alike && any
    }

    fn find(&self, name: &[u8]) -> Option<usize> {
        let decoded = Unescaped(name.iter().copied());
        self.names.binary_search_by(|param| param.name.bytes().cmp(decoded.clone())).ok()
    }
}

impl Param {
    fn check(&self, value: &[u8]) -> Result<(), QueryMiss<'_>> {
        let decoded = || Unescaped(value.iter().copied());
        // A plus sign is a space to some servers and itself to others, so it equals neither.
        let equals = |wanted: &String| !value.contains(&b'+') && decoded().eq(wanted.bytes());
        if self.values.as_ref().is_some_and(|values| !values.iter().any(equals)) {
            return Err(QueryMiss::Value(self));
        }
        match self.max {
            Some(max) if number(decoded()).is_none_or(|number| number > max) => Err(QueryMiss::Number(self)),
            _ => Ok(()),
        }
    }

    /// True when every value that `other` lets pass is let pass by `self` too.
    fn includes(&self, other: &Self) -> bool {
        let values = match (&self.values, &other.values) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(ours), Some(theirs)) => theirs.iter().all(|value| ours.contains(value)),
        };
        let small = |max: u64, value: &String| number(value.bytes()).is_some_and(|number| number <= max);
        let max = match (self.max, other.max, &other.values) {
            (None, ..) => true,
            (Some(ours), Some(theirs), _) if theirs <= ours => true,
            (Some(ours), _, Some(values)) => values.iter().all(|value| small(ours, value)),
            _ => false,
        };
        values && max
    }
}

/// The index in `known`, which is sorted, of each parameter's name of `query`, as far as it is there.
pub(super) fn known_names(query: &str, known: &[String], visit: &mut impl FnMut(usize)) {
    for (name, _) in pairs(query) {
        let decoded = Unescaped(name.iter().copied());
        if let Ok(at) = known.binary_search_by(|known| known.bytes().cmp(decoded.clone())) {
            visit(at);
        }
    }
}

/// The names and values of a query, as they stand. Nothing between two `&` is no parameter.
fn pairs(query: &str) -> impl Iterator<Item = (&[u8], &[u8])> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name.as_bytes(), value.as_bytes())
    })
}

/// A whole number as everybody writes it: digits, no sign, no leading zero (which makes it octal to some), 18 at most.
fn number(digits: impl Iterator<Item = u8>) -> Option<u64> {
    let mut number = None;
    for (at, byte) in digits.enumerate() {
        if !byte.is_ascii_digit() || at == 18 || number == Some(0) {
            return None;
        }
        number = Some(number.unwrap_or(0) * 10 + u64::from(byte - b'0'));
    }
    number
}

/// True when a value holds more than blanks: many servers take an empty parameter for one that is not there.
fn has_text(value: &[u8]) -> bool {
    Unescaped(value.iter().copied()).any(|b| !matches!(b, b' ' | b'+' | b'\t'..=b'\r'))
}

/// True when a server might take the raw `name` for `known`: decoded twice, in any case, up to a modifier or an index, and
/// with what PHP makes of other characters.
fn looks_like(name: &[u8], known: &str) -> bool {
    let mut found = loose(name);
    loose(known.as_bytes()).all(|byte| found.next() == Some(byte)) && found.all(|byte| byte == b'_')
}

fn loose(name: &[u8]) -> impl Iterator<Item = u8> {
    let blank = |byte: &u8| matches!(byte, b' ' | b'+' | b'\t'..=b'\r');
    Unescaped(Unescaped(name.iter().copied()))
        .skip_while(blank)
        .enumerate()
        .take_while(|(at, byte)| !(matches!(byte, b'[' | b':') && *at > 0 || *byte == 0))
        .map(|(_, byte)| match byte.to_ascii_lowercase() {
            b' ' | b'+' | b'.' | b'[' => b'_',
            byte => byte,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn param(name: &str) -> Param {
        Param { name: name.into(), any: false, values: None, max: None }
    }

    /// `allow: [patient, code, _count], require_any: [patient, code], require: {v: [a b, 1]}, max: {_count: 100}`.
    fn rule(only: bool) -> QueryRule {
        let params = vec![
            Param { any: true, ..param("patient") },
            Param { any: true, ..param("code") },
            Param { max: Some(100), ..param("_count") },
            Param { values: Some(["a b".to_owned(), "1".to_owned()].into()), ..param("v") },
        ];
        QueryRule::new(params, only)
    }

    fn miss(rule: &QueryRule, query: &str) -> String {
        match rule.check(Some(query)) {
            Ok(()) => "ok".into(),
            Err(QueryMiss::Separator) => "separator".into(),
            Err(QueryMiss::FormBody) => "form".into(),
            Err(QueryMiss::Unlisted) => "unlisted".into(),
            Err(QueryMiss::LooksLike(param)) => format!("like {}", param.name),
            Err(QueryMiss::Repeated(param)) => format!("repeated {}", param.name),
            Err(QueryMiss::Missing(param)) => format!("missing {}", param.name),
            Err(QueryMiss::Value(param)) => format!("value {}", param.name),
            Err(QueryMiss::Number(param)) => format!("number {}", param.name),
            Err(QueryMiss::NoneOf(_)) => "none".into(),
        }
    }

    /// If this fails, a query gets more records than the permission means to give.
    #[test]
    fn a_query_is_matched_on_decoded_names_with_one_value_each() {
        let table = [
            ("patient=1&v=1", "ok", "ok"),
            ("v=a%20b&code=x&_count=100", "ok", "ok"),
            ("%70atient=1&v=%31&&", "ok", "ok"),
            ("patient=1", "missing v", "missing v"),
            ("v=1", "none", "none"),
            ("patient=&v=1", "none", "none"),
            ("patient=%20+&v=1", "none", "none"),
            ("patient&v=1&code=2", "ok", "ok"),
            ("patient=1&patient=2&v=1", "repeated patient", "repeated patient"),
            ("patient=1&%70atient=2&v=1", "repeated patient", "repeated patient"),
            ("patient=1&v=2", "value v", "value v"),
            ("patient=1&v=a+b", "value v", "value v"),
            ("patient=1&v=%2531", "value v", "value v"),
            ("patient=1&v=1&_count=101", "number _count", "number _count"),
            ("patient=1&v=1&_count=%31", "ok", "ok"),
            ("patient=1&v=1&x=y", "unlisted", "ok"),
            ("patient=1&v=1&=", "unlisted", "ok"),
            ("patient=1&v=1&Patient=2", "unlisted", "like patient"),
            ("patient=1&v=1&patient[]=2", "unlisted", "like patient"),
            ("patient=1&v=1&patient%5B0%5D=2", "unlisted", "like patient"),
            ("patient=1&v=1&%2570atient=2", "unlisted", "like patient"),
            ("patient=1&v=1&patient:Patient=2", "unlisted", "like patient"),
            ("patient=1&v=1&+patient=2", "unlisted", "like patient"),
            ("patient=1&v=1&patient%20=2", "unlisted", "like patient"),
            ("patient=1&v=1&.count=2", "unlisted", "like _count"),
            ("patient=1&v=1&patients=2", "unlisted", "ok"),
            ("patient=1;v=1", "separator", "separator"),
        ];
        for (query, only, open) in table {
            assert_eq!(
                (miss(&rule(true), query), miss(&rule(false), query)),
                (only.into(), open.into()),
                "{query}"
            );
        }
        assert_eq!(QueryRule::new(Vec::new(), true).check(None), Ok(()));
        assert_eq!(QueryRule::new(Vec::new(), true).check(Some("")), Ok(()));
        assert_eq!(QueryRule::new(Vec::new(), true).check(Some("a")), Err(QueryMiss::Unlisted));
    }

    /// If this fails, a limit is passed by a number that the application reads otherwise.
    #[test]
    fn numbers_are_written_in_one_way() {
        for (text, want) in
            [("0", Some(0)), ("7", Some(7)), ("999999999999999999", Some(999_999_999_999_999_999))]
        {
            assert_eq!(number(text.bytes()), want);
        }
        for text in
            ["", "00", "01", "+1", "-1", " 1", "1 ", "1.0", "1e2", "0x1", "١", "1000000000000000000", "1,2"]
        {
            assert_eq!(number(text.bytes()), None, "{text}");
        }
    }

    /// If this fails, a permission is called superfluous that is not.
    #[test]
    fn inclusion_of_rules_is_never_claimed_wrongly() {
        let open = QueryRule::new(vec![param("a")], false);
        let closed = QueryRule::new(vec![param("a"), param("b")], true);
        let narrow = QueryRule::new(
            vec![Param { values: Some(["5".to_owned()].into()), any: true, ..param("a") }],
            true,
        );
        let limit = |max| QueryRule::new(vec![Param { max: Some(max), ..param("a") }], true);
        let any =
            QueryRule::new(vec![Param { any: true, ..param("a") }, Param { any: true, ..param("b") }], true);
        let table = [
            (&open, &open, true),
            (&open, &closed, true),
            (&closed, &open, false),
            (&closed, &narrow, true),
            (&narrow, &closed, false),
            (&limit(9), &limit(8), true),
            (&limit(8), &limit(9), false),
            (&limit(5), &narrow, true),
            (&limit(4), &narrow, false),
            (&any, &narrow, true),
            (&any, &closed, false),
            (&closed, &any, true),
            (&any, &any, true),
        ];
        for (at, (wider, other, want)) in table.into_iter().enumerate() {
            assert_eq!(wider.includes(other), want, "row {at}");
        }
    }
}
