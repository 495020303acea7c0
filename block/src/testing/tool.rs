//! Other programs as oracles: `qemu-img` and its like, where they are installed.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// Whether `program` can be run; when it cannot, says that the test is skipped, on standard error
/// and in the file that `FERRY_SKIPPED` names.
///
/// # Panics
/// That file cannot be written.
pub fn have_tool(program: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).is_file())
    });
    if !found {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        let note = format!("{test}: {program} is not installed");
        eprintln!("SKIPPED {note}");
        if let Some(path) = std::env::var_os("FERRY_SKIPPED") {
            let file = File::options().append(true).create(true).open(path);
            file.and_then(|mut file| writeln!(file, "{note}"))
                .expect("FERRY_SKIPPED can be written");
        }
    }
    found
}

/// Runs `program`, which must succeed; gives what it printed.
///
/// # Panics
/// It fails, or cannot be started.
pub fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {errors}", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
