//! One run: a mesh of real processes under load, the faults of its plan, and an orderly end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;

use crate::app::App;
use crate::common::{HOST, POLICY, Pki, RECORDS, WEB};
use crate::disk::{Disk, Knob};
use crate::liar::{COLLECTOR, Liar, Lie};
use crate::load::{self, Load, Outcome};
use crate::plan::{Fault, Plan, Side};
use crate::process::Process;
use crate::relay::Relay;

/// How long what must come about may take.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long the load may take to meet a fault that waits for it.
const TO_BE_MET: Duration = Duration::from_secs(2);
/// With less than two places left a spool lets nobody in (see `free_bytes` of `/ready`).
const FULL: u64 = 4096;
/// So many requests are made between two faults.
const BUSY: usize = 30;
/// What a sidecar still has to deliver, in bytes, when it is told to end.
const NEARLY: u64 = 32 * 1024;

pub struct Mesh {
    pub pki: Pki,
    plan: Plan,
    pub records: Process,
    pub web: Process,
    pub collector: Process,
    pub app: App,
    network: Relay,
    /// Before the collector, for records and for web.
    pub liars: [Liar; 2],
    pub load: Load,
}

impl Mesh {
    /// Sets everything up and waits until a request gets through.
    pub async fn start(plan: &Plan) -> Result<Self, String> {
        let pki = Pki::new();
        let dirs = [("records", RECORDS), ("web", WEB), ("collector", COLLECTOR)];
        let [records_dir, web_dir, collector_dir] = dirs.map(|(name, id)| pki.workload(name, id));
        let policy = POLICY.replace("/fhir/Patient/{id}", &load::pattern());
        std::fs::write(records_dir.join("policy.yaml"), policy).unwrap();
        let app = App::start().await;
        if plan.encrypted {
            let key = pki.dir.path().join("spool.key");
            std::fs::write(&key, (0..32).map(|_| fastrand::u8(..)).collect::<Vec<_>>()).unwrap();
            phiward::audit::SpoolKey::from_file(&key).unwrap(); // what is checked in the end is opened here
        }

        let config = written(&collector_dir, COLLECTOR_CONFIG.replace("STORE_KEY", spool_key(plan)));
        let mut collector = Process::of("collector", "collect", &config, &collector_dir.join("store"));
        must_start(&mut collector).await?;
        let to_collector = &collector.traffic;
        let records_liar = Liar::start(&collector_dir, &records_dir, to_collector.clone()).await;
        let web_liar = Liar::start(&collector_dir, &web_dir, to_collector.clone()).await;

        let inbound = format!(
            "inbound: {{listeners: [{{name: api, bind: \"127.0.0.1:0\", app: \"{}\"}}]}}\npolicy: {{file: policy.yaml}}",
            app.addr
        );
        let config = sidecar(&records_dir, "records", plan, &records_liar, &inbound);
        let mut records = Process::of("records", "run", &config, &records_dir.join("audit"));
        must_start(&mut records).await?;
        let network = Relay::to(records.traffic.clone()).await;
        let outbound = format!(
            "outbound: {{audit: all, bind: \"127.0.0.1:0\", services: [{{name: records, hosts: [{HOST}], \
             endpoints: [\"{}\"], identities: [\"{RECORDS}\"], mesh: {}}}]}}",
            network.addr, plan.mesh
        );
        let config = sidecar(&web_dir, "web", plan, &web_liar, &outbound);
        let mut web = Process::of("web", "run", &config, &web_dir.join("audit"));
        must_start(&mut web).await?;
        let load = Load::on(web.traffic.clone());
        let liars = [records_liar, web_liar];
        let mesh = Self { pki, plan: plan.clone(), records, web, collector, app, network, liars, load };
        mesh.serves().await?;
        Ok(mesh)
    }

    /// The faults of the plan, under load, and then a mesh that serves again and ends in order.
    pub async fn suffer(&mut self) -> Result<(), String> {
        let mut clients = JoinSet::new();
        for _ in 0..self.plan.clients {
            clients.spawn(self.load.clone().client());
        }
        for step in self.plan.steps.clone() {
            tokio::time::sleep(step.after).await;
            self.under_load().await;
            self.commit(step.fault).await.map_err(|wrong| format!("{:?}: {wrong}", step.fault))?;
        }
        self.lie(Lie::None);
        self.serves().await?;
        self.load.stop();
        while clients.join_next().await.is_some() {}
        self.catches_up().await?;
        for process in [&mut self.web, &mut self.records, &mut self.collector] {
            if !process.end().await? {
                return Err(format!("{} does not end with success", process.name));
            }
        }
        Ok(())
    }

