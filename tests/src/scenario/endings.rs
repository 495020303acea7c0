//! Booting in every way, and ending in every way.

use anyhow::{Context, Result, ensure};

use super::kit::{Kit, LONG, ms_since};
use crate::console::number;
use crate::image;
use crate::vm::{Disk, Vm};

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

/// Power-off, reboot and panic each end with a status of their own and one plain line.
pub(super) fn endings(kit: &Kit) -> Result<()> {
    let mut seen = Vec::new();
    for task in ["poweroff", "reboot", "panic"] {
        kit.out.step(&format!("end by {task}"));
        let mut vm = Vm::start(&kit.monitor, &kit.spec(&kit.vmlinux, task, 2))?;
        vm.console.wait_word("UP", LONG).with_context(|| vm.complaints())?;
        let status = vm.wait(LONG)?;
        let code = status.code().with_context(|| format!("{task}: {status}"))?;
        kit.out.fact(&format!("status_{task}"), code);
        ensure!(!vm.complaints().contains("panicked"), "{}", vm.complaints());
        seen.push(code);
    }
    ensure!(seen[0] == 0, "power-off is no failure: {seen:?}");
    ensure!(seen[1] != seen[0], "a reboot must be told from a power-off: {seen:?}");
    Ok(())
}
