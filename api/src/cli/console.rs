//! What a person sees: lines, tables and progress bars.

use std::{
    fmt::{Arguments, Display},
    io::{self, Write},
    time::Duration,
};

use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};

/// Where a subcommand writes and from where it learns of Ctrl-C.
pub struct Console<'a> {
    out: &'a mut dyn Write,
    interrupts: &'a dyn Fn() -> usize,
}

impl<'a> Console<'a> {
    /// A console. `interrupts` says how often Ctrl-C was pressed. Progress bars are drawn on standard
    /// error when that is a terminal.
    pub fn new(out: &'a mut dyn Write, interrupts: &'a dyn Fn() -> usize) -> Self {
        Console { out, interrupts }
    }

    pub(super) fn interrupts(&self) -> usize {
        (self.interrupts)()
    }

    pub(super) fn say(&mut self, line: Arguments<'_>) -> io::Result<()> {
        writeln!(self.out, "{line}")?;
        self.out.flush()
    }

    /// Lines of name and value, indented below what they belong to.
    pub(super) fn facts(&mut self, facts: &[(&str, String)]) -> io::Result<()> {
        let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in facts {
            self.say(format_args!("  {name:width$}  {value}"))?;
        }
        Ok(())
    }

    /// Rows below a heading, each column as wide as its widest cell.
    pub(super) fn table<const N: usize>(
        &mut self,
        heading: [&str; N],
        rows: &[[String; N]],
    ) -> io::Result<()> {
        let mut widths = heading.map(str::len);
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        self.row(&heading, &widths)?;
        rows.iter().try_for_each(|row| self.row(row, &widths))
    }

    fn row<T: Display>(&mut self, cells: &[T], widths: &[usize]) -> io::Result<()> {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = padded.collect::<Vec<_>>().join("  ");
        self.say(format_args!("{}", line.trim_end()))
    }
}

/// A bar for work that is counted in bytes.
pub(super) fn byte_bar(what: &str) -> ProgressBar {
    let template = "{prefix} [{bar:30}] {percent:>3}%  {binary_bytes}/{binary_total_bytes}  {msg}";
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    ProgressBar::new(0).with_style(style).with_prefix(what.to_owned())
}

/// "64.00 MiB"; nothing below zero.
pub(super) fn bytes(count: i64) -> String {
    BinaryBytes(u64::try_from(count).unwrap_or(0)).to_string()
}

/// "64.00 MiB/s", or what to say when nothing was measured.
pub(super) fn rate(bytes_per_second: u64) -> String {
    if bytes_per_second == 0 {
        "-".to_owned()
    } else {
        format!("{}/s", BinaryBytes(bytes_per_second))
    }
}

/// Bytes per second over some time.
pub(super) fn rate_of(count: u64, time: Duration) -> u64 {
    let millis = time.as_millis().max(1);
    u64::try_from(u128::from(count) * 1000 / millis).unwrap_or(u64::MAX)
}

/// "850 ms", "12.3 s".
pub(super) fn millis(ms: i64) -> String {
    if ms < 10_000 { format!("{ms} ms") } else { format!("{}.{} s", ms / 1000, ms % 1000 / 100) }
}

/// Time that the rest will take at this rate: "12 s", "3 min", or "?" when it does not get less.
pub(super) fn eta(remaining: i64, bytes_per_second: u64) -> String {
    let remaining = u64::try_from(remaining).unwrap_or(0);
    match remaining.checked_div(bytes_per_second) {
        None => "?".to_owned(),
        Some(seconds @ 0..120) => format!("{seconds} s"),
        Some(seconds) => format!("{} min", seconds / 60),
    }
}
