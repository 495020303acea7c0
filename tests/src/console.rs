//! A guest's serial port: its lines and heartbeats with the time of their arrival, and a way to answer.

use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use crate::time;

/// One line and when its end arrived.
#[derive(Clone, Debug)]
pub struct Line {
    /// The time of arrival.
    pub at: Instant,
    /// The text, without heartbeat dots and line end.
    pub text: String,
}

#[derive(Default)]
struct Heard {
    lines: Vec<Line>,
    partial: Vec<u8>,
    dots: Vec<Instant>,
    first_byte: Option<Instant>,
    closed: bool,
}

impl Heard {
    fn take(&mut self, bytes: &[u8], at: Instant) {
        self.first_byte.get_or_insert(at);
        for &byte in bytes {
            match byte {
                b'\n' => {
                    let text = String::from_utf8_lossy(&self.partial).trim_end().to_owned();
                    self.partial.clear();
                    if !text.is_empty() {
                        self.lines.push(Line { at, text });
                    }
                }
                b'.' if self.partial.is_empty() => self.dots.push(at),
                byte => self.partial.push(byte),
            }
        }
    }
}

/// What was heard so far; a thread keeps listening.
#[derive(Clone)]
pub struct Console {
    shared: Arc<(Mutex<Heard>, Condvar)>,
    input: Arc<Mutex<Box<dyn Write + Send>>>,
}

impl Console {
    /// Listens to `output` until its end; what is sent goes to `input`.
    pub fn new(
        mut output: impl Read + Send + 'static,
        input: impl Write + Send + 'static,
    ) -> Console {
        let shared = Arc::new((Mutex::new(Heard::default()), Condvar::new()));
        let listener = Arc::clone(&shared);
        time::spawn("console", move || {
            let mut buffer = [0; 4096];
            loop {
                let read = output.read(&mut buffer);
                let at = time::now();
                let (heard, news) = &*listener;
                let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                match read {
                    Ok(len) if len > 0 => heard.take(&buffer[..len], at),
                    _ => heard.closed = true,
                }
                news.notify_all();
                if heard.closed {
                    return;
                }
            }
        });
        Console { shared, input: Arc::new(Mutex::new(Box::new(input))) }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends bytes to the guest.
    ///
    /// # Errors
    ///
    /// When nobody is there to take them.
    pub fn send(&self, bytes: &[u8]) -> Result<()> {
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        input.write_all(bytes)?;
        Ok(input.flush()?)
    }

    /// Waits for the first line, at or after line number `from`, for which `wanted` gives something.
    ///
    /// # Errors
    ///
    /// When it does not come within the limit, or cannot come any more; the message shows the last lines.
    pub fn wait<T>(
        &self,
        what: &str,
        from: usize,
        limit: Duration,
        mut wanted: impl FnMut(&Line) -> Option<T>,
    ) -> Result<T> {
        let deadline = time::now() + limit;
        let mut heard = self.heard();
        let mut next = from;
        loop {
            while let Some(line) = heard.lines.get(next) {
                next += 1;
                if let Some(found) = wanted(line) {
                    return Ok(found);
                }
            }
            let left = deadline.saturating_duration_since(time::now());
            if heard.closed || left.is_zero() {
                let why = if heard.closed { "the guest is gone" } else { "time is up" };
                let from = heard.lines.len().saturating_sub(15);
                let last: Vec<_> = heard.lines[from..].iter().map(|line| &line.text).collect();
                bail!("waiting for {what}: {why} ({limit:?}); last lines: {last:#?}");
            }
            let waited = self.shared.1.wait_timeout(heard, left);
            heard = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for a line that begins with a word, and returns it.
    ///
    /// # Errors
    ///
    /// As [`Console::wait`].
    pub fn wait_word(&self, word: &str, limit: Duration) -> Result<Line> {
        self.wait(word, 0, limit, |line| {
            line.text.split_ascii_whitespace().next().filter(|first| *first == word)?;
            Some(line.clone())
        })
    }

    /// Every line so far.
    pub fn lines(&self) -> Vec<Line> {
        self.heard().lines.clone()
    }

    /// The text so far, for messages.
    pub fn text(&self) -> String {
        self.lines().into_iter().map(|line| line.text + "\n").collect()
    }

    /// When the very first byte arrived.
    pub fn first_byte(&self) -> Option<Instant> {
        self.heard().first_byte
    }

    /// When each heartbeat dot arrived.
    pub fn dots(&self) -> Vec<Instant> {
        self.heard().dots.clone()
    }

    /// Waits until the guest has sent another heartbeat.
    ///
    /// # Errors
    ///
    /// When none comes within the limit.
    pub fn wait_dot(&self, limit: Duration) -> Result<()> {
        let before = self.heard().dots.len();
        time::poll("a heartbeat", limit, || Ok((self.heard().dots.len() > before).then_some(())))
    }
}

/// The value of a `name=value` word in a line.
///
/// # Errors
///
/// When the line has no such word, or it is no number.
pub fn number(line: &str, name: &str) -> Result<u64> {
    let words = line.split_ascii_whitespace().filter_map(|word| word.split_once('='));
    let (_, value) = words
        .into_iter()
        .find(|(key, _)| *key == name)
        .ok_or_else(|| anyhow!("no {name}= in {line}"))?;
    let parsed = match value.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => value.parse(),
    };
    parsed.map_err(|error| anyhow!("{name}={value} in {line}: {error}"))
}

/// The longest pause between heartbeats, of one process or of two that handed the guest over.
pub fn longest_gap(dots: impl IntoIterator<Item = Instant>) -> Duration {
    let mut dots: Vec<_> = dots.into_iter().collect();
    dots.sort_unstable();
    dots.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}
