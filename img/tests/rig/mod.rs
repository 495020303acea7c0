//! A folder with images in which ours and `qemu-img` are told the same.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

pub(crate) const OURS: &str = env!("CARGO_BIN_EXE_ferry-img");

/// The folder; both programs run in it.
pub(crate) struct Rig(pub(crate) TempDir);

impl Rig {
    /// An empty folder, where there is a `qemu-img` to compare with.
    pub(crate) fn empty() -> Option<Rig> {
        if Command::new("qemu-img").arg("--version").output().is_err() {
            eprintln!("skipped: qemu-img is not installed");
            return None;
        }
        Some(Rig(tempfile::tempdir().unwrap()))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn run(&self, program: &str, arguments: &str) -> Output {
        let arguments = arguments.split_whitespace();
        Command::new(program).args(arguments).current_dir(self.0.path()).output().unwrap()
    }

    /// Runs both with the same arguments; the exit statuses must be the same.
    pub(crate) fn both(&self, arguments: &str) -> (Output, Output) {
        let (ours, theirs) = (self.run(OURS, arguments), self.run("qemu-img", arguments));
        assert_eq!(ours.status.code(), theirs.status.code(), "{arguments}: {ours:?} {theirs:?}");
        (ours, theirs)
    }

    /// The same JSON, to the letter.
    pub(crate) fn same_json(&self, arguments: &str) {
        let (ours, theirs) = self.both(arguments);
        let parse = |output: &Output| serde_json::from_slice::<Value>(&output.stdout).unwrap();
        assert_eq!(parse(&ours), parse(&theirs), "{arguments}");
        let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(text(&ours), text(&theirs), "{arguments}");
    }

    pub(crate) fn same_text(&self, arguments: &str) {
        let (ours, theirs) = self.both(arguments);
        let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(text(&ours), text(&theirs), "{arguments}");
    }
}