    /// Waits until there were some requests since the last fault, so that the next one meets a busy mesh.
    async fn under_load(&self) {
        let from = self.load.len();
        let busy = async {
            while self.load.len() < from + BUSY {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        drop(tokio::time::timeout(TO_BE_MET, busy).await); // a lie may hold everything up, which the next fault ends
    }

    async fn commit(&mut self, fault: Fault) -> Result<(), String> {
        match fault {
            Fault::Kill(side) => self.restart(side).await,
            Fault::KillTwice(side) => {
                self.restart(side).await?;
                self.restart(side).await
            }
            Fault::PowerFails(side) => {
                self.disk(side).mend();
                let process = self.process(side);
                process.kill();
                process.disk.lose_power();
                must_start(process).await
            }
            Fault::KillApp => {
                self.app.kill();
                tokio::time::sleep(Duration::from_millis(30)).await;
                self.app.revive();
                Ok(())
            }
            Fault::CutMesh => {
                self.network.cut();
                Ok(())
            }
            Fault::Full(side, time) => {
                self.disk(side).fill(700);
                tokio::time::sleep(Duration::from_millis(time)).await;
                self.disk(side).mend();
                self.takes_events(side).await
            }
            Fault::KillWhileFull(side, time) => self.kill_while_full(side, time).await,
            Fault::WriteFails(side) => {
                self.disk(side).break_next_write(300);
                self.broken(side, Knob::WritesFailed).await
            }
            Fault::SyncFails(side, errno) => {
                self.disk(side).break_next_sync(errno);
                self.broken(side, Knob::SyncsFailed).await
            }
            Fault::SlowSync(side, delay) => {
                self.disk(side).turn(Knob::SyncDelayMs, delay as u32);
                tokio::time::sleep(Duration::from_millis(4 * delay)).await;
                self.disk(side).mend();
                Ok(())
            }
            Fault::ShortWrites(side) => {
                self.disk(side).turn(Knob::ShortWrites, 40);
                self.disk(side).turn(Knob::Interrupts, 5);
                Ok(())
            }
            Fault::Lie(lie) => {
                self.lie(lie);
                Ok(())
            }
            Fault::FillSpool => self.fill_spool().await,
        }
    }

    async fn restart(&mut self, side: Side) -> Result<(), String> {
        self.disk(side).mend();
        let process = self.process(side);
        process.kill();
        must_start(process).await
    }

    async fn kill_while_full(&mut self, side: Side, time: u64) -> Result<(), String> {
        self.disk(side).fill(100);
        tokio::time::sleep(Duration::from_millis(time)).await;
        let process = self.process(side);
        process.kill();
        if process.start().await? {
            process.disk.mend();
            return self.takes_events(side).await;
        }
        self.restart(side).await
    }

    /// Waits until the disk has failed once, sees that a sidecar then refuses everything, and restarts.
    async fn broken(&mut self, side: Side, counted: Knob) -> Result<(), String> {
        let before = self.disk(side).read(counted);
        let fails = async {
            while self.disk(side).read(counted) == before {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        drop(tokio::time::timeout(TO_BE_MET, fails).await); // nothing may be written now, because the spool is full
        self.disk(side).mend();
        // A cursor that cannot be saved is tried again; everything else ends the trail. A spool that is full takes nothing for a while
        // and is no broken disk.
        let status = self.process(side).audit_status().await;
        let is_full = status["free_bytes"].as_u64().is_some_and(|free| free < FULL);
        if side != Side::Collector && status["healthy"] == false && !is_full {
            for _ in 0..3 {
                let outcome = self.load.request(&mut None).await;
                if outcome.is_ok() {
                    return Err("a request passes although the trail has failed".into());
                }
            }
        }
        self.restart(side).await
    }

    async fn fill_spool(&mut self) -> Result<(), String> {
        self.lie(Lie::Status(500, false));
        let from = self.load.len();
        until("the full spool refuses requests", || {
            self.load.count_since(from, Outcome::is_audit_refusal) > 0
        })
        .await?;
        self.lie(Lie::None);
        let from = self.load.len();
        until("requests pass again", || self.load.count_since(from, Outcome::is_ok) > 0).await
    }

    /// Waits until the trail of this side takes events again.
    async fn takes_events(&mut self, side: Side) -> Result<(), String> {
        if side == Side::Collector || self.plan.small_spool {
            return Ok(()); // it shows in what is delivered, or waits for that
        }
        let process = self.process(side);
        let again = tokio::time::timeout(PATIENCE, async {
            while process.audit_status().await["healthy"] != Value::Bool(true) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
        again
            .await
            .map_err(|_| format!("the trail of {} takes no events although the disk does", process.name))
    }

    /// Waits until the collector has nearly all: a sidecar that ends delivers for some seconds more, and this is a debug build.
    async fn catches_up(&self) -> Result<(), String> {
        for sidecar in [&self.web, &self.records] {
            let caught_up = tokio::time::timeout(PATIENCE, async {
                while sidecar.audit_status().await["sinks"][0]["backlog_bytes"]
                    .as_u64()
                    .is_none_or(|bytes| bytes > NEARLY)
                {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            });
            caught_up.await.map_err(|_| format!("{} does not deliver what it has", sidecar.name))?;
        }
        Ok(())
    }

    /// Waits until a request gets through.
    async fn serves(&self) -> Result<(), String> {
        let got_through = tokio::time::timeout(PATIENCE, async {
            while !self.load.request(&mut None).await.is_ok() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
        got_through.await.map_err(|_| "no request gets through although nothing is wrong any more".into())
    }

    fn lie(&self, lie: Lie) {
        for liar in &self.liars {
            liar.tell(lie);
        }
    }

    fn process(&mut self, side: Side) -> &mut Process {
        match side {
            Side::Records => &mut self.records,
            Side::Web => &mut self.web,
            Side::Collector => &mut self.collector,
        }
    }

    fn disk(&mut self, side: Side) -> &Disk {
        &self.process(side).disk
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) -> Result<(), String> {
    let held = tokio::time::timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    });
    held.await.map_err(|_| format!("never came to hold: {what}"))
}

async fn must_start(process: &mut Process) -> Result<(), String> {
    if process.start().await? { Ok(()) } else { Err(format!("{} does not start: see its log", process.name)) }
}

const COLLECTOR_CONFIG: &str = "version: 1
identity: {trust_domain: hospital.local, files: {certificate: svid.pem, private_key: svid.key, bundle: bundle.pem}}
bind: \"127.0.0.1:0\"
store: {dir: store, STORE_KEY}
admin: {bind: 127.0.0.1:0}
";

/// The key file is the same everywhere: that of the run.
fn spool_key(plan: &Plan) -> &'static str {
    if plan.encrypted { "encryption_key_file: ../spool.key" } else { "" }
}

fn sidecar(dir: &Path, name: &str, plan: &Plan, liar: &Liar, rest: &str) -> PathBuf {
    let on_failure = if plan.allow_with_gap { "allow_with_gap" } else { "deny" };
    let max_bytes = if plan.small_spool { "1MiB" } else { "256MiB" };
    let text = format!(
        "version: 1
workload: {{service: {name}, namespace: clinic}}
identity: {{trust_domain: hospital.local, files: {{certificate: svid.pem, private_key: svid.key, bundle: bundle.pem}}}}
audit:
  spool: {{dir: audit, max_bytes: {max_bytes}, durability: {durability}, {key}}}
  on_failure: {on_failure}
  key_file: audit-hmac.key
  sinks:
    - {{name: collector, type: phiward, endpoint: \"https://{addr}\", identities: [\"{COLLECTOR}\"], required: true}}
admin: {{bind: \"127.0.0.1:0\"}}
limits: {{drain_deadline: 2s}}
workers: {workers}
{rest}
",
        durability = plan.durability,
        key = spool_key(plan),
        addr = liar.addr,
        workers = plan.workers,
    );
    written(dir, text)
}

fn written(dir: &Path, text: String) -> PathBuf {
    let path = dir.join("phiward.yaml");
    std::fs::write(&path, text).unwrap();
    path
}
