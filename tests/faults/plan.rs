//! The plan of a run: how the mesh is set up and what goes wrong when. A seed makes the same plan each time.

use std::time::Duration;

use fastrand::Rng;

use crate::disk::{EIO, ENOSPC};
use crate::liar::Lie;

#[derive(Debug, Clone)]
pub struct Plan {
    pub durability: &'static str,
    /// `on_failure: allow_with_gap`: while the spool takes nothing, requests pass and are counted.
    pub allow_with_gap: bool,
    pub workers: u32,
    pub mesh: &'static str,
    /// So small a spool that it is full within the run.
    pub small_spool: bool,
    pub clients: u32,
    /// Spools and store are encrypted.
    pub encrypted: bool,
    pub steps: Vec<Step>,
}

/// A pause, then a fault.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub after: Duration,
    pub fault: Fault,
}

/// Whose process, or whose disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Records,
    Web,
    Collector,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`, then a start.
    Kill(Side),
    /// Twice in a row: the second finds what the first restart has just written.
    KillTwice(Side),
    /// `kill -9`, and what was not synced is gone.
    PowerFails(Side),
    KillApp,
    /// Every connection between the sidecars breaks.
    CutMesh,
    /// The disk is full for so many milliseconds.
    Full(Side, u64),
    /// `kill -9` while the disk is full; the start may fail as long as it is.
    KillWhileFull(Side, u64),
    /// A write fails with EIO.
    WriteFails(Side),
    /// `fdatasync` fails with this.
    SyncFails(Side, u32),
    /// `fdatasync` takes so many milliseconds, for as many times four.
    SlowSync(Side, u64),
    /// Writes take half of what they are given, or are interrupted.
    ShortWrites(Side),
    /// The collector lies, from now until the next lie.
    Lie(Lie),
    /// The collector takes nothing until the spool of the records side is full.
    FillSpool,
}

impl Plan {
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let kind = rng.u32(0..10);
        let (allow_with_gap, small_spool) = (kind < 2, kind >= 8);
        let mut plan = Self {
            durability: ["write", "fsync", "fsync_before_forward"][rng.usize(0..3)],
            allow_with_gap,
            workers: rng.u32(1..=2),
            mesh: ["h2", "h2", "h1"][rng.usize(0..3)],
            small_spool,
            clients: rng.u32(2..=8),
            encrypted: false,
            steps: Vec::new(),
        };
        for _ in 0..rng.u32(2..=5) {
            let after = Duration::from_millis(rng.u64(10..150));
            plan.steps.push(Step { after, fault: plan.fault(&mut rng) });
        }
        if small_spool {
            let at = rng.usize(0..=plan.steps.len());
            let after = Duration::from_millis(rng.u64(10..150));
            plan.steps.insert(at, Step { after, fault: Fault::FillSpool });
        }
        plan.encrypted = rng.u32(0..4) == 0;
        plan
    }

    fn fault(&self, rng: &mut Rng) -> Fault {
        loop {
            let fault = any_fault(rng);
            if self.can_be_accounted_for(fault) {
                return fault;
            }
        }
    }

    /// Faults that destroy what the run would be checked by are left out: the count of what passed unrecorded is in the
    /// memory of the process until the disk takes events again; and a spool that removes what was acknowledged cannot
    /// have what a collector forgot.
    fn can_be_accounted_for(&self, fault: Fault) -> bool {
        use Fault::{Kill, KillTwice, KillWhileFull, Lie as Lies, PowerFails, SyncFails, WriteFails};
        let ends_process = matches!(
            fault,
            Kill(side) | KillTwice(side) | KillWhileFull(side, _) | PowerFails(side) | WriteFails(side) | SyncFails(side, _)
                if side != Side::Collector
        );
        let loses_acknowledged = matches!(fault, Lies(Lie::Forget | Lie::Status(413, _)));
        !(self.allow_with_gap && ends_process || self.small_spool && loses_acknowledged)
    }

    /// Whether a sidecar may lose what it has not synced.
    pub fn power_fails(&self) -> bool {
        let of_sidecar = |fault| matches!(fault, Fault::PowerFails(Side::Records | Side::Web));
        self.steps.iter().any(|step| of_sidecar(step.fault))
    }

    /// Whether the collector may miss what was acknowledged.
    pub fn withholds(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.fault, Fault::Lie(Lie::Forget | Lie::Status(413, _))))
    }
}

fn any_fault(rng: &mut Rng) -> Fault {
    let side = [Side::Records, Side::Records, Side::Web, Side::Collector][rng.usize(0..4)];
    match rng.u32(0..18) {
        0..=2 => Fault::Kill(side),
        3 => Fault::KillTwice(side),
        4 => Fault::KillApp,
        5 => Fault::CutMesh,
        6 | 7 => Fault::Full(side, rng.u64(20..400)),
        8 => Fault::KillWhileFull(side, rng.u64(20..200)),
        9 => Fault::WriteFails(side),
        10 => Fault::SyncFails(side, [EIO, ENOSPC][rng.usize(0..2)]),
        11 => Fault::SlowSync(side, rng.u64(5..60)),
        12 => Fault::ShortWrites(side),
        13 | 14 => Fault::PowerFails(side),
        _ => Fault::Lie(any_lie(rng)),
    }
}

fn any_lie(rng: &mut Rng) -> Lie {
    match rng.u32(0..11) {
        0 | 1 => Lie::Forget,
        2 => Lie::Status(500, false),
        3 => Lie::Status(413, false),
        4 => Lie::Status(429, true),
        5 => Lie::StoredBut(503),
        6 => Lie::Hang,
        7 => Lie::Reset,
        8 => Lie::ResetInAnswer,
        9 => Lie::Slow(rng.u64(10..300)),
        _ => Lie::None,
    }
}
