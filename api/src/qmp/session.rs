//! The conversation with one client, as a state machine: it does no I/O and never waits.
//!
//! Bytes go in with [`Session::feed`], commands come out as [`SessionAction::Execute`], their results
//! go in with [`Session::reply`], bytes come out of [`Session::output`]. In-band commands are
//! executed one at a time, in order; an out-of-band one at once.

use std::collections::VecDeque;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    limits::Limits,
    wire::{Decoder, encode},
};
use crate::{
    command::{
        Command, CommandInfo, CommandName, Parse, QmpCapability, SessionCommand, VersionInfo, reply,
    },
    error::QmpError,
    event::Event,
    interface::Interface,
    schema::introspect,
};

/// Names a command under way, so that its result finds its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(u64);

/// What a session wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum SessionAction {
    /// Carry the command out and give the result to [`Session::reply`].
    Execute {
        /// To be given back with the result.
        token: Token,
        /// What to do.
        command: Command,
    },
}

/// Why a session is over although the client has not hung up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SessionEnd {
    /// More waits to be sent than [`Limits::output_max`].
    #[error("the client does not read what it is sent; it was disconnected")]
    OutputFull,
    /// More was fed than [`Session::wants_input`] allowed.
    #[error("the client was read from although its requests could not be taken")]
    InputFull,
}

/// A request that waits for its turn.
#[derive(Debug)]
enum Queued {
    Request(Map<String, Value>),
    /// The reply is known, but replies keep the order of the requests.
    Refuse(QmpError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waiting for `qmp_capabilities`.
    Negotiation,
    /// Commands are taken; out of band, too, if so agreed.
    Command { out_of_band: bool },
}

/// The conversation with one client.
#[derive(Debug)]
pub struct Session {
    interface: &'static Interface,
    limits: Limits,
    decoder: Decoder,
    phase: Phase,
    /// Bytes fed while the queue was full.
    unread: Vec<u8>,
    queue: VecDeque<Queued>,
    in_band: Option<(Token, Option<Value>)>,
    out_of_band: Vec<(Token, Option<Value>)>,
    next_token: u64,
    output: Vec<u8>,
    end: Option<SessionEnd>,
}

impl Session {
    /// A session at its start, with the commands of `interface`: the greeting is ready in [`Session::output`].
    pub fn new(interface: &'static Interface, limits: Limits) -> Self {
        let mut session = Session {
            interface,
            limits,
            decoder: Decoder::new(limits),
            phase: Phase::Negotiation,
            unread: Vec::new(),
            queue: VecDeque::new(),
            in_band: None,
            out_of_band: Vec::new(),
            next_token: 0,
            output: Vec::new(),
            end: None,
        };
        session.send(&json!({
            "QMP": { "version": VersionInfo::current(), "capabilities": QmpCapability::ALL }
        }));
        session
    }

    /// Takes bytes from the client, in chunks of any size.
    ///
    /// Do not read from the socket while [`Session::wants_input`] is false: that is how a client that
    /// asks faster than it is answered is slowed down.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<SessionAction> {
        self.unread.extend_from_slice(bytes);
        if self.unread.len() > self.limits.message_bytes.saturating_add(1 << 20) {
            self.finish(SessionEnd::InputFull);
        }
        let mut actions = Vec::new();
        self.pump(&mut actions);
        actions
    }

    /// Takes the result of a command. A token that is not under way is ignored.
    pub fn reply(&mut self, token: Token, result: Result<Value, QmpError>) -> Vec<SessionAction> {
        let mut actions = Vec::new();
        if self.in_band.as_ref().is_some_and(|(running, _)| *running == token) {
            if let Some((_, id)) = self.in_band.take() {
                self.respond(id, result);
            }
            self.pump(&mut actions);
        } else if let Some(at) = self.out_of_band.iter().position(|(t, _)| *t == token) {
            let (_, id) = self.out_of_band.swap_remove(at);
            self.respond(id, result);
        }
        actions
    }

    /// Sends an event, unless the client has not negotiated yet.
    pub fn event(&mut self, event: &Event) {
        if self.phase != Phase::Negotiation {
            self.send(event);
        }
    }

