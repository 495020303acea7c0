//! The rules of the house, checked over the whole tree: who imports whom, how long files and functions
//! get, where unsafe code may be, and what must not be written down.

#![expect(clippy::unwrap_used, reason = "a test that cannot read the tree has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ferry_tests::artifact::workspace;

const LONGEST_FILE: usize = 700;
const LONG_FILE: usize = 500;

/// Files between the two limits, each with the reason why it is not split.
const LONG_FILES: [(&str, &str); 0] = [];

/// Which of our crates a crate may depend on.
const IMPORTS: [(&str, &[&str]); 10] = [
    ("block", &[]),
    ("api", &[]),
    ("img", &["ferry-api", "ferry-block"]),
    ("migration", &[]),
    ("devices", &["ferry-block", "ferry-migration"]),
    ("storage", &["ferry-api", "ferry-block"]),
    ("vhost-user", &["ferry-block", "ferry-devices"]),
    (
        "vmm",
        &[
            "ferry-api",
            "ferry-block",
            "ferry-devices",
            "ferry-img",
            "ferry-migration",
            "ferry-storage",
            "ferry-vhost-user",
        ],
    ),
    (
        "tests",
        &["ferry-api", "ferry-block", "ferry-devices", "ferry-migration", "ferry-vhost-user"],
    ),
    ("xtask", &["ferry-tests"]),
];

/// What devices may name of the migration crate: saved state, and the errors of it.
const STATE_ONLY: [&str; 4] = ["state", "Error", "Result", "{Error as StateError, Result as "];

/// Where unsafe code may be opened (a file, or a folder with all below it), and what for. Tests and benches may
/// open it too: what they do wrong they do to themselves.
const UNSAFE: [(&str, &str); 21] = [
    ("block/src/buf.rs", "buffers over memory that someone else may change"),
    ("block/src/io/pool.rs", "positioned reads and writes by raw address"),
    ("block/src/io/ring.rs", "io_uring"),
    ("block/src/net/socket.rs", "sockets that send and receive such buffers"),
    ("block/src/sys.rs", "system calls of files"),
    ("devices/src/virtio/guest_buf.rs", "guest memory as buffers"),
    ("migration/src/ram/mapped.rs", "guest memory as pages"),
    ("migration/src/sys.rs", "system calls of sockets"),
    ("migration/src/testing.rs", "guest memory of a machine that is none"),
    ("resources/bare-metal/src/", "a guest without an operating system is made of it"),
    ("storage/src/daemon/detach.rs", "going to the background"),
    ("storage/src/signals.rs", "signalfd"),
    ("tests/src/image.rs", "SEEK_DATA and SEEK_HOLE"),
    ("vhost-user/src/fault.rs", "SIGBUS where a front end takes memory away"),
    ("vhost-user/src/socket.rs", "descriptors that arrive as numbers"),
    ("vmm/src/arch/x86_64/state.rs", "the extended processor state is of the host's size"),
    ("vmm/src/console/terminal.rs", "terminal modes"),
    ("vmm/src/kvm/exit.rs", "the shared run structure"),
    ("vmm/src/kvm/kick.rs", "signals to a processor's thread"),
    ("vmm/src/kvm/mod.rs", "memory slots"),
    ("vmm/src/memory/", "mapping guest memory"),
];

/// Vague names that are somebody else's words.
const NAMED_ELSEWHERE: [(&str, &str); 2] = [
    ("devices/src/virtio/transport/common.rs", "virtio's word for these registers"),
    ("api/tests/common/", "cargo's word for what several test programs share"),
];

/// Words that say where or with what this was made, or that nothing works yet.
const NEVER: [(&str, &str); 9] = [
    (concat!("/wo", "rk/"), "a path of one machine"),
    (concat!("/ro", "ot/"), "a path of one machine"),
    (concat!("/ho", "me/"), "a path of one machine"),
    (concat!("crates", ".io"), "the host of a registry"),
    (concat!("docs", ".rs/"), "the host of a registry"),
    (concat!("py", "pi.org"), "the host of a registry"),
    (concat!("deb.", "debian.org"), "the host of a registry"),
    (concat!("to", "do!("), "unfinished"),
    (concat!("unimpl", "emented!("), "unfinished"),
];

