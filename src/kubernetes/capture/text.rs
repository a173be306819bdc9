//! The rules as `nft` writes and reads them: for people, and to compare with what the kernel holds.

use std::fmt::Write;
use std::net::IpAddr;

use super::{Chain, Hook, Kind, Match, Rule, TABLE, Table, Verdict};

/// The rules, as `nft -f` would take them.
pub fn text(table: &Table) -> String {
    let chains: Vec<String> = table.0.iter().map(chain).collect();
    format!("table inet {TABLE} {{\n{}}}\n", chains.join("\n"))
}

fn chain(chain: &Chain) -> String {
    let kind = match chain.kind {
        Kind::Nat => "nat",
        Kind::Filter => "filter",
    };
    let hook = match chain.hook {
        Hook::Prerouting => "prerouting",
        Hook::Input => "input",
        Hook::Output => "output",
    };
    let priority = chain.kind.priority();
    let mut out = format!(
        "\tchain {} {{\n\t\ttype {kind} hook {hook} priority {priority}; policy accept;\n",
        chain.name
    );
    for each in &chain.rules {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "\t\t{}", rule(each));
    }
    out.push_str("\t}\n");
    out
}

fn rule(rule: &Rule) -> String {
    let mut words: Vec<String> = rule.matches.iter().map(matched).collect();
    words.push(match rule.verdict {
        Verdict::Return => "return".into(),
        Verdict::Accept => "accept".into(),
        Verdict::Redirect(port) => format!("redirect to :{port}"),
        Verdict::Reset => "reject with tcp reset".into(),
    });
    words.join(" ")
}

fn matched(condition: &Match) -> String {
    match condition {
        Match::Uid(uid) => format!("meta skuid {uid}"),
        Match::FromLoopback => "iifname \"lo\"".into(),
        Match::ToLoopback => "oifname \"lo\"".into(),
        Match::Established => "ct state established,related".into(),
        Match::Tcp => "meta l4proto tcp".into(),
        Match::Port(port) => format!("tcp dport {port}"),
        Match::Destination(network) => match network.address {
            IpAddr::V4(_) => format!("ip daddr {network}"),
            IpAddr::V6(_) => format!("ip6 daddr {network}"),
        },
    }
}
