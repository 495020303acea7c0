//! A machine with real vCPUs: skipped where there is no KVM.

use std::io::{self, Write};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use ferry_block::{Clock, Executor};

use super::*;
use crate::config::{OnReboot, SerialConfig};
use crate::testing::{PvhKernel, has_kvm};

const PATIENCE: Duration = Duration::from_secs(20);

/// A sink that a test can read.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl SerialSink for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }
}

impl Captured {
    fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.0)).into_owned()
    }

    fn wait_for(&self, enough: impl Fn(&str) -> bool) -> String {
        let step = Duration::from_millis(2);
        for _ in 0..PATIENCE.as_millis() / step.as_millis() {
            if enough(&self.text()) {
                return self.text();
            }
            std::thread::sleep(step);
        }
        panic!("the guest only printed '{}'", self.text());
    }
}

struct Rig {
    executor: Executor,
    machine: Machine,
    events: Receiver<MachineEvent>,
    output: Captured,
    _kernel: tempfile::NamedTempFile,
}

impl Rig {
    fn new(kernel: PvhKernel, cpus: u32) -> Rig {
        Rig::build(kernel, cpus, false)
    }

    fn build(kernel: PvhKernel, cpus: u32, incoming: bool) -> Rig {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&kernel.elf(true)).unwrap();
        let config = Config {
            name: None,
            kernel: Some(file.path().to_owned()),
            initrd: None,
            cmdline: "hello".to_owned(),
            memory: 16 << 20,
            cpus,
            disks: Vec::new(),
            serial: SerialConfig::None,
            qmp: None,
            incoming: incoming.then(|| "defer".to_owned()),
            paused: false,
            on_reboot: OnReboot::Exit,
        };
        let (sender, events) = channel();
        let sender = Mutex::new(sender);
        let output = Captured::default();
        let parts = MachineParts {
            sink: Box::new(output.clone()),
            events: Arc::new(move |event| lock(&sender).send(event).unwrap_or(())),
            clock: Arc::new(|| Duration::ZERO),
        };
        let executor = Executor::new(Clock::real()).unwrap();
        let machine = executor.block_on(Machine::new(&config, parts)).unwrap();
        Rig { executor, machine, events, output, _kernel: file }
    }

    fn event(&self) -> MachineEvent {
        self.events.recv_timeout(PATIENCE).expect("the guest does something")
    }

    fn save(&self) -> Sections {
        let mut sections = Sections::new();
        self.machine.save_state(&mut sections).unwrap();
        sections
    }
}

#[test]
fn a_guest_prints_and_powers_off() {
    if !has_kvm() {
        return;
    }
    let rig = Rig::new(PvhKernel::new().print("ok").power_off(), 2);
    assert_eq!(rig.machine.run_state(), RunState::Prelaunch);
    rig.machine.resume().unwrap();
    assert!(matches!(rig.event(), MachineEvent::PowerOff));
    rig.machine.pause(RunState::Shutdown).unwrap();
    assert_eq!(rig.output.text(), "ok");
    assert!(rig.machine.resume().is_err(), "a guest that is off does not go on");
}

#[test]
fn the_vcpu_that_asks_for_the_end_does_not_run_past_it() {
    if !has_kvm() {
        return;
    }
    // Port 0x505 reports a panic, 0x64 a reset; what is printed after either would be a mistake.
    for (port, value) in [(0x505, 1), (0x64, 0xfe), (0xcf9, 0x0e)] {
        let rig = Rig::new(PvhKernel::new().print("a").out8(port, value).print("b").stay(), 1);
        rig.machine.resume().unwrap();
        let event = rig.event();
        let expected = if port == 0x505 {
            matches!(event, MachineEvent::Panicked)
        } else {
            matches!(event, MachineEvent::Reset)
        };
        assert!(expected, "port {port:#x}: {event:?}");
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(rig.output.text(), "a", "port {port:#x}");
    }
}

#[test]
fn a_triple_fault_is_told_apart() {
    if !has_kvm() {
        return;
    }
    // Without an interrupt table an undefined instruction cannot be handled, nor can that.
    let rig = Rig::new(PvhKernel::new().print("x").raw(&[0x0f, 0x0b]), 1);
    rig.machine.resume().unwrap();
    assert!(matches!(rig.event(), MachineEvent::TripleFault(0)));
}

