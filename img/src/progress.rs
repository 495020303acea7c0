//! Progress bars, for people who ask for one at a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How much is done of how much.
#[derive(Clone)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// A bar of `bytes` if it is wanted; it is drawn only at a terminal.
    pub(crate) fn new(wanted: bool, bytes: u64) -> Progress {
        if !wanted {
            return Progress(ProgressBar::hidden());
        }
        let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
        let template = "{bar:40} {percent:>3} %  {bytes}/{total_bytes}  {bytes_per_sec}  {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Progress(bar)
    }

    /// So many bytes more are done.
    pub(crate) fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// Everything is done.
    pub(crate) fn finish(&self) {
        self.0.finish();
    }
}