    /// What waits to be sent, oldest first. Say with [`Session::sent`] how much of it was.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// Notes that the first `bytes` of the output were sent; requests that waited for that go on.
    pub fn sent(&mut self, bytes: usize) -> Vec<SessionAction> {
        self.output.drain(..bytes.min(self.output.len()));
        self.feed(&[])
    }

    /// Takes all output at once, for a driver that can hold or send any amount.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Whether something waits to be sent.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Whether every request is answered and every answer sent.
    pub fn is_idle(&self) -> bool {
        let under_way = self.in_band.is_some() || !self.out_of_band.is_empty();
        !under_way && self.queue.is_empty() && self.unread.is_empty() && self.output.is_empty()
    }

    /// Whether the socket shall be read.
    pub fn wants_input(&self) -> bool {
        self.end.is_none() && self.unread.is_empty() && self.accepts_requests()
    }

    /// Why the connection is to be closed, if it is.
    pub fn end(&self) -> Option<SessionEnd> {
        self.end
    }

    fn accepts_requests(&self) -> bool {
        self.queue.len() < self.limits.queued_requests
            && self.output.len() <= self.limits.output_high_water
    }

    /// Goes on with everything that can go on.
    fn pump(&mut self, actions: &mut Vec<SessionAction>) {
        let mut unread = std::mem::take(&mut self.unread);
        let mut input = unread.as_slice();
        while self.end.is_none() {
            let started = self.start_next(actions);
            let decoded = self.accepts_requests() && self.decode(&mut input, actions);
            if !started && !decoded {
                break;
            }
        }
        if self.end.is_none() {
            let used = unread.len() - input.len();
            unread.drain(..used);
            self.unread = unread;
        }
    }

    /// Starts or refuses the next request of the queue. False when there is nothing to start.
    fn start_next(&mut self, actions: &mut Vec<SessionAction>) -> bool {
        if self.in_band.is_some() || self.output.len() > self.limits.output_high_water {
            return false;
        }
        match self.queue.pop_front() {
            None => return false,
            Some(Queued::Refuse(error)) => self.respond(None, Err(error)),
            Some(Queued::Request(request)) => self.dispatch(request, actions),
        }
        true
    }

    /// Reads one message. False when there is none.
    fn decode(&mut self, input: &mut &[u8], actions: &mut Vec<SessionAction>) -> bool {
        match self.decoder.next(input) {
            None => return false,
            Some(Ok(Value::Object(request))) => {
                // Out of band means now, and before everything that waits, even when it is refused.
                if request.contains_key("exec-oob") && !request.contains_key("execute") {
                    self.dispatch(request, actions);
                } else {
                    self.queue.push_back(Queued::Request(request));
                }
            }
            Some(Ok(_)) => self.queue.push_back(Queued::Refuse(QmpError::not_an_object())),
            Some(Err(error)) => self.queue.push_back(Queued::Refuse(error)),
        }
        true
    }

    /// Answers a request, or has it carried out.
    fn dispatch(&mut self, mut request: Map<String, Value>, actions: &mut Vec<SessionAction>) {
        let id = request.remove("id");
        match self.interpret(request) {
            Err(error) => self.respond(id, Err(error)),
            Ok(Accepted::Session(command)) => {
                tracing::debug!(command = command.name(), "QMP");
                let result = self.answer(&command);
                self.respond(id, result);
            }
            Ok(Accepted::Controller(command, out_of_band)) => {
                tracing::debug!(command = command.name(), out_of_band, "QMP");
                let token = Token(self.next_token);
                self.next_token += 1;
                if out_of_band {
                    self.out_of_band.push((token, id));
                } else {
                    self.in_band = Some((token, id));
                }
                actions.push(SessionAction::Execute { token, command });
            }
        }
    }

