//! Image files for tests, and QEMU's opinion of them.

use std::path::Path;
use std::process::{Command, Output};

use super::create::{CreateOptions, create};
use super::header::Header;
use crate::clock::Clock;
use crate::edge::{ChildRole, Edge, EdgePerms, Perms};
use crate::executor::Executor;
use crate::graph::BlockGraph;
use crate::open::BlockdevOptions;
use crate::testing::have_tool;

/// A folder of image files.
pub(super) struct Rig {
    executor: Executor,
    folder: tempfile::TempDir,
}

impl Rig {
    pub(super) fn new() -> Rig {
        let executor = Executor::new(Clock::real()).unwrap();
        Rig { executor, folder: tempfile::tempdir_in("/dev/shm").unwrap() }
    }

    /// A rig, if QEMU is there to compare with.
    pub(super) fn with_qemu() -> Option<Rig> {
        (have_tool("qemu-img") && have_tool("qemu-io")).then(Rig::new)
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    pub(super) fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    pub(super) fn set_bytes(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// Opens the file, empty if it does not exist, runs `body` on it and closes it again.
    pub(super) fn on<T>(&self, name: &str, body: impl AsyncFnOnce(&Edge) -> T) -> T {
        let graph = BlockGraph::new(self.executor.clone());
        self.executor.block_on(async { body(&self.edge(&graph, name).await).await })
    }

    /// Runs `body` on a graph of its own.
    pub(super) fn on_graph<T>(&self, body: impl AsyncFnOnce(&BlockGraph) -> T) -> T {
        let graph = BlockGraph::new(self.executor.clone());
        self.executor.block_on(body(&graph))
    }

    /// The same with two files.
    pub(super) fn on_both<T>(
        &self,
        names: [&str; 2],
        body: impl AsyncFnOnce(&Edge, &Edge) -> T,
    ) -> T {
        let graph = BlockGraph::new(self.executor.clone());
        self.executor.block_on(async {
            let first = self.edge(&graph, names[0]).await;
            let second = self.edge(&graph, names[1]).await;
            body(&first, &second).await
        })
    }

    async fn edge(&self, graph: &BlockGraph, name: &str) -> Edge {
        let path = self.path(name);
        if !Path::new(&path).exists() {
            std::fs::write(&path, []).unwrap();
        }
        let node = graph.open(&BlockdevOptions::file(&path)).await.unwrap();
        let needs = Perms::CONSISTENT_READ | Perms::WRITE | Perms::RESIZE;
        let perms = EdgePerms { needs, shares: Perms::NONE };
        graph.edge(&node, ChildRole::File, perms).unwrap()
    }

    pub(super) fn create(&self, name: &str, options: &CreateOptions) {
        self.on(name, async |file| create(file, None, options).await).unwrap();
    }

    /// Runs qemu-img with `arguments`, the last of which are names of files here.
    pub(super) fn qemu_img(&self, arguments: &[&str]) -> String {
        let output = self.run("qemu-img", arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "qemu-img {}: {errors}", arguments.join(" "));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs the commands of qemu-io on an image.
    pub(super) fn qemu_io(&self, name: &str, commands: &[&str]) {
        let mut arguments = vec!["-f", "qcow2"];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(name);
        let output = self.run("qemu-io", &arguments);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && !text.contains("failed"), "{commands:?}: {text}");
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new(program).args(arguments).current_dir(self.folder.path()).output().unwrap()
    }

    /// The number behind `"key":` in what `qemu-img check --output json` says; 0 if it is absent.
    pub(super) fn qemu_check(&self, name: &str) -> QemuCheck {
        let output = self.run("qemu-img", &["check", "--output", "json", name]);
        let json = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(json.contains("image-end-offset"), "{}", String::from_utf8_lossy(&output.stderr));
        QemuCheck { json, errors: String::from_utf8_lossy(&output.stderr).into_owned() }
    }

    /// QEMU finds nothing wrong.
    pub(super) fn assert_clean(&self, name: &str) {
        let check = self.qemu_check(name);
        for key in ["corruptions", "leaks", "check-errors"] {
            assert_eq!(check.number(key), 0, "{key}: {}", check.errors);
        }
    }
}

/// Makes an image of version 2 with one snapshot, whose name is short, one of version 3 whose
/// snapshot does not say how long the disk was.
pub(super) fn forget_disk_sizes(rig: &Rig, name: &str) {
    let mut bytes = rig.bytes(name);
    let at = usize::try_from(Header::parse(&bytes).unwrap().snapshots.offset).unwrap();
    // Its extra data is gone, and the names follow at once.
    let names = bytes[at + 64..at + 68].to_vec();
    bytes[at + 36..at + 40].fill(0);
    bytes[at + 40..at + 44].copy_from_slice(&names);
    bytes[7] = 3;
    bytes[96..104].copy_from_slice(&[0, 0, 0, 4, 0, 0, 0, 104]);
    bytes[72..96].fill(0);
    rig.set_bytes(name, &bytes);
}

/// What `qemu-img check` found.
pub(super) struct QemuCheck {
    pub(super) json: String,
    pub(super) errors: String,
}

impl QemuCheck {
    /// The number of a member; 0 if it is absent.
    pub(super) fn number(&self, key: &str) -> u64 {
        number(&self.json, key)
    }
}

/// The number behind `"key":` in JSON; 0 if it is absent.
pub(super) fn number(json: &str, key: &str) -> u64 {
    let Some(at) = json.find(&format!("\"{key}\":")) else { return 0 };
    let digits = json[at..].split(':').nth(1).unwrap_or_default().trim_start();
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap()
}
