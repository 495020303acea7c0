//! A blocking QMP client over a unix socket: what the command line, tests and tools talk with.

pub(crate) mod clock;

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use self::clock::Deadline;
use crate::{
    command::VersionInfo,
    error::QmpError,
    event::Event,
    qmp::{Limits, wire},
};

/// What a server may make a client hold. A server is trusted more than a client is, but not blindly.
const LIMITS: Limits = Limits {
    message_bytes: 64 << 20,
    message_tokens: 4 << 20,
    nesting: 1024,
    queued_requests: 0,
    output_high_water: 0,
    output_max: 0,
    clients: 0,
};

/// Most events kept for a caller who does not ask for them; then the oldest are forgotten.
const EVENTS_MAX: usize = 1 << 16;

/// Why talking to a server did not work.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers at that path.
    #[error(
        "cannot connect to the QMP socket {path}: {source}; is a guest running with `--qmp {path}`?"
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("lost the connection to the QMP socket {path}: {source}; the process may have ended")]
    Lost {
        /// The socket.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// No answer in time.
    #[error(
        "no answer from the QMP socket {path} within {waited:?} while waiting for {what}; \
         another client may hold the connection, or the process hangs"
    )]
    TimedOut {
        /// The socket.
        path: PathBuf,
        /// What was waited for.
        what: String,
        /// For how long.
        waited: Duration,
    },
    /// Whoever answers does not speak QMP.
    #[error("the server at {path} does not speak QMP: {what}")]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What was wrong.
        what: String,
    },
    /// The command was refused or failed.
    #[error("{command}: {error}")]
    Command {
        /// The command.
        command: String,
        /// The error reply.
        error: QmpError,
    },
}

/// What a server says first.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Greeting {
    /// Its version.
    pub version: VersionInfo,
    /// What can be negotiated.
    pub capabilities: Vec<String>,
}

/// A message from the server.
#[derive(Debug)]
enum Message {
    Event(Event),
    Reply { id: Option<Value>, result: Result<Value, QmpError> },
}

/// A connection that has been negotiated.
#[derive(Debug)]
pub struct QmpClient {
    path: PathBuf,
    stream: UnixStream,
    decoder: wire::Decoder,
    /// Bytes received and not yet read.
    input: Vec<u8>,
    events: VecDeque<Event>,
    next_id: u64,
    timeout: Duration,
    greeting: Greeting,
}

impl QmpClient {
    /// Connects and negotiates. `timeout` is for each answer, from then on, too.
    ///
    /// # Errors
    /// Nobody there, no answer in time, or a server of another kind.
    pub fn connect(path: impl AsRef<Path>, timeout: Duration) -> Result<Self, ClientError> {
        let path = path.as_ref().to_path_buf();
        let failed = |source| ClientError::Connect { path: path.clone(), source };
        let stream = UnixStream::connect(&path).map_err(failed)?;
        stream.set_write_timeout(Some(timeout)).map_err(failed)?;
        let greeting = Greeting { version: VersionInfo::current(), capabilities: Vec::new() };
        let mut client = QmpClient {
            path,
            stream,
            decoder: wire::Decoder::new(LIMITS),
            input: Vec::new(),
            events: VecDeque::new(),
            next_id: 0,
            timeout,
            greeting,
        };
        client.greeting = client.read_greeting()?;
        client.execute("qmp_capabilities", json!({}))?;
        Ok(client)
    }

