//! What one client may make us hold: a client is an attacker until proved otherwise.

/// Bounds of a session. Reaching a bound of the input is an error reply; reaching a bound of the
/// output ends the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest message in bytes, white space between its parts not counted.
    pub message_bytes: usize,
    /// Most tokens (braces, names, values, …) in a message.
    pub message_tokens: usize,
    /// Deepest nesting of objects and lists in a message.
    pub nesting: usize,
    /// In-band requests that may wait behind the one under way. Input is not read meanwhile.
    pub queued_requests: usize,
    /// Bytes waiting to be sent above which no further request is taken.
    pub output_high_water: usize,
    /// Bytes waiting to be sent above which the client counts as gone: it does not read.
    pub output_max: usize,
    /// Clients connected at one time.
    pub clients: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            message_bytes: 1 << 20,
            message_tokens: 64 << 10,
            // The protocol's usual depth and queue; clients may count on both.
            nesting: 1024,
            queued_requests: 8,
            output_high_water: 64 << 10,
            output_max: 4 << 20,
            clients: 16,
        }
    }
}
