//! A small QMP client of the rig's own, for ferry and for QEMU alike: what is under test shares no code
//! with what tests it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::time;

/// A connection that has finished the negotiation.
pub struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    events: Vec<Value>,
}

/// A refusal: the class and the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The error class.
    pub class: String,
    /// The text for people.
    pub desc: String,
}

impl Qmp {
    /// Connects, waiting for the socket to appear, and negotiates.
    ///
    /// # Errors
    ///
    /// When there is no server within the limit, or it does not speak QMP.
    pub fn connect(path: &Path, limit: Duration) -> Result<Qmp> {
        let what = format!("QMP socket {}", path.display());
        let writer = time::poll(&what, limit, || Ok(UnixStream::connect(path).ok()))?;
        writer.set_read_timeout(Some(limit))?;
        let reader = BufReader::new(writer.try_clone()?);
        let mut qmp = Qmp { reader, writer, events: Vec::new() };
        let greeting = qmp.receive().context("no QMP greeting")?;
        if greeting.get("QMP").is_none() {
            bail!("not a QMP greeting: {greeting}");
        }
        qmp.call("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn receive(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line).context("waiting for QMP")? == 0 {
            bail!("the QMP server hung up");
        }
        serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))
    }

    /// Executes a command; the answer, or the refusal.
    ///
    /// # Errors
    ///
    /// When the connection breaks.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Result<Value, Refused>> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.writer.write_all(format!("{request}\r\n").as_bytes())?;
        loop {
            let message = self.receive()?;
            if message.get("event").is_some() {
                self.events.push(message);
            } else if let Some(error) = message.get("error") {
                let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
                return Ok(Err(Refused { class: text("class"), desc: text("desc") }));
            } else if let Some(answer) = message.get("return") {
                return Ok(Ok(answer.clone()));
            } else {
                bail!("neither an answer nor an event: {message}");
            }
        }
    }

    /// Executes a command that must succeed.
    ///
    /// # Errors
    ///
    /// When it is refused, or the connection breaks.
    pub fn call(&mut self, command: &str, arguments: Value) -> Result<Value> {
        match self.execute(command, arguments)? {
            Ok(answer) => Ok(answer),
            Err(refused) => bail!("{command} was refused: {} ({})", refused.desc, refused.class),
        }
    }

    /// The events that have arrived so far, oldest first.
    pub fn events(&self) -> &[Value] {
        &self.events
    }

    /// Waits for an event at or after number `from` for which `wanted` holds; returns its number.
    ///
    /// # Errors
    ///
    /// When it does not come within the limit; the message shows what came instead.
    pub fn wait_event(
        &mut self,
        what: &str,
        from: usize,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<usize> {
        let deadline = time::now() + limit;
        let mut next = from;
        loop {
            while let Some(event) = self.events.get(next) {
                if wanted(event) {
                    return Ok(next);
                }
                next += 1;
            }
            let left = deadline.saturating_duration_since(time::now());
            if left.is_zero() {
                bail!("no event {what} within {limit:?}; so far: {:#?}", self.events);
            }
            self.writer.set_read_timeout(Some(left))?;
            let message = self.receive().with_context(|| format!("waiting for event {what}"))?;
            self.writer.set_read_timeout(None)?;
            if message.get("event").is_some() {
                self.events.push(message);
            }
        }
    }

    /// Asks a query again and again until it gives what is wanted.
    ///
    /// # Errors
    ///
    /// When the query fails, or the limit passes; the message shows the last answer.
    pub fn poll<T>(
        &mut self,
        query: &str,
        limit: Duration,
        wanted: impl Fn(&Value) -> Result<Option<T>>,
    ) -> Result<T> {
        let mut last = Value::Null;
        let found = time::poll(query, limit, || {
            last = self.call(query, json!({}))?;
            wanted(&last)
        });
        found.with_context(|| format!("{query} last answered {last}"))
    }
}
