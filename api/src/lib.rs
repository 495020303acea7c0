//! ferry's control interface: QMP types, server and client; knows nothing of KVM.
//!
//! - [`command`] and [`event`] declare everything that crosses QMP, once: the Rust types, their JSON
//!   form and the schema that clients read come from the same lines ([`schema`]).
//! - [`interface`] says which of them an endpoint offers: one with a guest, or one with disks only.
//! - [`qmp`] is the server without sockets: [`qmp::Server`] holds a [`qmp::Session`] for each client.
//! - A [`Controller`] carries commands out: the machine, or a fake in tests.
//! - [`client`] is a blocking client, [`cli`] the subcommands of `ferry` that use it.
//!
//! # Driving a server
//!
//! Whoever owns the sockets, the clock and the controller does four things; each client's loop is:
//!
//! 1. [`Server::connect`] when a socket is accepted; close the socket when that is refused.
//! 2. While [`Session::wants_input`], read and [`Session::feed`]. Carry out every action that comes
//!    back, and give its result to [`Session::reply`], which may bring the next action.
//! 3. Write [`Session::output`], say how much with [`Session::sent`], which may bring actions, too.
//!    Close the socket when [`Session::end`] says so, and [`Server::disconnect`] whenever it closes.
//! 4. Give events to [`Server::event`] *before* the reply of the command that caused them, and call
//!    [`Server::tick`] at [`Server::next_tick`].
//!
//! A session never holds more than its [`qmp::Limits`] allow. A command goes on when its client is
//! gone; its result then finds no session and is dropped.
//!
//! ```
//! use std::{rc::Rc, time::Duration};
//!
//! use ferry_api::{
//!     Command, Controller, Event, EventKind, LocalBoxFuture, QmpError, Timestamp,
//!     command::MachineCommand, interface,
//!     qmp::{Limits, Server, SessionAction},
//! };
//! use serde_json::{Value, json};
//!
//! struct Machine;
//! impl Controller for Machine {
//!     fn execute(self: Rc<Self>, command: Command) -> LocalBoxFuture<Result<Value, QmpError>> {
//!         Box::pin(async move {
//!             match command {
//!                 Command::Machine(MachineCommand::Stop) => Ok(json!({})),
//!                 other => Err(QmpError::generic(format!("no {} here", other.name()))),
//!             }
//!         })
//!     }
//! }
//!
//! # fn block_on<T>(future: LocalBoxFuture<T>) -> T {
//! #     let mut future = future;
//! #     let mut context = std::task::Context::from_waker(std::task::Waker::noop());
//! #     match future.as_mut().poll(&mut context) {
//! #         std::task::Poll::Ready(value) => value,
//! #         std::task::Poll::Pending => unreachable!(),
//! #     }
//! # }
//! let machine = Rc::new(Machine);
//! let mut server = Server::new(&interface::MACHINE, Limits::default());
//! let client = server.connect()?;
//! let session = server.session(client).expect("just connected");
//! // The greeting is in session.output() now. Bytes come from the socket:
//! let mut todo = session.feed(b"{'execute':'qmp_capabilities'} {'execute':'stop','id':7}");
//! // A loop, not recursion: one chunk of input may hold thousands of commands.
//! while let Some(SessionAction::Execute { token, command }) = todo.pop() {
//!     let result = block_on(Rc::clone(&machine).execute(command));
//!     let stopped = Event::new(EventKind::Stop, Timestamp::now());
//!     server.event(stopped, Duration::ZERO);
//!     let Some(session) = server.session(client) else { break };
//!     todo.extend(session.reply(token, result));
//! }
//! let session = server.session(client).expect("still connected");
//! let output = String::from_utf8(session.take_output())?;
//! let lines: Vec<&str> = output.lines().collect();
//! assert!(lines[0].starts_with(r#"{"QMP": "#));
//! assert_eq!(lines[1], r#"{"return": {}}"#);
//! assert!(lines[2].contains(r#""event": "STOP""#));
//! assert_eq!(lines[3], r#"{"return": {}, "id": 7}"#);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Server::connect`]: qmp::Server::connect
//! [`Server::disconnect`]: qmp::Server::disconnect
//! [`Server::event`]: qmp::Server::event
//! [`Server::tick`]: qmp::Server::tick
//! [`Server::next_tick`]: qmp::Server::next_tick
//! [`Session::wants_input`]: qmp::Session::wants_input
//! [`Session::feed`]: qmp::Session::feed
//! [`Session::reply`]: qmp::Session::reply
//! [`Session::output`]: qmp::Session::output
//! [`Session::sent`]: qmp::Session::sent
//! [`Session::end`]: qmp::Session::end

pub mod cli;
pub mod client;
pub mod command;
pub mod error;
pub mod event;
pub mod interface;
pub mod qmp;
pub mod schema;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use command::{Command, Controller, LocalBoxFuture};
pub use error::{ErrorClass, QmpError};
pub use event::{Event, EventKind, Timestamp};
pub use interface::Interface;
