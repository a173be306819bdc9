//! Audit subjects: what a request leaves in the trail, from the encoder to the file.
//!
//! Recording goes the way it goes in the sidecar, through the public API: encoded on the worker, handed to the writer,
//! chained by SHA-256, written. 64 requests share a turn, as under load, so that the hand-over does not hide the rest.

use std::hint::black_box;

use phiward::audit::{
    AccessComplete, AccessDecision, Audit, ConnFacts, ConnFragment, Decision, Direction, Durability,
    HttpFacts, InstanceFacts, OnFailure, PolicyFragment, PseudonymKey, Recorder, ResponseFacts, SpoolConfig,
    SubjectFacts, TlsFacts,
};
use tempfile::TempDir;
use tokio::runtime::LocalRuntime;

/// Requests of one turn of the event loop.
pub(crate) const TURN: u64 = 64;
const ID: &str = "b1c2d3e4f50617280000000000001267";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SHA256: &str = "b1c2d3e4f5061728394a5b6c7d8e9f00112233445566778899aabbccddeeff00";
const TIME_NS: u64 = 1_795_183_402_118_204_771;
/// A spool without a sink keeps everything, so it is begun anew after this many turns (about 100 MB).
const TURNS_A_SPOOL: u32 = 1000;

pub(crate) fn pseudonym() -> Box<dyn FnMut()> {
    let key = PseudonymKey::from_bytes(&[7; 32]).unwrap();
    Box::new(move || {
        black_box(key.pseudonym(black_box(b"8412")));
    })
}

/// One unit: [`TURN`] requests decided, recorded, waited for and completed; two events each.
pub(crate) fn requests() -> Box<dyn FnMut()> {
    let mut spool = Spool::new();
    Box::new(move || {
        if spool.turns == TURNS_A_SPOOL {
            spool = Spool::new();
        }
        spool.turn();
    })
}

/// A spool of `events` events on disk, for the verifier.
pub(crate) fn written(events: u64) -> TempDir {
    let mut spool = Spool::new();
    for _ in 0..events.div_ceil(2 * TURN) {
        spool.turn();
    }
    spool.end()
}

struct Spool {
    // Dropped in this order: the recorder before the trail, the trail before its folder.
    recorder: Recorder,
    runtime: LocalRuntime,
    audit: Audit,
    dir: TempDir,
    conn: ConnFragment,
    policy: PolicyFragment,
    key: PseudonymKey,
    turns: u32,
}

impl Spool {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = SpoolConfig {
            dir: dir.path().into(),
            max_bytes: 1 << 30,
            durability: Durability::Write,
            on_failure: OnFailure::Deny,
            segment_bytes: phiward::audit::SEGMENT_BYTES,
            key: None,
        };
        let instance = InstanceFacts {
            service: "records".into(),
            namespace: "clinic".into(),
            spiffe_id: Some("spiffe://hospital.local/ns/clinic/sa/records".into()),
            version: "0.1.0".into(),
            ..InstanceFacts::default()
        };
        let audit = Audit::start(config, &instance, &[]).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build_local(Default::default())
            .unwrap();
        let seed = audit.recorder();
        let recorder = runtime.block_on(async move { seed.attach() });
        let conn = ConnFragment::new(&ConnFacts {
            direction: Direction::Inbound,
            listener: "api",
            peer: [10, 2, 0, 9].into(),
            destination: None,
            service: None,
            tls: Some(TlsFacts { version: "1.3", cipher: "TLS13_AES_128_GCM_SHA256", alpn: Some("h2") }),
            subject: Some(SubjectFacts {
                spiffe_id: "spiffe://hospital.local/ns/clinic/sa/web",
                cert_sha256: SHA256,
            }),
        });
        let policy = PolicyFragment::new(Some("2026-11-20.3"), SHA256);
        let key = PseudonymKey::from_bytes(&[7; 32]).unwrap();
        Self { recorder, runtime, audit, dir, conn, policy, key, turns: 0 }
    }

    fn turn(&mut self) {
        self.turns += 1;
        self.runtime.block_on(async {
            let mut places = Vec::with_capacity(TURN as usize);
            for _ in 0..TURN {
                let mut place = self.recorder.reserve(2).unwrap();
                let recorded = self.decision(&mut place);
                places.push((place, recorded));
            }
            for (mut place, recorded) in places {
                recorded.before_forward().await.unwrap();
                place.complete(&self.completion());
            }
        });
    }

    fn decision(&self, place: &mut phiward::audit::Reservation) -> phiward::audit::Recorded {
        let params = [("id", self.key.pseudonym(b"8412"))];
        place.decision(&AccessDecision {
            time_unix_ns: TIME_NS,
            request_id: ID,
            trace_id: Some(TRACE),
            conn: &self.conn,
            http: HttpFacts {
                method: Some("GET"),
                host: Some("records.clinic"),
                template: Some("/fhir/Patient/{id}"),
                params: &params,
                version: "2",
                ..HttpFacts::default()
            },
            decision: Decision {
                outcome: "allow",
                reason: "rule",
                rule: Some("read-patient"),
                role: Some("chart-read"),
                shadow: None,
            },
            policy: Some(&self.policy),
        })
    }

    fn completion(&self) -> AccessComplete<'_> {
        AccessComplete {
            time_unix_ns: TIME_NS,
            request_id: ID,
            trace_id: Some(TRACE),
            conn: &self.conn,
            response: ResponseFacts {
                status: 200,
                response_bytes: 150,
                duration_us: 412,
                ..ResponseFacts::default()
            },
        }
    }

    fn end(self) -> TempDir {
        let Self { recorder, runtime, audit, dir, .. } = self;
        drop(recorder);
        drop(runtime);
        audit.close().unwrap();
        dir
    }
}
