//! One run of the guest, from its first instruction in ring 3 to its last word.

use crate::args::Args;
use crate::clock::{Clock, Watch, tsc};
use crate::disk::Disk;
use crate::memory::Memory;
use crate::port::{out8, out16};
use crate::workload::bench::Phase;
use crate::workload::dirty::Dirtier;
use crate::workload::verify::Verifier;
use crate::{boot, console, trap};

/// How the guest ends, after its last line.
#[derive(Clone, Copy, Default)]
pub enum End {
    /// A reset by the keyboard controller.
    #[default]
    Reset,
    /// A 16-bit write to a port, for ACPI power-off.
    Port(u16, u16),
    /// An exception that nobody can take: a triple fault.
    Fault,
    /// It stays, doing nothing.
    Stay,
}

impl End {
    fn parse(args: &Args) -> End {
        let port = |text: &str| {
            let (at, value) = text.strip_prefix("port:")?.split_once(':')?;
            let number = |text| crate::args::parse_number(text).map(|number| number as u16);
            Some(End::Port(number(at)?, number(value)?))
        };
        match args.text("end") {
            Some("stay") => End::Stay,
            Some("fault") => End::Fault,
            Some(text) => port(text).unwrap_or_default(),
            None => End::Reset,
        }
    }
}

/// Says how it went and ends.
pub fn finish(end: End, status: u32) -> ! {
    console::line(format_args!("DONE status={status}"));
    match end {
        End::Reset => out8(0x64, 0xfe),
        End::Port(at, value) => out16(at, value),
        End::Fault => trap::triple_fault(),
        End::Stay => {}
    }
    loop {
        core::hint::spin_loop();
    }
}

/// Where ring 3 begins.
#[unsafe(no_mangle)]
extern "C" fn ring3_main() -> ! {
    let arrived = tsc();
    console::init();
    console::line(format_args!("RING3 entry_tsc={} tsc={arrived}", boot::facts().entry_tsc));
    trap::init();
    let args = boot::command_line();
    let end = End::parse(&args);
    let clock = Clock::calibrate();
    console::line(format_args!("TSC khz={} source={}", clock.khz, clock.source));
    let mut memory = Memory::new(&args);
    let disk = match args.number("disk", 0) {
        _ if args.text("disk") == Some("none") => None,
        _ => match Disk::open(&args, &mut memory) {
            Ok(disk) => Some(disk),
            Err(why) => {
                console::line(format_args!("FAIL disk: {why}"));
                finish(end, 1);
            }
        },
    };
    if let Some(disk) = &disk {
        let (queues, size, _) = disk.queue_facts();
        console::line(format_args!(
            "DISKINFO sectors={} features={:#x} queues={queues} size={size} depth={} read_only={}",
            disk.sectors,
            disk.features(),
            disk.depth,
            u8::from(disk.read_only())
        ));
    }
    let good = match (args.text("bench"), disk) {
        (Some(list), Some(disk)) => measure(&args, list, disk, &clock),
        (_, disk) => live(&args, disk, memory, clock),
    };
    finish(end, u32::from(!good))
}

/// Runs the measurements of `bench=` one after the other.
fn measure(args: &Args, list: &str, mut disk: Disk, clock: &Clock) -> bool {
    let ns = args.number("milliseconds", args.number("seconds", 1) * 1000) * 1_000_000;
    let span = args.number("disk_mib", u64::MAX >> 20) << 20;
    console::line(format_args!("READY tsc={}", tsc()));
    list.split(',').all(|text| match Phase::parse(text) {
        Some(phase) => phase.run(&mut disk, clock, ns, span),
        None => {
            console::line(format_args!("FAIL bench: cannot read {text}"));
            false
        }
    })
}

/// Everything that goes on at the same time while the host mirrors and moves the guest.
struct Live {
    clock: Clock,
    watch: Watch,
    verifier: Option<Verifier>,
    dirtier: Option<Dirtier>,
    started: u64,
    pings: u64,
}

