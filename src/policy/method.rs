//! Request methods: a known list, upper case, and sets of them.

/// A method that a policy can name. `CONNECT` is not among them: it is always rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // the names say it all
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
    Trace,
}

impl Method {
    /// Every method.
    pub const ALL: [Self; 8] =
        [Self::Get, Self::Head, Self::Post, Self::Put, Self::Patch, Self::Delete, Self::Options, Self::Trace];

    /// The method as it stands in a request line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
        }
    }

    /// The method with this name; methods are case-sensitive (RFC 9110 section 9.1).
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name.as_bytes() {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"PATCH" => Self::Patch,
            b"DELETE" => Self::Delete,
            b"OPTIONS" => Self::Options,
            b"TRACE" => Self::Trace,
            _ => return None,
        })
    }
}

/// A set of methods, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct MethodSet(u8);

impl MethodSet {
    pub(crate) const ALL: Self = Self(u8::MAX);

    pub(crate) fn insert(&mut self, method: Method) -> bool {
        let fresh = !self.contains(method);
        self.0 |= 1 << method as u8;
        fresh
    }

    pub(crate) fn contains(self, method: Method) -> bool {
        self.0 & (1 << method as u8) != 0
    }

    pub(crate) fn includes(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// True when some method is in both.
    pub(crate) fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(crate) fn names(self) -> String {
        self.list().join(", ")
    }

    pub(crate) fn list(self) -> Vec<&'static str> {
        Method::ALL.into_iter().filter(|m| self.contains(*m)).map(Method::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a method is matched under another method's bit.
    #[test]
    fn methods_are_told_apart() {
        for method in Method::ALL {
            assert_eq!(Method::parse(method.as_str()), Some(method));
            assert_eq!(Method::parse(&method.as_str().to_lowercase()), None);
            let mut set = MethodSet::default();
            assert!(set.insert(method) && !set.insert(method));
            assert_eq!(Method::ALL.into_iter().filter(|m| set.contains(*m)).collect::<Vec<_>>(), [method]);
            assert!(MethodSet::ALL.includes(set) && !set.includes(MethodSet::ALL));
        }
        assert_eq!(Method::parse("CONNECT"), None);
    }
}
