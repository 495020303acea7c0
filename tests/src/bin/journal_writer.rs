//! Runs inside a Linux guest: appends checksummed records, makes each durable, acknowledges it on the
//! console, and remembers the longest time between two acknowledgements.
//!
//! Lines that it obeys: `phase NAME` ends a phase and prints `STALL phase=.. max_us=.. records=..`;
//! `stop` prints the last phase and `END records=..`, and ends.

use std::fs::File;
use std::io::{BufRead, Write};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ferry_tests::{journal, time};

/// Room for the console and for the jobs under test.
const PAUSE: Duration = Duration::from_millis(2);

struct Phase {
    name: String,
    longest: Duration,
    records: u64,
}

impl Phase {
    fn new(name: &str) -> Phase {
        Phase { name: name.to_owned(), longest: Duration::ZERO, records: 0 }
    }

    fn tell(&self, out: &mut impl Write) -> Result<()> {
        let us = self.longest.as_micros();
        writeln!(out, "STALL phase={} max_us={us} records={}", self.name, self.records)?;
        Ok(())
    }
}

fn main() -> Result<()> {
    let path = std::env::args().nth(1).context("name the journal file")?;
    let mut file = File::options().create(true).append(true).open(&path)?;
    let mut sequence = file.metadata()?.len() / journal::RECORD as u64;
    let (sender, orders) = mpsc::channel();
    time::spawn("orders", move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line.trim().to_owned()).is_err() {
                return;
            }
        }
    });
    let mut out = std::io::stdout().lock();
    writeln!(out, "JOURNAL records={sequence}")?;
    let mut phase = Phase::new("start");
    let mut last: Instant = time::now();
    loop {
        file.write_all(&journal::record(sequence + 1))?;
        file.sync_data()?;
        sequence += 1;
        writeln!(out, "ACK {sequence}")?;
        out.flush()?;
        let now = time::now();
        phase.longest = phase.longest.max(now - last);
        phase.records += 1;
        last = now;
        match orders.try_recv().as_deref() {
            Ok("stop") => break,
            Ok(order) => {
                if let Some(name) = order.strip_prefix("phase ") {
                    phase.tell(&mut out)?;
                    phase = Phase::new(name);
                }
            }
            Err(_none) => {}
        }
        std::thread::sleep(PAUSE);
    }
    phase.tell(&mut out)?;
    writeln!(out, "END records={sequence}")?;
    Ok(())
}