/// Works until `seconds=` are over, or until the host sends `q`; then checks everything.
fn live(args: &Args, disk: Option<Disk>, mut memory: Memory, clock: Clock) -> bool {
    let verifier = disk
        .filter(|_| args.has("workload", "verify"))
        .map(|disk| Verifier::new(args, disk, &mut memory, clock.khz));
    let dirtier = args.has("workload", "dirty").then(|| Dirtier::new(args, memory));
    let pages = dirtier.as_ref().map_or(0, Dirtier::pages);
    console::line(format_args!("READY tsc={} pages={pages}", tsc()));
    let watch = Watch::new(clock);
    let mut live = Live { clock, watch, verifier, dirtier, started: tsc(), pings: 0 };
    live.run(args);
    live.check()
}

impl Live {
    fn run(&mut self, args: &Args) {
        let seconds = args.number("seconds", 0);
        let deadline = match seconds {
            0 => u64::MAX,
            _ => self.started.saturating_add(self.clock.ticks_of_us(seconds * 1_000_000)),
        };
        let dots = self.interval(args.number("hb_us", 1000));
        let reports = self.interval(args.number("report_ms", 0) * 1000);
        let listens = self.interval(args.number("listen_us", 5000));
        let (mut dot, mut report, mut listen) = (0, self.started.saturating_add(reports), 0);
        loop {
            let now = self.watch.look();
            if let Some(verifier) = &mut self.verifier {
                verifier.step(now);
            }
            if let Some(dirtier) = &mut self.dirtier {
                dirtier.step(&self.clock);
            }
            if now >= dot {
                dot = now.saturating_add(dots);
                if dots != u64::MAX {
                    console::dot();
                    self.watch.look_at_page();
                }
            }
            if now >= report {
                report = now.saturating_add(reports);
                self.report();
            }
            if now >= listen {
                listen = now.saturating_add(listens);
                if self.listen() {
                    return;
                }
            }
            if now >= deadline {
                return;
            }
        }
    }

    fn interval(&self, us: u64) -> u64 {
        if us == 0 { u64::MAX } else { self.clock.ticks_of_us(us) }
    }

    /// Obeys a command letter; true when it is time to end.
    fn listen(&mut self) -> bool {
        match console::command() {
            Some(b'q') => return true,
            Some(b's') => self.report(),
            Some(b'p') => {
                self.pings += 1;
                console::line(format_args!("PONG {}", self.pings));
            }
            Some(b'c') => {
                if let Some(verifier) = &self.verifier {
                    let (sectors, (generation, raised)) =
                        (verifier.disk.sectors_now(), verifier.disk.changes());
                    console::line(format_args!(
                        "CAPACITY sectors={sectors} generation={generation} raised={}",
                        u8::from(raised)
                    ));
                }
            }
            _ => {}
        }
        false
    }

    fn report(&mut self) {
        let ms = self.clock.ns(tsc() - self.started) / 1_000_000;
        let (gap, page_gap) = self.watch.take_gap();
        let (ops, writes, longest) = self.verifier.as_mut().map_or((0, 0, 0), |verifier| {
            (verifier.done, verifier.writes, core::mem::take(&mut verifier.longest))
        });
        let written = self.dirtier.as_ref().map_or(0, |dirtier| dirtier.written);
        console::line(format_args!(
            "STAT ms={ms} ops={ops} writes={writes} lat_max_ns={} dirtied={written} gap_ns={gap} \
             clock_gap_ns={page_gap} backwards={}",
            self.clock.ns(longest),
            self.watch.backwards()
        ));
    }

    /// The last look at everything.
    fn check(&mut self) -> bool {
        let (gap, page_gap) = self.watch.take_gap();
        console::line(format_args!("GAP max_ns={gap} clock_max_ns={page_gap}"));
        let mut good = true;
        if self.watch.backwards() != 0 {
            console::line(format_args!("FAIL clock backwards={}", self.watch.backwards()));
            good = false;
        }
        if let Some(verifier) = &mut self.verifier {
            if verifier.broken() {
                console::line(format_args!("FAIL disk: the device needs a reset"));
                return false;
            }
            good &= verifier.check_all();
        }
        if let Some(dirtier) = &mut self.dirtier {
            good &= dirtier.check_all();
            console::line(format_args!(
                "VERIFY {} pages={} written={} failures={}",
                if dirtier.failures == 0 { "ok" } else { "bad" },
                dirtier.pages(),
                dirtier.written,
                dirtier.failures
            ));
        }
        good
    }
}