/// Every file that belongs to the project, with its path relative to the root.
fn files() -> Vec<(String, PathBuf)> {
    let root = workspace();
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
            let last = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_symlink() || ["target", ".git", "artifacts"].contains(&last.as_str()) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push((name, path));
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<(String, String)> {
    let rust = files().into_iter().filter(|(name, _)| name.ends_with(".rs"));
    rust.map(|(name, path)| (name, fs::read_to_string(path).unwrap())).collect()
}

fn read(name: &str) -> String {
    fs::read_to_string(workspace().join(Path::new(name))).unwrap()
}

fn report(mut problems: Vec<String>) {
    problems.sort();
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// A line without its comment.
fn code(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

#[test]
fn crates_import_only_what_is_below_them() {
    let mut problems = Vec::new();
    for (krate, allowed) in IMPORTS {
        let manifest = read(&format!("{krate}/Cargo.toml"));
        let ours = manifest.lines().filter(|line| line.starts_with("ferry-"));
        for line in ours {
            let name = line.split(['.', ' ', '=']).next().unwrap();
            // A crate may bring its own testing feature in for its tests.
            if name != format!("ferry-{krate}") && !allowed.contains(&name) {
                problems.push(format!("{krate} must not depend on {name}"));
            }
        }
    }
    for (name, text) in sources().iter().filter(|(name, _)| name.starts_with("devices/")) {
        for (number, line) in text.lines().enumerate() {
            for after in code(line).split("ferry_migration::").skip(1) {
                if !STATE_ONLY.iter().any(|allowed| after.starts_with(allowed)) {
                    let number = number + 1;
                    problems
                        .push(format!("{name}:{number}: devices may use migration::state only"));
                }
            }
        }
    }
    report(problems);
}

#[test]
fn every_member_has_its_import_rule() {
    let manifest = read("Cargo.toml");
    let members = manifest.lines().find(|line| line.starts_with("members")).unwrap();
    let listed: BTreeSet<_> = members.split('"').skip(1).step_by(2).collect();
    let ruled: BTreeSet<_> = IMPORTS.iter().map(|(krate, _)| *krate).collect();
    assert_eq!(listed, ruled);
}

#[test]
fn files_stay_short() {
    let mut problems = Vec::new();
    for (name, text) in sources() {
        let lines = text.lines().count();
        let excused = LONG_FILES.iter().any(|(long, _)| *long == name);
        if lines > LONGEST_FILE || (lines > LONG_FILE && !excused) {
            problems.push(format!("{name} has {lines} lines: split it"));
        }
        if excused && lines <= LONG_FILE {
            problems.push(format!("{name} is short now: take it off the list"));
        }
    }
    report(problems);
}

#[test]
fn functions_stay_short() {
    assert!(read("Cargo.toml").contains("too_many_lines = \"warn\""));
    assert!(read("clippy.toml").contains("too-many-lines-threshold = 70"));
    let lint = concat!("clippy::too_many", "_lines");
    let excused = sources().into_iter().filter(|(_, text)| text.contains(lint));
    report(excused.map(|(name, _)| format!("{name} excuses a long function: split it")).collect());
}

#[test]
fn every_crate_keeps_the_lints() {
    let without = IMPORTS.iter().filter(|(krate, _)| {
        !read(&format!("{krate}/Cargo.toml")).contains("[lints]\nworkspace = true")
    });
    report(without.map(|(krate, _)| format!("{krate} has no workspace lints")).collect());
}

#[test]
fn unsafe_code_is_where_it_is_expected() {
    let mut problems = Vec::new();
    for (name, text) in sources() {
        let listed = UNSAFE
            .iter()
            .any(|(place, _)| name == *place || (place.ends_with('/') && name.starts_with(place)));
        let opens = text.lines().any(|line| {
            let line = code(line);
            line.contains("unsafe {") || line.contains("unsafe fn") || line.contains("unsafe impl")
        });
        let for_tests = name.ends_with("_tests.rs")
            || name.contains("/benches/")
            || name.contains("/tests/")
            || name.starts_with("tests/tests/");
        let allows = text.contains(concat!("allow(un", "safe_code"));
        if allows {
            problems.push(format!("{name}: use expect with a reason instead of allow"));
        }
        if opens && !listed && !for_tests {
            problems.push(format!("{name} opens unsafe code and is not on the list"));
        }
    }
    for (place, _) in UNSAFE {
        if !workspace().join(place).exists() {
            problems.push(format!("{place} is on the unsafe list and is gone"));
        }
    }
    report(problems);
}

#[test]
fn every_source_says_what_it_is() {
    let silent = sources()
        .into_iter()
        .filter(|(name, text)| !name.ends_with("_tests.rs") && !text.starts_with("//!"));
    report(silent.map(|(name, _)| format!("{name} does not begin with a //! line")).collect());
}

#[test]
fn nothing_is_called_utils() {
    let vague = ["utils", "util", "common", "helpers", "misc"];
    let named = files().into_iter().filter(|(name, _)| {
        if NAMED_ELSEWHERE.iter().any(|(place, _)| name.starts_with(place)) {
            return false;
        }
        let parts = Path::new(name).iter().map(|part| part.to_string_lossy().into_owned());
        parts.into_iter().any(|part| vague.contains(&part.trim_end_matches(".rs")))
    });
    report(named.map(|(name, _)| format!("{name}: a helper lives with its user")).collect());
}

#[test]
fn nothing_tells_of_the_place_it_was_made() {
    let mut problems = Vec::new();
    for (name, path) in files() {
        // Cargo writes its lock files.
        if name.ends_with("Cargo.lock") {
            continue;
        }
        let Ok(text) = fs::read_to_string(path) else { continue };
        for (number, line) in text.lines().enumerate() {
            for (word, why) in NEVER {
                if line.contains(word) {
                    problems.push(format!("{name}:{}: {word}: {why}", number + 1));
                }
            }
        }
    }
    report(problems);
}
