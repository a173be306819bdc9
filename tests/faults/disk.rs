//! A disk that fails on command: the shim (`shim.c`), compiled once, and the control file of each process.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const WORDS: u64 = 13;
/// Counts that never run out.
pub const ALWAYS: u32 = u32::MAX;
pub const EIO: u32 = 5;
pub const ENOSPC: u32 = 28;

/// The numbers that the shim looks at, in the order of its `struct control`.
#[derive(Debug, Clone, Copy)]
#[repr(u64)]
pub enum Knob {
    Loaded,
    WriteErrno,
    WriteLeft,
    WriteTakes,
    SyncErrno,
    SyncLeft,
    SyncDelayMs,
    CreateErrno,
    TruncateErrno,
    ShortWrites,
    Interrupts,
    WritesFailed,
    SyncsFailed,
}

/// The disk under one folder of one process.
pub struct Disk {
    control: PathBuf,
    /// What has reached the disk.
    synced: PathBuf,
    folder: PathBuf,
    file: File,
}

impl Disk {
    /// A disk that works, under `folder`, which is made.
    pub fn of(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let folder = folder.canonicalize().unwrap();
        let control = folder.with_extension("disk");
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(true).to_owned();
        let file = options.open(&control).unwrap();
        file.set_len(4 * WORDS).unwrap();
        Self { control, synced: folder.with_extension("synced"), folder, file }
    }

    /// Puts `command`, which is about to be started, on this disk.
    pub fn under(&self, command: &mut Command) {
        self.turn(Knob::Loaded, 0);
        command
            .env("LD_PRELOAD", shim())
            .env("PHIWARD_FAULT_DIR", &self.folder)
            .env("PHIWARD_FAULT_SYNCED", &self.synced)
            .env("PHIWARD_FAULT_CONTROL", &self.control);
    }

    pub fn turn(&self, knob: Knob, value: u32) {
        self.file.write_all_at(&value.to_ne_bytes(), 4 * knob as u64).unwrap();
    }

    pub fn read(&self, knob: Knob) -> u32 {
        let mut bytes = [0; 4];
        self.file.read_exact_at(&mut bytes, 4 * knob as u64).unwrap();
        u32::from_ne_bytes(bytes)
    }

    /// The disk takes nothing more, as a full one: the first write takes `takes` bytes before it says so.
    pub fn fill(&self, takes: u32) {
        self.turn(Knob::WriteTakes, takes);
        self.turn(Knob::WriteLeft, ALWAYS);
        self.turn(Knob::CreateErrno, ENOSPC);
        self.turn(Knob::WriteErrno, ENOSPC);
    }

    /// The next write fails with EIO, and what it took before cannot be cut off again.
    pub fn break_next_write(&self, takes: u32) {
        self.turn(Knob::WriteTakes, takes);
        self.turn(Knob::TruncateErrno, EIO);
        self.turn(Knob::WriteLeft, 1);
        self.turn(Knob::WriteErrno, EIO);
    }

    pub fn break_next_sync(&self, errno: u32) {
        self.turn(Knob::SyncLeft, 1);
        self.turn(Knob::SyncErrno, errno);
    }

    /// Everything works again.
    pub fn mend(&self) {
        for knob in [
            Knob::WriteErrno,
            Knob::SyncErrno,
            Knob::SyncDelayMs,
            Knob::CreateErrno,
            Knob::TruncateErrno,
            Knob::ShortWrites,
            Knob::Interrupts,
            Knob::WriteTakes,
        ] {
            self.turn(knob, 0);
        }
    }

    /// Takes away what a power failure would have taken from a process that was just killed, at the worst: bytes that were not
    /// synced, and files whose folder was not. Journals go whole, because after a boot nothing is brought over from one.
    pub fn lose_power(&self) {
        let log = std::fs::read_to_string(&self.synced).unwrap_or_default();
        let (mut lengths, mut entries) = (BTreeMap::new(), BTreeSet::new());
        for line in log.lines() {
            match line.split_once(' ').unwrap() {
                ("entry", path) => drop(entries.insert(path)),
                ("moved", paths) => {
                    let (from, to) = paths.split_once(' ').unwrap();
                    lengths.extend(lengths.get(from).copied().map(|length| (to, length)));
                }
                (_, rest) => {
                    let (length, path) = rest.split_once(' ').unwrap();
                    lengths.insert(path, length.parse::<u64>().unwrap());
                }
            }
        }
        let mut folders = vec![self.folder.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let (text, name) = (path.to_str().unwrap(), path.file_name().unwrap().to_str().unwrap());
                match (path.is_dir(), entries.contains(text) && !name.starts_with("journal-")) {
                    (true, true) => folders.push(path),
                    (true, false) => std::fs::remove_dir_all(path).unwrap(),
                    (false, true) => {
                        let file = OpenOptions::new().write(true).open(&path).unwrap();
                        let length = file.metadata().unwrap().len();
                        file.set_len(lengths.get(text).copied().unwrap_or(0).min(length)).unwrap();
                    }
                    (false, false) => std::fs::remove_file(path).unwrap(),
                }
            }
        }
    }

    /// Whether a process that was started on this disk really is on it.
    pub fn is_used(&self) -> bool {
        self.read(Knob::Loaded) == 1
    }
}

/// The compiled shim.
fn shim() -> &'static Path {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/shim.c");
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fault-shim.so");
        // Several runs of the tests may do so at a time, so it is put in its place whole.
        let fresh = library.with_extension(std::process::id().to_string());
        let compiled = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
            .args([&fresh, &source])
            .args(["-ldl"])
            .status()
            .expect("a C compiler (cc) is needed");
        assert!(compiled.success(), "{} does not compile", source.display());
        std::fs::rename(fresh, &library).unwrap();
        library
    })
}
