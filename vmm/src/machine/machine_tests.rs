//! A machine with real vCPUs: skipped where there is no KVM.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::*;
use crate::config::{OnReboot, SerialConfig};
use crate::testing::{PvhKernel, has_kvm};

/// A sink that a test can read.
#[derive(Clone, Default)]
pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

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
}

struct Rig {
    machine: Machine,
    events: Receiver<MachineEvent>,
    output: Captured,
    _kernel: tempfile::NamedTempFile,
}

impl Rig {
    fn new(kernel: PvhKernel, cpus: u32, incoming: bool) -> Rig {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&kernel.into_elf()).unwrap();
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
        let machine = Machine::new(&config, parts).unwrap();
        Rig { machine, events, output, _kernel: file }
    }

    fn event(&self) -> MachineEvent {
        self.events.recv_timeout(Duration::from_secs(20)).expect("the guest does something")
    }
}

#[test]
fn a_guest_prints_and_powers_off() {
    if !has_kvm() {
        return;
    }
    let rig = Rig::new(PvhKernel::new().print("ok").power_off(), 2, false);
    assert_eq!(rig.machine.run_state(), RunState::Prelaunch);
    rig.machine.resume().unwrap();
    assert_eq!(rig.event(), MachineEvent::PowerOff);
    rig.machine.pause(RunState::Shutdown).unwrap();
    assert_eq!(rig.output.text(), "ok");
    assert!(rig.machine.resume().is_err(), "a guest that is off does not go on");
}
