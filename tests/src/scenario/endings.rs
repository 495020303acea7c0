//! Booting in every way, and ending in every way.

use anyhow::{Context, Result, ensure};

use super::kit::{Kit, LONG, ms_since};
use crate::console::number;
use crate::image;
use crate::vm::{Disk, Vm};

/// What the guest does, ferry's exit status, and a word of the line that it says.
const ENDINGS: [(&str, i32, &str); 3] =
    [("poweroff", 0, ""), ("reboot", 3, "reboot"), ("panic", 4, "panic")];

/// Boots as bzImage and as ELF, with one and with several processors, and looks at what the guest sees.
pub(super) fn boots(kit: &Kit) -> Result<()> {
    let disk = kit.path("data.raw");
    image::sparse(&disk, 16 << 20)?;
    for (name, kernel, cpus) in [("bzImage", &kit.bzimage, 1), ("ELF", &kit.vmlinux, 2)] {
        kit.out.step(&format!("boot {name} on {cpus} processors"));
        let mut data = Disk::new("disk0", &disk);
        data.read_only = cpus == 1;
        data.extra = ",serial=ferry-0001".into();
        let mut vm = Vm::start(&kit.monitor, &kit.spec(kernel, "report", cpus).disk(data))?;
        let up = vm.console.wait_word("UP", LONG).with_context(|| vm.complaints())?;
        kit.out.fact(&format!("boot_{name}_ms"), ms_since(vm.started));
        ensure!(number(&up.text, "cpus")? == u64::from(cpus), "{}", up.text);
        ensure!(up.text.contains("clock=kvm-clock"), "{}", up.text);
        let block = vm.console.wait_word("BLOCK", LONG)?.text;
        ensure!(number(&block, "sectors")? == (16 << 20) / 512, "{block}");
        ensure!(number(&block, "ro")? == u64::from(cpus == 1), "{block}");
        ensure!(block.contains("serial=ferry-0001"), "{block}");
        let interrupts = vm.console.wait_word("INTERRUPTS", LONG)?.text;
        ensure!(number(&interrupts, "msi")? > 0, "{interrupts}");
        let status = vm.wait(LONG)?;
        ensure!(status.code() == Some(0), "power-off ended with {status}: {}", vm.complaints());
    }
    Ok(())
}

/// Each way to end has an exit status of its own and says one plain line.
pub(super) fn endings(kit: &Kit) -> Result<()> {
    for (task, status, word) in ENDINGS {
        kit.out.step(&format!("end by {task}"));
        let mut vm = Vm::start(&kit.monitor, &kit.spec(&kit.vmlinux, task, 2))?;
        vm.console.wait_word("UP", LONG).with_context(|| vm.complaints())?;
        let ended = vm.wait(LONG)?;
        let said = vm.complaints();
        ensure!(ended.code() == Some(status), "{task} ended with {ended}, not {status}: {said}");
        let lines = said.lines().count();
        ensure!(lines <= 1 && said.contains(word), "{task}: not one plain line: {said}");
    }
    Ok(())
}
