//! Time: the time stamp counter, its frequency from the most truthful source there is, and the host's
//! clock page, which must never run backwards, not even when the guest moves.

use core::arch::x86_64::_rdtsc;

use crate::boot;
use crate::port::{in8, out8};

const KVM_NAME: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x4d];
const PIT_HZ: u64 = 1_193_182;
const PIT_COUNT: u16 = 11_932;

/// The time stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has it, and CR4.TSD is clear.
    unsafe { _rdtsc() }
}

/// The frequency of the counter and how it was learned.
#[derive(Clone, Copy)]
pub struct Clock {
    /// Thousands of ticks a second.
    pub khz: u64,
    /// Where the figure came from.
    pub source: &'static str,
    ns_per_tick_q32: u64,
}

impl Clock {
    /// Asks the hypervisor, then its clock page, then the processor, and measures as the last resort.
    pub fn calibrate() -> Clock {
        let facts = boot::facts();
        let named = u64::from(facts.timing[0]);
        let [ratio_low, ratio_high, crystal_hz, _] = facts.crystal.map(u64::from);
        let (khz, source) = if facts.hypervisor[0] >= 0x4000_0010 && named != 0 {
            (named, "hypervisor")
        } else if let Some(page) = ClockPage::read() {
            (page.khz(), "kvmclock")
        } else if ratio_low != 0 && ratio_high != 0 && crystal_hz != 0 {
            (crystal_hz * ratio_high / ratio_low / 1000, "crystal")
        } else if let Some(khz) = measure_by_timer() {
            (khz, "pit")
        } else {
            (1_000_000, "assumed")
        };
        Clock { khz, source, ns_per_tick_q32: (1_000_000 << 32) / khz.max(1) }
    }

    /// A number of ticks in nanoseconds.
    pub fn ns(&self, ticks: u64) -> u64 {
        let wide = u128::from(ticks) * u128::from(self.ns_per_tick_q32);
        (wide >> 32) as u64
    }

    /// A time in ticks.
    pub fn ticks_of_us(&self, us: u64) -> u64 {
        us.saturating_mul(self.khz) / 1000
    }
}

/// Times the counter against channel 2 of the interval timer (10 ms); none when it does not count.
fn measure_by_timer() -> Option<u64> {
    let gate = in8(0x61) & !3 | 1;
    out8(0x61, gate & !1);
    out8(0x43, 0xb0);
    out8(0x42, PIT_COUNT as u8);
    out8(0x42, (PIT_COUNT >> 8) as u8);
    let start = tsc();
    out8(0x61, gate);
    let mut reads = 0_u32;
    while in8(0x61) & 0x20 == 0 {
        reads += 1;
        if reads > 5_000_000 {
            return None;
        }
    }
    let ticks = tsc() - start;
    (reads > 10).then(|| ticks * PIT_HZ / u64::from(PIT_COUNT) / 1000)
}

/// A consistent reading of KVM's clock page.
pub struct ClockPage {
    stamp: u64,
    system_ns: u64,
    multiplier: u32,
    shift: i8,
}

impl ClockPage {
    /// Reads the page, when the hypervisor is KVM and filled it.
    pub fn read() -> Option<ClockPage> {
        let facts = boot::facts();
        if facts.hypervisor[1..] != KVM_NAME || facts.features[0] & 8 == 0 {
            return None;
        }
        let page = boot::clock_page();
        // SAFETY: a page of ours at a fixed address; the host changes it under an odd/even version.
        let word = |offset: usize| unsafe { page.add(offset).cast::<u32>().read_volatile() };
        loop {
            let version = word(0);
            let wide = |offset| u64::from(word(offset)) | u64::from(word(offset + 4)) << 32;
            let reading = ClockPage {
                stamp: wide(8),
                system_ns: wide(16),
                multiplier: word(24),
                shift: word(28) as u8 as i8,
            };
            if reading.multiplier == 0 {
                return None;
            }
            if version & 1 == 0 && version == word(0) {
                return Some(reading);
            }
        }
    }

    /// Nanoseconds of the host's clock now.
    pub fn now_ns(&self) -> u64 {
        let ticks = u128::from(tsc().saturating_sub(self.stamp));
        let scaled = if self.shift < 0 { ticks >> -self.shift } else { ticks << self.shift as u32 };
        self.system_ns + ((scaled * u128::from(self.multiplier)) >> 32) as u64
    }

    fn khz(&self) -> u64 {
        let khz = (1_000_000_u64 << 32) / u64::from(self.multiplier);
        if self.shift < 0 { khz << -self.shift } else { khz >> self.shift }
    }
}

/// Watches for pauses: the longest time between two looks, on both clocks, and backward steps.
pub struct Watch {
    clock: Clock,
    last: u64,
    longest: u64,
    last_page_ns: u64,
    longest_page_ns: u64,
    backwards: u64,
}

impl Watch {
    /// Begins to watch.
    pub fn new(clock: Clock) -> Watch {
        let last_page_ns = ClockPage::read().map_or(0, |page| page.now_ns());
        Watch { clock, last: tsc(), longest: 0, last_page_ns, longest_page_ns: 0, backwards: 0 }
    }

    /// Looks at the clocks once; returns the counter.
    pub fn look(&mut self) -> u64 {
        let now = tsc();
        if now < self.last {
            self.backwards += 1;
        }
        let gap = now.saturating_sub(self.last);
        // The page is slower to read, and only a pause can put the two clocks apart.
        if gap > self.longest || gap > self.clock.khz / 20 {
            self.look_at_page();
        }
        self.longest = self.longest.max(gap);
        self.last = now;
        now
    }

    /// Looks at the clock page: called at every heartbeat.
    pub fn look_at_page(&mut self) {
        let Some(page) = ClockPage::read() else { return };
        let now = page.now_ns();
        if now < self.last_page_ns {
            self.backwards += 1;
        }
        self.longest_page_ns = self.longest_page_ns.max(now.saturating_sub(self.last_page_ns));
        self.last_page_ns = now;
    }

    /// The longest pause by the counter, in nanoseconds, since the last call, and by the clock page.
    pub fn take_gap(&mut self) -> (u64, u64) {
        let gap = self.clock.ns(core::mem::take(&mut self.longest));
        (gap, core::mem::take(&mut self.longest_page_ns))
    }

    /// How often a clock ran backwards.
    pub fn backwards(&self) -> u64 {
        self.backwards
    }
}
