//! The rules as the kernel's nf_tables take them: netlink messages (linux/netfilter/nf_tables.h).
//!
//! Only the few expressions that [`super::Match`] and [`super::Verdict`] need. Numbers are big-endian on the wire, but for what
//! a register holds in the machine's own order (user ids, connection states).

use std::net::IpAddr;

use super::{Chain, Hook, Kind, Match, Network, Rule, TABLE, Table, Verdict};

/// One netlink message: its type, its flags and what follows the header.
pub(super) struct Message {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) body: Vec<u8>,
}

const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;

const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;

/// `table` instead of what there was.
pub(super) fn replace(table: &Table) -> Vec<Message> {
    let mut messages = remove();
    messages.push(message(NEW_TABLE, CREATE, Attributes::default().text(1, TABLE)));
    messages.extend(table.0.iter().map(new_chain));
    for chain in &table.0 {
        messages.extend(chain.rules.iter().map(|rule| new_rule(chain.name, rule)));
    }
    messages
}

/// No table. It is made first, so that there is one to delete.
pub(super) fn remove() -> Vec<Message> {
    let named = || Attributes::default().text(1, TABLE);
    vec![message(NEW_TABLE, CREATE, named()), message(DELETE_TABLE, 0, named())]
}

fn new_chain(chain: &Chain) -> Message {
    let hook: u32 = match chain.hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Output => 3,
    };
    let kind = match chain.kind {
        Kind::Nat => "nat",
        Kind::Filter => "filter",
    };
    const ACCEPT: u32 = 1;
    let hook = Attributes::default().number(1, hook).number(2, chain.kind.priority() as u32);
    let chain = Attributes::default()
        .text(1, TABLE)
        .text(3, chain.name)
        .nested(4, hook)
        .number(5, ACCEPT)
        .text(7, kind);
    message(NEW_CHAIN, CREATE, chain)
}

fn new_rule(chain: &str, rule: &Rule) -> Message {
    let mut expressions = Attributes::default();
    for (name, data) in rule.matches.iter().flat_map(matched).chain(verdict(rule.verdict)) {
        expressions = expressions.nested(1, Attributes::default().text(1, name).nested(2, data));
    }
    message(
        NEW_RULE,
        CREATE | APPEND,
        Attributes::default().text(1, TABLE).text(2, chain).nested(4, expressions),
    )
}

impl Kind {
    /// Where the kernel's own kinds of chain stand (`dstnat` and `filter`).
    pub(super) fn priority(self) -> i32 {
        match self {
            Self::Nat => -100,
            Self::Filter => 0,
        }
    }
}

type Expression = (&'static str, Attributes);

fn matched(condition: &Match) -> Vec<Expression> {
    match condition {
        Match::Uid(uid) => vec![meta(10), equal(&uid.to_ne_bytes())],
        Match::FromLoopback => vec![meta(6), equal(&loopback())],
        Match::ToLoopback => vec![meta(7), equal(&loopback())],
        Match::Tcp => vec![meta(16), equal(&[IPPROTO_TCP])],
        Match::Port(port) => {
            let mut both = matched(&Match::Tcp);
            both.extend([payload(2, 2, 2), equal(&port.to_be_bytes())]);
            both
        }
        Match::Established => {
            const ESTABLISHED_RELATED: u32 = 2 | 4;
            let state = ("ct", Attributes::default().number(1, REGISTER).number(2, 0));
            vec![state, masked(&ESTABLISHED_RELATED.to_ne_bytes()), compare(1, &[0; 4])]
        }
        Match::Destination(network) => destination(network),
    }
}

fn destination(network: &Network) -> Vec<Expression> {
    let (family, offset) = match network.address {
        IpAddr::V4(_) => (NFPROTO_IPV4, 16),
        IpAddr::V6(_) => (NFPROTO_IPV6, 24),
    };
    let bytes = network.bytes();
    let mut all = vec![meta(15), equal(&[family]), payload(1, offset, bytes.len() as u32)];
    if usize::from(network.bits) < bytes.len() * 8 {
        all.push(masked(&network.mask()));
    }
    all.push(equal(&bytes));
    all
}

fn verdict(verdict: Verdict) -> Vec<Expression> {
    const ACCEPT: i32 = 1;
    const RETURN: i32 = -5;
    match verdict {
        Verdict::Return => vec![end(RETURN)],
        Verdict::Accept => vec![end(ACCEPT)],
        Verdict::Redirect(port) => {
            let port = Attributes::default().bytes(1, &port.to_be_bytes());
            let load = Attributes::default().number(1, REGISTER).nested(2, port);
            vec![("immediate", load), ("redir", Attributes::default().number(1, REGISTER))]
        }
        Verdict::Reset => vec![("reject", Attributes::default().number(1, 1).bytes(2, &[0]))],
    }
}

fn meta(key: u32) -> Expression {
    ("meta", Attributes::default().number(1, REGISTER).number(2, key))
}

fn payload(base: u32, offset: u32, length: u32) -> Expression {
    ("payload", Attributes::default().number(1, REGISTER).number(2, base).number(3, offset).number(4, length))
}

fn equal(value: &[u8]) -> Expression {
    compare(0, value)
}

fn compare(operation: u32, value: &[u8]) -> Expression {
    let value = Attributes::default().bytes(1, value);
    ("cmp", Attributes::default().number(1, REGISTER).number(2, operation).nested(3, value))
}

fn masked(mask: &[u8]) -> Expression {
    let data = |bytes: &[u8]| Attributes::default().bytes(1, bytes);
    let length = mask.len() as u32;
    let registers = Attributes::default().number(1, REGISTER).number(2, REGISTER).number(3, length);
    ("bitwise", registers.nested(4, data(mask)).nested(5, data(&vec![0; mask.len()])))
}

fn end(code: i32) -> Expression {
    let code = Attributes::default().nested(2, Attributes::default().number(1, code as u32));
    ("immediate", Attributes::default().number(1, VERDICT_REGISTER).nested(2, code))
}

/// An interface's name fills its register.
fn loopback() -> [u8; 16] {
    let mut name = [0; 16];
    name[..2].copy_from_slice(b"lo");
    name
}

fn message(kind: u16, flags: u16, attributes: Attributes) -> Message {
    let mut body = vec![NFPROTO_INET, 0, 0, 0];
    body.extend(attributes.0);
    Message { kind, flags, body }
}

/// Netlink attributes, end to end (linux/netlink.h).
#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), b"\0"].concat())
    }

    fn nested(self, kind: u16, inner: Self) -> Self {
        const NESTED: u16 = 0x8000;
        self.bytes(kind | NESTED, &inner.0)
    }

    fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = value.len() as u16 + 4;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}
