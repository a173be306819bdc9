//! Leading a pod's TCP connections through its sidecar, by rules of the kernel in the pod's network namespace.
//!
//! Owns which connections are led where: the one table `phiward`, as data. How it is written for people is `text`, how the
//! kernel is told is `nftables`. Done once, before the app starts, by a step that has NET_ADMIN; what runs after it has not.

mod netlink;
mod nftables;
mod text;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

pub use netlink::CaptureError;
pub use text::text;

/// The name of the one table that is ours.
const TABLE: &str = "phiward";

/// What to lead where.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The user whose connections are left alone: the sidecar's own.
    pub uid: u32,
    /// Where the pod's outgoing connections go; none leaves them alone.
    pub outbound: Option<u16>,
    /// Ports of the app, and the sidecar's listener for each.
    pub inbound: Vec<PortPair>,
    /// Ports that may be reached as they are: those of the sidecar itself, and what is excluded. Once a port is led, all others
    /// are refused.
    pub open: Vec<u16>,
    /// Destination ports that outgoing connections reach as they are.
    pub exclude_ports: Vec<u16>,
    /// Destinations that outgoing connections reach as they are.
    pub exclude_networks: Vec<Network>,
}

/// `8080:15006`: a port of the app, and where its connections go instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortPair {
    /// The port that callers know.
    pub app: u16,
    /// The sidecar's listener.
    pub sidecar: u16,
}

/// `10.0.0.0/8`: addresses that share their first bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// Brings `plan` into force instead of what was, in one step: there is no moment with half of the rules.
///
/// # Errors
/// The kernel's refusal; nothing was changed then.
pub fn apply(plan: &Plan) -> Result<(), CaptureError> {
    netlink::transact(&nftables::replace(&plan.table()))
}

/// Takes the rules away, if there are any.
///
/// # Errors
/// The kernel's refusal.
pub fn undo() -> Result<(), CaptureError> {
    netlink::transact(&nftables::remove())
}

/// The rules of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table(Vec<Chain>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Chain {
    name: &'static str,
    kind: Kind,
    hook: Hook,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nat,
    Filter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hook {
    Prerouting,
    Input,
    Output,
}

/// Packets that match all of `matches` end in `verdict`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    matches: Vec<Match>,
    verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Match {
    /// Sent by a socket of this user.
    Uid(u32),
    /// Comes in over loopback.
    FromLoopback,
    /// Goes out over loopback.
    ToLoopback,
    /// Belongs to a connection that was let in before.
    Established,
    Tcp,
    Port(u16),
    Destination(Network),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Return,
    Accept,
    /// To this port on the same machine.
    Redirect(u16),
    /// With a TCP reset, so that the caller knows at once.
    Reset,
}

impl Plan {
    /// The rules that do it.
    pub fn table(&self) -> Table {
        let mut chains = Vec::new();
        if let Some(port) = self.outbound {
            chains.push(self.outbound_chain(port));
        }
        if !self.inbound.is_empty() {
            chains.push(self.inbound_chain());
            chains.push(self.guard_chain());
        }
        Table(chains)
    }

    /// What the pod's processes open, but for the sidecar's own and what stays in the pod.
    fn outbound_chain(&self, port: u16) -> Chain {
        let mut rules = vec![
            Rule::of([Match::Uid(self.uid)], Verdict::Return),
            Rule::of([Match::ToLoopback], Verdict::Return),
        ];
        rules.extend(self.exclude_ports.iter().map(|p| Rule::of([Match::Port(*p)], Verdict::Return)));
        let networks = self.exclude_networks.iter();
        rules.extend(networks.map(|n| Rule::of([Match::Destination(*n)], Verdict::Return)));
        rules.push(Rule::of([Match::Tcp], Verdict::Redirect(port)));
        Chain { name: "outbound", kind: Kind::Nat, hook: Hook::Output, rules }
    }

    fn inbound_chain(&self) -> Chain {
        let mut rules = vec![Rule::of([Match::FromLoopback], Verdict::Return)];
        let led = self.inbound.iter();
        rules.extend(led.map(|pair| Rule::of([Match::Port(pair.app)], Verdict::Redirect(pair.sidecar))));
        Chain { name: "inbound", kind: Kind::Nat, hook: Hook::Prerouting, rules }
    }

    /// A port that nobody named is no way around the sidecar.
    fn guard_chain(&self) -> Chain {
        let mut rules = vec![
            Rule::of([Match::FromLoopback], Verdict::Accept),
            Rule::of([Match::Established], Verdict::Accept),
        ];
        let mut open: Vec<u16> =
            self.inbound.iter().map(|pair| pair.sidecar).chain(self.open.clone()).collect();
        open.sort_unstable();
        open.dedup();
        rules.extend(open.into_iter().map(|port| Rule::of([Match::Port(port)], Verdict::Accept)));
        rules.push(Rule::of([Match::Tcp], Verdict::Reset));
        Chain { name: "guard", kind: Kind::Filter, hook: Hook::Input, rules }
    }
}

