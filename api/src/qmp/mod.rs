//! The server's side of QMP: bytes in, bytes out, no sockets, no clock.
//!
//! [`wire`] cuts a byte stream into JSON values and writes them; [`session`] is the conversation with
//! one client; [`server`] is all of them, with the events that go to each.

mod encode;
mod lexer;
mod limits;
mod parser;
pub mod server;
pub mod session;
mod throttle;
pub mod wire;

pub use limits::Limits;
pub use server::{ClientId, Server, TooManyClients};
pub use session::{Session, SessionAction, SessionEnd, Token};
