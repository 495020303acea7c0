//! The stream of one direction: bytes to messages and back.
//!
//! A message is a JSON value; nothing separates messages but their own ends. A line feed is not
//! needed, and may come in the middle of one.

pub use super::encode::encode;
use super::{
    lexer::{Kind, Lexer, Step},
    limits::Limits,
    parser::Tokens,
};
use crate::error::QmpError;
use serde_json::Value;

/// How much of a stray token an error text quotes.
const QUOTE_MAX: usize = 128;

/// Cuts a byte stream into JSON values. The chunks in which the bytes come do not matter.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    lexer: Lexer,
    tokens: Tokens,
    braces: i64,
    brackets: i64,
    /// A message broke a limit: the rest of its line is not looked at.
    skip_line: bool,
}

impl Decoder {
    /// A decoder at the start of a stream.
    pub fn new(limits: Limits) -> Self {
        Decoder {
            limits,
            lexer: Lexer::default(),
            tokens: Tokens::default(),
            braces: 0,
            brackets: 0,
            skip_line: false,
        }
    }

    /// Reads from the front of `input`, which it shortens, up to the end of one message.
    ///
    /// `None` means that `input` is used up and more is needed. An error is a message, too: it gets an
    /// error reply, and reading goes on behind it.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Result<Value, QmpError>> {
        while let Some((&byte, rest)) = input.split_first() {
            if self.skip_line {
                self.skip_line = byte != b'\n';
                *input = rest;
                continue;
            }
            let step = self.lexer.step(byte);
            if !matches!(step, Step::EndBefore(_)) {
                *input = rest;
            }
            let finished = match step {
                Step::Skip => None,
                Step::Take => {
                    self.tokens.take(byte);
                    None
                }
                Step::TakeLast(kind) => {
                    self.tokens.take(byte);
                    self.end_token(kind)
                }
                Step::EndBefore(kind) => self.end_token(kind),
            };
            if let Some(message) = finished.or_else(|| self.check_limits().map(Err)) {
                self.tokens.clear();
                (self.braces, self.brackets) = (0, 0);
                return Some(message);
            }
        }
        None
    }

    fn end_token(&mut self, kind: Kind) -> Option<Result<Value, QmpError>> {
        match kind {
            Kind::Stray => {
                let token = self.tokens.unfinished();
                let shown = token.split(|byte| *byte == 0).next().unwrap_or_default();
                let shown = String::from_utf8_lossy(shown.get(..QUOTE_MAX).unwrap_or(shown));
                return Some(Err(QmpError::json_syntax(format_args!("stray '{shown}'"))));
            }
            Kind::OpenBrace => self.braces += 1,
            Kind::CloseBrace => self.braces -= 1,
            Kind::OpenBracket => self.brackets += 1,
            Kind::CloseBracket => self.brackets -= 1,
            _ => {}
        }
        self.tokens.end(kind);
        let open = self.braces > 0 || self.brackets > 0;
        let sound = self.braces >= 0 && self.brackets >= 0;
        if open && sound { None } else { Some(self.tokens.parse()) }
    }

    /// The error for a message that is too much, of which the rest is skipped.
    fn check_limits(&mut self) -> Option<QmpError> {
        let depth = usize::try_from(self.braces + self.brackets).unwrap_or(0);
        let exceeded = if self.tokens.bytes() > self.limits.message_bytes {
            "JSON token size limit exceeded"
        } else if self.tokens.count() > self.limits.message_tokens {
            "JSON token count limit exceeded"
        } else if depth > self.limits.nesting {
            "JSON nesting depth limit exceeded"
        } else {
            return None;
        };
        self.skip_line = true;
        self.lexer.reset();
        Some(QmpError::generic(exceeded))
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
