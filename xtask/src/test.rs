//! `cargo xtask test`: every check in order, all of them even when one fails, and a summary.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ferry_tests::{artifact, binary, guest, host, time};

use crate::{fuzz, packages};

/// What became of the tests or checks of a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// Passed only when tried again.
    flaky: u64,
}

impl Count {
    fn one(passed: bool) -> Count {
        Count { passed: u64::from(passed), failed: u64::from(!passed), ..Count::default() }
    }

    fn add(&mut self, other: Count) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.flaky += other.flaky;
    }
}

struct Stage {
    name: &'static str,
    count: Count,
    took: Duration,
}

struct Run {
    stages: Vec<Stage>,
    /// Where tests write why they could not run, a line each.
    skipped: std::path::PathBuf,
    /// Where they write what else the summary should say.
    notes: std::path::PathBuf,
    programs: Option<std::path::PathBuf>,
}

/// Runs everything.
///
/// # Errors
///
/// When anything failed.
pub(crate) fn run(linux: bool) -> Result<()> {
    packages::try_ensure(&packages::LINUX);
    packages::try_ensure(&packages::PEERS);
    println!("host: {:?}", host::kind());
    let folder = tempfile::tempdir()?;
    let file = |name| folder.path().join(name);
    let mut run =
        Run { stages: Vec::new(), skipped: file("skipped"), notes: file("notes"), programs: None };
    run.stage("format", |_| {
        Ok(checked(&[cargo(&["fmt", "--all", "--check"]), in_guest(&["fmt", "--check"])]))
    });
    run.stage("lints", |_| {
        let workspace =
            ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
        let guest = ["clippy", "--release", "--quiet", "--", "-D", "warnings"];
        let mut count = checked(&[cargo(&workspace), in_guest(&guest)]);
        match fuzz::lints()? {
            Some(targets) => count.add(checked(&[targets])),
            None => {
                println!("skipped: what libFuzzer's targets need besides cannot be fetched");
                count.skipped += 1;
            }
        }
        Ok(count)
    });
    run.stage("programs", |run| {
        guest::bare_metal()?;
        run.programs = Some(binary::build()?);
        Ok(Count::one(true))
    });
    run.stage("unit", |run| {
        run.tests("not package(ferry-tests)", &["--workspace", "--exclude", "ferry-tests"])
    });
    run.stage("guests", |run| {
        run.tests("package(ferry-tests) & not binary(linux)", &["--package", "ferry-tests"])
    });
    if linux {
        run.stage("linux", |run| {
            run.tests(
                "package(ferry-tests) & binary(linux)",
                &["--package", "ferry-tests", "--test", "linux"],
            )
        });
    }
    run.stage("documentation", |_| {
        let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--quiet"]);
        doc.env("RUSTDOCFLAGS", "-D warnings");
        let mut count = checked(&[doc]);
        count.add(harness(cargo(&["test", "--doc", "--workspace", "--quiet"]))?);
        Ok(count)
    });
    run.summary()
}

impl Run {
    fn stage(&mut self, name: &'static str, body: impl FnOnce(&mut Run) -> Result<Count>) {
        println!("\n== {name}");
        let start = time::now();
        let count = body(self).unwrap_or_else(|error| {
            println!("{name}: {error:#}");
            Count::one(false)
        });
        self.stages.push(Stage { name, count, took: time::now() - start });
    }

    /// Runs tests with nextest, or without it where it is not installed.
    fn tests(&mut self, filter: &str, packages: &[&str]) -> Result<Count> {
        let nextest = Command::new("cargo-nextest").arg("--version").stdout(Stdio::null()).status();
        let mut command = match nextest.is_ok_and(|status| status.success()) {
            true => cargo(&["nextest", "run", "--workspace", "--no-fail-fast", "-E", filter]),
            false => {
                let mut command = cargo(&["test", "--no-fail-fast"]);
                command.args(packages);
                command
            }
        };
        let before = lines(&self.skipped).len() as u64;
        command.env("FERRY_SKIPPED", &self.skipped).env("FERRY_NOTES", &self.notes);
        command.env("RUST_BACKTRACE", "0");
        if let Some(programs) = &self.programs {
            command.env("FERRY_PROGRAMS", programs);
        }
        let mut count = harness(command)?;
        let skipped = lines(&self.skipped).len() as u64 - before;
        count.passed = count.passed.saturating_sub(skipped);
        count.skipped += skipped;
        Ok(count)
    }

