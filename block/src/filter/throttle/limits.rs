//! Limits of a throttle group as QMP's `ThrottleLimits` has them, and when they make sense.

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// Largest rate that may be asked for, and largest product of a burst and its length.
const MAX_VALUE: u64 = 1_000_000_000_000_000;

/// One limited quantity: bytes or requests a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// A second, in the long run; 0 is no limit.
    pub(crate) average: u64,
    /// A second, in a burst; 0 is a tenth of a second's average at once.
    pub(crate) max: u64,
    /// Seconds that a burst may last, at least 1.
    pub(crate) max_length: u64,
}

/// QMP's `ThrottleLimits`. Rates of 0 are no limit; everything is a second's worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the members are QMP's, described there")]
pub struct ThrottleLimits {
    pub iops_total: u64,
    pub iops_total_max: u64,
    pub iops_total_max_length: u64,
    pub iops_read: u64,
    pub iops_read_max: u64,
    pub iops_read_max_length: u64,
    pub iops_write: u64,
    pub iops_write_max: u64,
    pub iops_write_max_length: u64,
    pub bps_total: u64,
    pub bps_total_max: u64,
    pub bps_total_max_length: u64,
    pub bps_read: u64,
    pub bps_read_max: u64,
    pub bps_read_max_length: u64,
    pub bps_write: u64,
    pub bps_write_max: u64,
    pub bps_write_max_length: u64,
    /// A request counts as one for each so many bytes, at least as one; 0 counts requests alone.
    pub iops_size: u64,
}

impl Default for ThrottleLimits {
    fn default() -> ThrottleLimits {
        ThrottleLimits {
            iops_total: 0,
            iops_total_max: 0,
            iops_total_max_length: 1,
            iops_read: 0,
            iops_read_max: 0,
            iops_read_max_length: 1,
            iops_write: 0,
            iops_write_max: 0,
            iops_write_max_length: 1,
            bps_total: 0,
            bps_total_max: 0,
            bps_total_max_length: 1,
            bps_read: 0,
            bps_read_max: 0,
            bps_read_max_length: 1,
            bps_write: 0,
            bps_write_max: 0,
            bps_write_max_length: 1,
            iops_size: 0,
        }
    }
}

impl ThrottleLimits {
    /// The six quantities: bytes in total, read, written, then requests alike.
    pub(crate) fn rates(&self) -> [Rate; 6] {
        let rate = |average, max, max_length| Rate { average, max, max_length };
        [
            rate(self.bps_total, self.bps_total_max, self.bps_total_max_length),
            rate(self.bps_read, self.bps_read_max, self.bps_read_max_length),
            rate(self.bps_write, self.bps_write_max, self.bps_write_max_length),
            rate(self.iops_total, self.iops_total_max, self.iops_total_max_length),
            rate(self.iops_read, self.iops_read_max, self.iops_read_max_length),
            rate(self.iops_write, self.iops_write_max, self.iops_write_max_length),
        ]
    }

    /// Whether anything is limited.
    pub fn is_limited(&self) -> bool {
        self.rates().iter().any(|rate| rate.average != 0)
    }

    /// Refuses what contradicts itself, in QEMU's words.
    pub fn check(&self) -> Result<()> {
        let refuse = |text: &str| Err(Error::new(ErrorKind::InvalidArgument, text));
        let rates = self.rates();
        let mixes = |of: &[Rate], value: fn(&Rate) -> u64| {
            value(&of[0]) != 0 && (value(&of[1]) != 0 || value(&of[2]) != 0)
        };
        let (bytes, requests) = rates.split_at(3);
        let averages = |rate: &Rate| rate.average;
        let bursts = |rate: &Rate| rate.max;
        if mixes(bytes, averages)
            || mixes(requests, averages)
            || mixes(bytes, bursts)
            || mixes(requests, bursts)
        {
            return refuse(
                "bps/iops/max total values and read/write values cannot be used at the same time",
            );
        }
        if self.iops_size != 0 && requests.iter().all(|rate| rate.average == 0) {
            return refuse("iops size requires an iops value to be set");
        }
        for rate in rates {
            if rate.average > MAX_VALUE || rate.max > MAX_VALUE {
                let text = format!("bps/iops/max values must be within [0, {MAX_VALUE}]");
                return refuse(&text);
            }
            if rate.max_length == 0 {
                return refuse("the burst length cannot be 0");
            }
            if rate.max_length > 1 && rate.max == 0 {
                return refuse("burst length set without burst rate");
            }
            if rate.max != 0 && rate.max_length > MAX_VALUE / rate.max {
                return refuse("burst length too high for this burst rate");
            }
            if rate.max != 0 && rate.average == 0 {
                return refuse("bps_max/iops_max require corresponding bps/iops values");
            }
            if rate.max != 0 && rate.max < rate.average {
                return refuse("bps_max/iops_max cannot be lower than bps/iops");
            }
        }
        Ok(())
    }
}