    /// Checks a request down to its last argument.
    fn interpret(&self, mut request: Map<String, Value>) -> Result<Accepted, QmpError> {
        let allow_oob = self.phase == Phase::Command { out_of_band: true };
        check_members(&request, allow_oob)?;
        let (name, out_of_band) = match (request.remove("execute"), request.remove("exec-oob")) {
            (Some(Value::String(name)), _) => (name, false),
            (_, Some(Value::String(name))) => (name, true),
            _ => return Err(QmpError::no_command()),
        };
        let arguments = match request.remove("arguments") {
            Some(Value::Object(arguments)) => arguments,
            _ => Map::new(),
        };
        let info = self.lookup(&name)?;
        if out_of_band && !info.out_of_band {
            return Err(QmpError::not_out_of_band(&name));
        }
        info.check(&arguments)?;
        match info.parse {
            Parse::Session(parse) => parse(Value::Object(arguments)).map(Accepted::Session),
            Parse::Controller(parse) => parse(Value::Object(arguments))
                .map(|command| Accepted::Controller(command, out_of_band)),
        }
    }

    /// Finds a command; before negotiation there is only one.
    fn lookup(&self, name: &str) -> Result<&'static CommandInfo, QmpError> {
        if self.phase == Phase::Negotiation && name != "qmp_capabilities" {
            return Err(QmpError::not_negotiated());
        }
        self.interface.command(name)
    }

    fn answer(&mut self, command: &SessionCommand) -> Result<Value, QmpError> {
        match command {
            SessionCommand::QmpCapabilities(_) if self.phase != Phase::Negotiation => {
                Err(QmpError::already_negotiated())
            }
            SessionCommand::QmpCapabilities(arguments) => {
                let enable = arguments.enable.as_deref().unwrap_or_default();
                let out_of_band = enable.contains(&QmpCapability::Oob);
                self.phase = Phase::Command { out_of_band };
                Ok(json!({}))
            }
            SessionCommand::QueryVersion => reply(&VersionInfo::current()),
            SessionCommand::QueryCommands => {
                let commands = self.interface.commands();
                let names = commands.map(|c| CommandName { name: c.name.to_owned() });
                reply(&names.collect::<Vec<_>>())
            }
            SessionCommand::QueryQmpSchema => reply(&introspect(self.interface)),
        }
    }

    fn respond(&mut self, id: Option<Value>, result: Result<Value, QmpError>) {
        #[derive(Serialize)]
        struct Response {
            #[serde(rename = "return", skip_serializing_if = "Option::is_none")]
            returned: Option<Value>,
            #[serde(skip_serializing_if = "Option::is_none")]
            error: Option<QmpError>,
            #[serde(skip_serializing_if = "Option::is_none")]
            id: Option<Value>,
        }
        let (returned, error) = match result {
            Ok(value) => (Some(value), None),
            Err(error) => (None, Some(error)),
        };
        self.send(&Response { returned, error, id });
    }

    fn send<T: Serialize>(&mut self, message: &T) {
        if self.end.is_some() {
            return;
        }
        if let Err(error) = encode(message, &mut self.output) {
            // JSON expresses every value that we build; a client that waits must still be answered.
            tracing::error!(%error, "a QMP message could not be written");
        }
        if self.output.len() > self.limits.output_max {
            self.finish(SessionEnd::OutputFull);
        }
    }

    /// Ends the session and lets go of what it holds.
    fn finish(&mut self, end: SessionEnd) {
        self.end.get_or_insert(end);
        self.output = Vec::new();
        self.unread = Vec::new();
        self.queue.clear();
    }
}

/// A request that passed all checks.
enum Accepted {
    Session(SessionCommand),
    /// The command, and whether it runs out of band.
    Controller(Command, bool),
}

/// Checks the request's own members; `id` has been taken out.
fn check_members(request: &Map<String, Value>, allow_oob: bool) -> Result<(), QmpError> {
    let known = |name: &str| match name {
        "execute" | "arguments" => true,
        "exec-oob" => allow_oob,
        _ => false,
    };
    if let Some(name) = request.keys().find(|name| !known(name)) {
        return Err(QmpError::unexpected_member(name));
    }
    if request.contains_key("execute") && request.contains_key("exec-oob") {
        return Err(QmpError::clashing_members("execute", "exec-oob"));
    }
    for name in ["execute", "exec-oob"] {
        if request.get(name).is_some_and(|value| !value.is_string()) {
            return Err(QmpError::member_type(name, "a string"));
        }
    }
    if request.get("arguments").is_some_and(|value| !value.is_object()) {
        return Err(QmpError::member_type("arguments", "an object"));
    }
    Ok(())
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