impl Rule {
    fn of(matches: impl Into<Vec<Match>>, verdict: Verdict) -> Self {
        Self { matches: matches.into(), verdict }
    }
}

impl FromStr for PortPair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| text.parse().ok().filter(|port: &u16| *port > 0);
        let pair = text.split_once(':').and_then(|(app, sidecar)| Some((port(app)?, port(sidecar)?)));
        let (app, sidecar) = pair.ok_or("give the app's port and the sidecar's, such as 8080:15006")?;
        Ok(Self { app, sidecar })
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let address: IpAddr =
            address.parse().map_err(|_| "this is no address or network, such as 10.0.0.0/8")?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(bits) => bits
                .parse()
                .ok()
                .filter(|bits| *bits <= most)
                .ok_or("the prefix is too long for the address")?,
        };
        let network = Self { address, bits };
        let outside = network.bytes().iter().zip(network.mask()).any(|(byte, mask)| byte & !mask != 0);
        // 10.0.0.1/8 may have been meant as /32, and would let a whole network around the sidecar.
        if outside { Err("the address has bits set beyond the prefix".into()) } else { Ok(network) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.bytes().len() * 8;
        if usize::from(self.bits) == all {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.bits)
        }
    }
}

impl Network {
    fn bytes(&self) -> Vec<u8> {
        match self.address {
            IpAddr::V4(address) => address.octets().into(),
            IpAddr::V6(address) => address.octets().into(),
        }
    }

    fn mask(&self) -> Vec<u8> {
        let bits = usize::from(self.bits);
        let byte = |at: usize| bits.saturating_sub(at * 8).min(8);
        (0..self.bytes().len()).map(|at| !(0xff_u16 >> byte(at)) as u8).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            uid: 15099,
            outbound: Some(15001),
            inbound: vec!["8080:15006".parse().unwrap()],
            open: vec![15008],
            exclude_ports: vec![53],
            exclude_networks: vec!["10.9.0.0/16".parse().unwrap(), "fd00::7".parse().unwrap()],
        }
    }

    /// If this fails, a pod's traffic goes around its sidecar, or what a reviewer reads is not what is done.
    #[test]
    fn the_rules_are_readable_and_in_order() {
        let expected = "table inet phiward {
\tchain outbound {
\t\ttype nat hook output priority -100; policy accept;
\t\tmeta skuid 15099 return
\t\toifname \"lo\" return
\t\ttcp dport 53 return
\t\tip daddr 10.9.0.0/16 return
\t\tip6 daddr fd00::7 return
\t\tmeta l4proto tcp redirect to :15001
\t}

\tchain inbound {
\t\ttype nat hook prerouting priority -100; policy accept;
\t\tiifname \"lo\" return
\t\ttcp dport 8080 redirect to :15006
\t}

\tchain guard {
\t\ttype filter hook input priority 0; policy accept;
\t\tiifname \"lo\" accept
\t\tct state established,related accept
\t\ttcp dport 15006 accept
\t\ttcp dport 15008 accept
\t\tmeta l4proto tcp reject with tcp reset
\t}
}
";
        assert_eq!(text(&plan().table()), expected);
    }

    /// If this fails, one direction can no longer be left alone.
    #[test]
    fn a_direction_that_is_not_led_has_no_rules() {
        let out = text(&Plan { inbound: vec![], ..plan() }.table());
        assert!(
            out.contains("chain outbound") && !out.contains("chain inbound") && !out.contains("chain guard")
        );
        let inn = text(&Plan { outbound: None, ..plan() }.table());
        assert!(!inn.contains("chain outbound") && inn.contains("chain guard"));
    }

    /// If this fails, a typing error opens a way around the sidecar.
    #[test]
    fn networks_and_pairs_that_are_doubtful_are_refused() {
        for good in ["10.0.0.0/8", "10.1.2.3", "::/0", "fd00::/64", "0.0.0.0/0", "10.1.2.128/25"] {
            assert_eq!(good.parse::<Network>().unwrap().to_string(), good);
        }
        for bad in ["10.0.0.1/8", "10.0.0.0/33", "ten", "10.0.0.0/", "fd00::1/64", "/8", "10.1.2.129/25"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
        for bad in ["8080", "0:1", "1:0", "a:b", "1:65536", "1:2:3"] {
            assert!(bad.parse::<PortPair>().is_err(), "{bad}");
        }
    }
}
