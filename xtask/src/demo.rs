//! `cargo xtask demo`: the whole path with a stock Linux guest, and a table of what was seen.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use ferry_tests::console::Line;
use ferry_tests::{host, scenario};
use indicatif::{ProgressBar, ProgressStyle};

use crate::packages;

const LIMIT: Duration = Duration::from_secs(600);

/// The rows of the table: fact, words, unit.
const ROWS: [(&str, &str, &str); 14] = [
    ("boot_ms", "boot to the first durable record", "ms"),
    ("mirror_ms", "mirror of the running disk", "ms"),
    ("mirror_mib_s", "mirror rate", "MiB/s"),
    ("migrate_ms", "migration to a second process", "ms"),
    ("downtime_ms", "downtime as reported", "ms"),
    ("stall_before_guest_ms", "longest stall the guest saw: undisturbed", "ms"),
    ("stall_mirror_guest_ms", "longest stall the guest saw: mirror and pivot", "ms"),
    ("stall_migrate_guest_ms", "longest stall the guest saw: migration", "ms"),
    ("stall_before_seen_ms", "longest stall seen from outside: undisturbed", "ms"),
    ("stall_mirror_seen_ms", "longest stall seen from outside: mirror and pivot", "ms"),
    ("stall_migrate_seen_ms", "longest stall seen from outside: migration", "ms"),
    ("acknowledged", "records acknowledged by the guest", ""),
    ("verified", "records verified on the surviving disk", ""),
    ("e2fsck", "file system on the surviving disk", ""),
];

/// Runs the demonstration.
///
/// # Errors
///
/// When a step fails; the message has what was said until then.
pub(crate) fn run(records: u64) -> Result<()> {
    packages::ensure(&packages::LINUX)?;
    match host::kind() {
        host::Kind::Hardware => println!("Linux guests run directly on this host."),
        host::Kind::PageTables => println!(
            "KVM here has no hardware virtualisation, so Linux runs in an emulated host: its times mean \
             nothing, what it checks does."
        ),
        host::Kind::None => println!(
            "There is no usable /dev/kvm, so Linux runs in an emulated host: its times mean nothing, \
             what it checks does."
        ),
    }
    let mut show = Show::new();
    show.step("build ferry and prepare the guest");
    let words = ["journey", &records.to_string()];
    let outcome = scenario::run(&words, LIMIT, &mut |line| show.hear(line));
    show.bar.finish_and_clear();
    outcome?;
    show.table();
    Ok(())
}

/// One progress bar for the step under way, and the facts so far.
struct Show {
    bar: ProgressBar,
    step: Option<String>,
    facts: BTreeMap<String, String>,
}

impl Show {
    fn new() -> Show {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(100));
        Show { bar, step: None, facts: BTreeMap::new() }
    }

    fn step(&mut self, text: &str) {
        if let Some(done) = self.step.replace(text.to_owned()) {
            self.bar.println(format!("  done: {done}"));
            if self.bar.is_hidden() {
                println!("  done: {done}");
            }
        }
        self.bar.set_style(ProgressStyle::default_spinner());
        self.bar.set_message(text.to_owned());
    }

    fn hear(&mut self, line: &Line) {
        let (word, rest) = line.text.split_once(' ').unwrap_or((&line.text, ""));
        match word {
            "STEP" => self.step(rest),
            "PROGRESS" => self.progress(rest),
            "FACT" => {
                if let Some((name, value)) = rest.split_once(' ') {
                    self.facts.insert(name.to_owned(), value.to_owned());
                }
            }
            "SCENARIO" if rest == "ok" => self.step("all checks"),
            _ => {}
        }
    }

    fn progress(&mut self, text: &str) {
        let mut words = text.splitn(3, ' ');
        let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        let (done, total) = (number(), number());
        let style = "{spinner} {msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            self.bar.set_style(style);
        }
        self.bar.set_length(total);
        self.bar.set_position(done.min(total));
    }

    fn table(&self) {
        println!("\n{:<52} {:>12}", "what", "seen");
        for (name, words, unit) in ROWS {
            if let Some(value) = self.facts.get(name) {
                println!("{words:<52} {value:>12} {unit}");
            }
        }
    }
}
