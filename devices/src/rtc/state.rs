//! Saved state of the clock.

use ferry_migration::state::{Bytes, State};
use serde::{Deserialize, Serialize};

/// The CMOS clock: how far it is from the host's clock, and its memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    /// The register that port 0x71 reaches.
    pub index: u8,
    /// Whole seconds that the guest's clock is ahead of the host's (rounded down).
    pub ahead_seconds: i64,
    /// The rest of it in nanoseconds, below 10^9.
    pub ahead_nanos: u32,
    /// While the guest sets the clock: its time registers (seconds, minutes, hours, weekday, day,
    /// month, year, century) as bytes; else empty.
    pub held: Bytes,
    /// The guest's second when it last read register C.
    pub flags_read_at: i64,
    /// The 128 bytes of memory; time registers in it mean nothing.
    pub memory: Bytes,
}

impl State for RtcState {
    const KIND: &'static str = "rtc-mc146818";
    const VERSION: u16 = 1;
    type Older = Self;
}