#[test]
fn a_repeated_port_instruction_writes_one_port() {
    if !has_kvm() {
        return;
    }
    // mov esi, 0x100000; mov ecx, 4; mov dx, 0x3f8; cld; rep outsb: prints its own first bytes.
    let code = [0xbe, 0, 0, 0x10, 0, 0xb9, 4, 0, 0, 0, 0x66, 0xba, 0xf8, 0x03, 0xfc, 0xf3, 0x6e];
    let rig = Rig::new(PvhKernel::new().raw(&code).power_off(), 1);
    rig.machine.resume().unwrap();
    assert!(matches!(rig.event(), MachineEvent::PowerOff));
    assert_eq!(*lock(&rig.output.0), [0xbe, 0, 0, 0x10]);
}

/// As firmware leaves the PICs: the interrupts of PCI and of ACPI are level-triggered.
#[test]
fn shared_interrupts_are_level_triggered_at_the_pics() {
    if !has_kvm() {
        return;
    }
    // mov dx, port; in al, dx; mov dx, 0x3f8; out dx, al
    let print_port = |kernel: PvhKernel, low: u8| {
        kernel.raw(&[0x66, 0xba, low, 0x04, 0xec, 0x66, 0xba, 0xf8, 0x03, 0xee])
    };
    let kernel = [0xd0, 0xd1].into_iter().fold(PvhKernel::new(), print_port);
    let rig = Rig::new(kernel.power_off(), 1);
    rig.machine.resume().unwrap();
    assert!(matches!(rig.event(), MachineEvent::PowerOff));
    assert_eq!(*lock(&rig.output.0), [1 << 5, 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4]);
}

#[test]
fn a_paused_guest_stands_still_and_goes_on() {
    if !has_kvm() {
        return;
    }
    let rig = Rig::new(PvhKernel::new().print_digits_for_ever(), 2);
    rig.machine.resume().unwrap();
    for round in 1..=20 {
        rig.output.wait_for(|text| text.len() > round * 3);
        rig.machine.pause(RunState::Paused).unwrap();
        let before = rig.output.text();
        std::thread::sleep(Duration::from_millis(3));
        assert_eq!(rig.output.text(), before, "nothing is printed while it is paused");
        rig.machine.resume().unwrap();
    }
    rig.machine.pause(RunState::Paused).unwrap();
    check_digits(&rig.output.text(), b'0');
}

/// Every digit is the one after the last: nothing was printed twice or lost.
fn check_digits(text: &str, first: u8) {
    let mut expected = first;
    for (index, digit) in text.bytes().enumerate() {
        assert_eq!(digit, expected, "at {index} of '{text}'");
        expected = if digit == b'9' { b'0' } else { digit + 1 };
    }
}

#[test]
fn a_reset_starts_the_kernel_again_from_clean_memory() {
    if !has_kvm() {
        return;
    }
    // Counts its starts in memory that the kernel file does not cover, prints the count, then counts on.
    let kernel = PvhKernel::new().count_starts().print_digits_for_ever();
    let rig = Rig::new(kernel, 2);
    rig.machine.resume().unwrap();
    rig.output.wait_for(|text| text.len() > 5);
    rig.executor.block_on(rig.machine.reset()).unwrap();
    assert_eq!(rig.machine.run_state(), RunState::Running);
    let text = rig.output.wait_for(|text| text.matches('A').count() == 2);
    let (first, second) = text[1..].split_once('A').expect("two starts");
    check_digits(first, b'0');
    rig.machine.pause(RunState::Paused).unwrap();
    check_digits(second, b'0');
    assert!(!text.contains('B'), "memory is clean after a reset: '{text}'");
    rig.executor.block_on(rig.machine.reset()).unwrap();
    assert_eq!(rig.machine.run_state(), RunState::Prelaunch);
}

#[test]
fn saved_state_goes_on_in_another_machine() {
    if !has_kvm() {
        return;
    }
    let kernel = PvhKernel::new().print_digits_for_ever();
    let source = Rig::new(kernel.clone(), 2);
    source.machine.resume().unwrap();
    source.output.wait_for(|text| text.len() > 5);
    source.machine.pause(RunState::Paused).unwrap();
    let bytes = source.save().encode().unwrap();

    let destination = Rig::build(kernel, 2, true);
    assert_eq!(destination.machine.run_state(), RunState::InMigrate);
    copy_memory(&source.machine, &destination.machine);
    let mut sections = Sections::decode(&bytes).unwrap();
    destination.machine.restore_state(&mut sections).unwrap();
    sections.finish().expect("everything saved is wanted");
    destination.machine.resume().unwrap();
    let text = destination.output.wait_for(|text| text.len() > 5);
    let next = source.output.text().bytes().last().map_or(b'0', |last| last + 1);
    check_digits(&text, if next > b'9' { b'0' } else { next });
}