    fn summary(&self) -> Result<()> {
        println!(
            "\n{:<14} {:>7} {:>7} {:>8} {:>9}",
            "stage", "passed", "failed", "skipped", "time"
        );
        let mut all = Count::default();
        for Stage { name, count, took } in &self.stages {
            let Count { passed, failed, skipped, .. } = count;
            println!(
                "{name:<14} {passed:>7} {failed:>7} {skipped:>8} {:>8.1}s",
                took.as_secs_f64()
            );
            all.add(*count);
        }
        for skip in lines(&self.skipped) {
            println!("skipped {skip}");
        }
        for note in lines(&self.notes) {
            println!("note: {note}");
        }
        if all.flaky > 0 {
            println!(
                "note: {} passed only when tried again, named FLAKY above: find out why",
                all.flaky
            );
        }
        println!("\n{} passed, {} failed, {} skipped", all.passed, all.failed, all.skipped);
        if all.failed > 0 || all.passed == 0 {
            bail!("{} of the checks and tests failed", all.failed);
        }
        Ok(())
    }
}

/// The lines of a file that need not be there.
fn lines(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn cargo(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(artifact::workspace()).args(words);
    command
}

/// The same in the folder of the bare-metal guest, which is no member of the workspace.
fn in_guest(words: &[&str]) -> Command {
    let mut command = cargo(words);
    command
        .current_dir(artifact::workspace().join("resources/bare-metal"))
        .env("CARGO_TARGET_DIR", artifact::target().join("bare-metal"));
    command
}

/// Runs commands that only succeed or fail.
fn checked(commands: &[Command]) -> Count {
    let mut count = Count::default();
    for command in commands {
        let mut copy = Command::new(command.get_program());
        copy.args(command.get_args());
        for (name, value) in command.get_envs() {
            copy.env(name, value.unwrap_or_default());
        }
        copy.current_dir(command.get_current_dir().unwrap_or(Path::new(".")));
        count.add(Count::one(copy.status().is_ok_and(|status| status.success())));
    }
    count
}

/// Runs a test harness, shows what it says as it says it, and counts by its closing lines.
fn harness(mut command: Command) -> Result<Count> {
    let shown = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
    let (Some(output), Some(errors)) = (child.stdout.take(), child.stderr.take()) else {
        bail!("the standard streams were not piped");
    };
    let errors = time::spawn("errors", move || passed_on(errors));
    let mut count = counted(&passed_on(output));
    count.add(counted(&errors.join().unwrap_or_default()));
    let status = child.wait()?;
    if !status.success() && count.failed == 0 {
        println!("{shown}: {status}");
        count.failed = 1;
    }
    Ok(count)
}

/// Prints what comes, line by line; gives all of it at the end.
fn passed_on(from: impl Read) -> String {
    let mut all = String::new();
    let mut lines = BufReader::new(from);
    let mut bytes = Vec::new();
    while lines.read_until(b'\n', &mut bytes).is_ok_and(|len| len > 0) {
        let line = String::from_utf8_lossy(&bytes).into_owned();
        print!("{line}");
        all.push_str(&line);
        bytes.clear();
    }
    all
}

/// Adds up the summaries of nextest; where it did not run, those of the standard harness. nextest shows the latter
/// too, inside of what a failed test said, and there they do not count.
fn counted(text: &str) -> Count {
    let nextest = |line: &str| {
        let (head, figures) = line.split_once("tests run:").or(line.split_once("test run:"))?;
        head.starts_with("Summary").then(|| figures.to_owned())
    };
    let harness = |line: &str| {
        let (_, figures) = line.strip_prefix("test result: ")?.split_once(". ")?;
        Some(figures.to_owned())
    };
    let lines = || text.lines().map(str::trim);
    let mut summaries: Vec<String> = lines().filter_map(nextest).collect();
    if summaries.is_empty() {
        summaries = lines().filter_map(harness).collect();
    }
    let mut count = Count::default();
    for figures in summaries {
        count.passed += figure(&figures, "passed");
        count.failed += figure(&figures, "failed") + figure(&figures, "timed out");
        count.skipped += figure(&figures, "ignored");
        count.flaky += figure(&figures, "flaky");
    }
    count
}

/// The number in front of a word in `12 passed (1 slow), 3 failed; 0 ignored`.
fn figure(text: &str, word: &str) -> u64 {
    let parts = text.split([',', ';', '(']).map(str::trim);
    parts
        .filter_map(|part| part.split_once(' '))
        .filter(|(_, name)| name.trim_end_matches(')').starts_with(word))
        .find_map(|(number, _)| number.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_added_up() {
        let count = |passed, failed, skipped| Count { passed, failed, skipped, flaky: 0 };
        let nextest = "     Summary [   8.666s] 10 tests run: 7 passed (1 slow), 2 failed, 1 timed out, 3 skipped";
        assert_eq!(counted(nextest), count(7, 3, 0));
        let one = "     Summary [   8.666s] 1 test run: 1 passed, 0 skipped";
        assert_eq!(counted(one), count(1, 0, 0));
        let harness = "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        assert_eq!(counted(harness), count(3, 1, 2));
        let both = format!("{harness}\n{nextest}\n");
        assert_eq!(counted(&both), count(7, 3, 0));
        let again = "     Summary [   8.666s] 7 tests run: 7 passed (1 slow, 2 flaky), 3 skipped";
        assert_eq!(counted(again), Count { flaky: 2, ..count(7, 0, 0) });
    }
}