    /// What the server said first.
    pub fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    /// Changes how long to wait for an answer.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Carries out a command. Events that come meanwhile are kept.
    ///
    /// # Errors
    /// The error reply as [`ClientError::Command`], or a broken connection.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, ClientError> {
        let id = json!(self.next_id);
        self.next_id += 1;
        self.send(&json!({ "execute": command, "arguments": arguments, "id": id }))?;
        self.wait_reply(command, &id)
    }

    /// Carries out a command with typed arguments and a typed result.
    ///
    /// # Errors
    /// As [`QmpClient::execute`]; also a result of another shape.
    pub fn call<A: Serialize, R: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: &A,
    ) -> Result<R, ClientError> {
        let arguments = serde_json::to_value(arguments).map_err(|e| self.protocol(&e))?;
        let returned = self.execute(command, arguments)?;
        serde_json::from_value(returned).map_err(|e| self.protocol(&e))
    }

    /// The next event, kept or new; `None` when there is none in time.
    ///
    /// # Errors
    /// A broken connection.
    pub fn next_event(&mut self, timeout: Duration) -> Result<Option<Event>, ClientError> {
        self.wait_event(timeout, |_| true)
    }

    /// The next event that is `wanted`; others before it stay for later.
    ///
    /// # Errors
    /// A broken connection.
    pub fn wait_event(
        &mut self,
        timeout: Duration,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<Option<Event>, ClientError> {
        let deadline = Deadline::after(timeout);
        let mut seen = 0;
        loop {
            if let Some(at) = self.events.iter().skip(seen).position(&wanted) {
                return Ok(self.events.remove(seen + at));
            }
            seen = self.events.len();
            match self.receive(deadline)? {
                None => return Ok(None),
                Some(Message::Event(event)) => {
                    if self.keep(event) {
                        seen = seen.saturating_sub(1);
                    }
                }
                // A reply that came after its command had timed out.
                Some(Message::Reply { .. }) => {}
            }
        }
    }

    /// The events kept so far.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.events.drain(..).collect()
    }

    /// Sends a request as it is and gives its whole reply, for people who type JSON.
    ///
    /// # Errors
    /// A broken connection. An error reply is a reply.
    pub fn raw(&mut self, request: &str) -> Result<Result<Value, QmpError>, ClientError> {
        self.write(format!("{request}\n").as_bytes())?;
        let deadline = Deadline::after(self.timeout);
        loop {
            match self.receive(deadline)? {
                None => return Err(self.timed_out("a reply")),
                Some(Message::Reply { result, .. }) => return Ok(result),
                Some(Message::Event(event)) => {
                    self.keep(event);
                }
            }
        }
    }

    fn wait_reply(&mut self, command: &str, expected: &Value) -> Result<Value, ClientError> {
        let deadline = Deadline::after(self.timeout);
        loop {
            match self.receive(deadline)? {
                None => return Err(self.timed_out(&format!("the reply to {command}"))),
                Some(Message::Event(event)) => {
                    self.keep(event);
                }
                // An error without id answers a request that could not be read: ours.
                Some(Message::Reply { id, result })
                    if id.as_ref().is_none_or(|i| i == expected) =>
                {
                    let failed = |error| ClientError::Command { command: command.into(), error };
                    return result.map_err(failed);
                }
                Some(Message::Reply { .. }) => {}
            }
        }
    }

    /// Keeps an event; true when an older one had to go for it.
    fn keep(&mut self, event: Event) -> bool {
        self.events.push_back(event);
        let full = self.events.len() > EVENTS_MAX;
        if full {
            self.events.pop_front();
        }
        full
    }

    fn read_greeting(&mut self) -> Result<Greeting, ClientError> {
        #[derive(Deserialize)]
        struct First {
            #[serde(rename = "QMP")]
            qmp: Greeting,
        }
        let deadline = Deadline::after(self.timeout);
        match self.receive_value(deadline)? {
            None => Err(self.timed_out("the greeting")),
            Some(value) => match serde_json::from_value::<First>(value) {
                Ok(first) => Ok(first.qmp),
                Err(error) => Err(self.protocol(&error)),
            },
        }
    }

    fn receive(&mut self, deadline: Deadline) -> Result<Option<Message>, ClientError> {
        let Some(mut value) = self.receive_value(deadline)? else {
            return Ok(None);
        };
        let id = value.get("id").cloned();
        let message = if let Some(returned) = value.get_mut("return") {
            Ok(Message::Reply { id, result: Ok(returned.take()) })
        } else if let Some(error) = value.get_mut("error") {
            serde_json::from_value(error.take())
                .map(|error| Message::Reply { id, result: Err(error) })
        } else {
            serde_json::from_value(value).map(Message::Event)
        };
        message.map(Some).map_err(|error| self.protocol(&error))
    }

    /// The next message; `None` when the time is over.
    fn receive_value(&mut self, deadline: Deadline) -> Result<Option<Value>, ClientError> {
        loop {
            let mut unread = self.input.as_slice();
            let message = self.decoder.next(&mut unread);
            let used = self.input.len() - unread.len();
            self.input.drain(..used);
            match message {
                Some(Ok(value)) => return Ok(Some(value)),
                Some(Err(error)) => return Err(self.protocol(&error)),
                None => {}
            }
            let Some(remaining) = deadline.remaining() else {
                return Ok(None);
            };
            self.stream.set_read_timeout(Some(remaining)).map_err(|e| self.lost(e))?;
            let mut chunk = [0; 16 << 10];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(self.lost(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => self.input.extend_from_slice(chunk.get(..n).unwrap_or_default()),
                Err(e) if is_timeout(&e) => {}
                Err(e) => return Err(self.lost(e)),
            }
        }
    }

    fn send(&mut self, message: &Value) -> Result<(), ClientError> {
        let mut line = Vec::new();
        wire::encode(message, &mut line).map_err(|error| self.protocol(&error))?;
        self.write(&line)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        match self.stream.write_all(bytes) {
            Ok(()) => Ok(()),
            Err(e) if is_timeout(&e) => Err(self.timed_out("room to send a command")),
            Err(e) => Err(self.lost(e)),
        }
    }

    fn lost(&self, source: io::Error) -> ClientError {
        ClientError::Lost { path: self.path.clone(), source }
    }

    fn protocol(&self, what: &dyn std::fmt::Display) -> ClientError {
        ClientError::Protocol { path: self.path.clone(), what: what.to_string() }
    }

    fn timed_out(&self, what: &str) -> ClientError {
        let (path, waited) = (self.path.clone(), self.timeout);
        ClientError::TimedOut { path, what: what.to_owned(), waited }
    }
}

/// Whether a read or write only has to be tried again: out of time, or interrupted by a signal.
fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}