#[test]
fn a_port_read_that_a_pause_interrupts_is_finished_before_the_guest_moves() {
    if !has_kvm() {
        return;
    }
    // Reading the port takes the byte: a read that is begun here and repeated there would lose it.
    let input: Vec<u8> = (b'a'..=b'z').cycle().take(8000).collect();
    let kernel = PvhKernel::new().echo();
    let mut rig = Rig::new(kernel.clone(), 1);
    assert_eq!(lock(&rig.machine.shared_serial()).push_input(&input), input.len());
    let mut echoed = Vec::new();
    for hop in 0..12 {
        rig.machine.resume().unwrap();
        rig.output.wait_for(|text| text.len() > 20 + hop);
        rig.machine.pause(RunState::Paused).unwrap();
        let next = Rig::build(kernel.clone(), 1, true);
        copy_memory(&rig.machine, &next.machine);
        next.machine.restore_state(&mut rig.save()).unwrap();
        echoed.extend_from_slice(&lock(&rig.output.0));
        rig = next;
    }
    assert!(echoed.len() > 12 * 20);
    assert_eq!(String::from_utf8_lossy(&echoed), String::from_utf8_lossy(&input[..echoed.len()]));
}

#[test]
fn what_was_restored_saves_as_the_same() {
    if !has_kvm() {
        return;
    }
    let source = Rig::new(PvhKernel::new().stay(), 2);
    source.machine.resume().unwrap();
    std::thread::sleep(Duration::from_millis(10));
    source.machine.pause(RunState::Paused).unwrap();
    let mut saved = source.save();
    let destination = Rig::build(PvhKernel::new(), 2, true);
    let copy = saved.encode().unwrap();
    destination.machine.restore_state(&mut Sections::decode(&copy).unwrap()).unwrap();
    let mut again = destination.save();

    for index in ["0", "1"] {
        let first: VcpuStateV1 = saved.load(index).unwrap();
        let second: VcpuStateV1 = again.load(index).unwrap();
        assert_eq!(first.regs, second.regs);
        assert_eq!(first.sregs, second.sregs);
        assert_eq!(first.xsave, second.xsave);
        assert_eq!(first.mp_state, second.mp_state);
        assert_eq!(first.cpuid, second.cpuid);
        let still = |msrs: &[(u32, u64)]| -> Vec<_> {
            // The counter and what KVM derives from it run on.
            msrs.iter().copied().filter(|(index, _)| !matches!(index, 0x10 | 0x4000_0020)).collect()
        };
        assert_eq!(still(&first.msrs), still(&second.msrs));
    }
    let first: ClockStateV1 = saved.load(INSTANCE).unwrap();
    assert_eq!(first, again.load(INSTANCE).unwrap(), "the clock of a stopped guest stands still");
}

#[test]
fn state_that_does_not_fit_is_refused() {
    if !has_kvm() {
        return;
    }
    let saved = Rig::new(PvhKernel::new().stay(), 2).save().encode().unwrap();
    let fewer = Rig::build(PvhKernel::new(), 1, true);
    let mut sections = Sections::decode(&saved).unwrap();
    fewer.machine.restore_state(&mut sections).unwrap();
    assert!(sections.finish().is_err(), "the second vCPU is left over");
    let more = Rig::build(PvhKernel::new(), 3, true);
    let refused = more.machine.restore_state(&mut Sections::decode(&saved).unwrap());
    assert!(refused.is_err(), "the third vCPU is missing");
}

fn copy_memory(from: &Machine, to: &Machine) {
    use vm_memory::{Bytes, GuestAddress};
    let mut memory = vec![0; usize::try_from(from.ram().bytes()).unwrap()];
    from.ram().guest().read_slice(&mut memory, GuestAddress(0)).unwrap();
    to.ram().guest().write_slice(&memory, GuestAddress(0)).unwrap();
}
