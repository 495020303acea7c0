//! How far a command is, for those who ask: a bar for people at a terminal, `qemu-img`'s percentages on
//! standard output for programs that read them.

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::rc::Rc;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How much is done of how much.
#[derive(Clone)]
pub(crate) enum Progress {
    /// Nobody asked.
    Hidden,
    /// A bar on standard error.
    Bar(ProgressBar),
    /// Percentages on standard output.
    Percent(Rc<Percent>),
}

/// A percentage that is written down whenever it has grown by one or more.
#[derive(Default)]
pub(crate) struct Percent {
    bytes: u64,
    done: Cell<u64>,
    /// Last one written, in hundredths.
    shown: Cell<u64>,
}

impl Progress {
    /// The progress through `bytes`, if it is wanted.
    pub(crate) fn new(wanted: bool, bytes: u64) -> Progress {
        if !wanted {
            return Progress::Hidden;
        }
        if !(io::stdout().is_terminal() && io::stderr().is_terminal()) {
            let percent = Percent { bytes, ..Percent::default() };
            show(0);
            return Progress::Percent(Rc::new(percent));
        }
        let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
        let template = "{bar:40} {percent:>3} %  {bytes}/{total_bytes}  {bytes_per_sec}  {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Progress::Bar(bar)
    }

    /// So many bytes more are done.
    pub(crate) fn add(&self, bytes: u64) {
        match self {
            Progress::Hidden => {}
            Progress::Bar(bar) => bar.inc(bytes),
            Progress::Percent(percent) => {
                if let Some(hundredths) = percent.grown(bytes) {
                    show(hundredths);
                }
            }
        }
    }

    /// Everything is done.
    pub(crate) fn finish(&self) {
        match self {
            Progress::Hidden => {}
            Progress::Bar(bar) => bar.finish(),
            Progress::Percent(_) => {
                show(10_000);
                // Whoever does not read it any more does not miss it.
                drop(writeln!(io::stdout()));
            }
        }
    }
}

impl Percent {
    /// The percentage in hundredths, if it is to be shown.
    fn grown(&self, bytes: u64) -> Option<u64> {
        self.done.set(self.done.get().saturating_add(bytes));
        let part = u128::from(self.done.get()) * 10_000 / u128::from(self.bytes.max(1));
        let hundredths = u64::try_from(part.min(10_000)).unwrap_or(10_000);
        let grown = hundredths >= self.shown.get() + 100;
        grown.then(|| self.shown.set(hundredths));
        grown.then_some(hundredths)
    }
}

/// Writes a percentage as `qemu-img` does: each over the one before.
fn show(hundredths: u64) {
    let (whole, part) = (hundredths / 100, hundredths % 100);
    let mut out = io::stdout();
    drop(write!(out, "    ({whole}.{part:02}/100%)\r").and_then(|()| out.flush()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_shown_when_they_have_grown_by_one() {
        let percent = Percent { bytes: 1000, ..Percent::default() };
        let shown: Vec<_> = [5, 5, 9, 1, 0, 500, 480, 7].map(|bytes| percent.grown(bytes)).into();
        let expected =
            [None, Some(100), None, Some(200), None, Some(5200), Some(10_000), None].to_vec();
        assert_eq!(shown, expected);
        assert_eq!(Percent::default().grown(1), Some(10_000), "of nothing everything is done");
    }
}
