//! Exceptions: there is no way on from one, so each is told with its address and ends the run.

use crate::{boot, console, run};

const GATE: u64 = 0x8e00 << 32 | 0x08 << 16;

/// Points every gate at its stub. Ring 0 loaded the (then empty) table.
pub fn init() {
    for vector in 0..32_u64 {
        let stub = boot::exception_stub(vector);
        let low = stub & 0xffff | (stub >> 16 & 0xffff) << 48 | GATE;
        // SAFETY: the table has 32 gates of two words, and only the processor reads it.
        unsafe { boot::idt().add(2 * vector as usize).write_volatile(low) };
        // SAFETY: the second word of the same gate.
        unsafe { boot::idt().add(2 * vector as usize + 1).write_volatile(stub >> 32) };
    }
}

/// Takes every gate away and then takes an exception.
pub fn triple_fault() {
    for word in 0..64 {
        // SAFETY: the table has 64 words, and only the processor reads it.
        unsafe { boot::idt().add(word).write_volatile(0) };
    }
    // SAFETY: nothing comes after this instruction.
    unsafe { core::arch::asm!("ud2") };
}

/// Where the stubs arrive, back in ring 3.
#[unsafe(no_mangle)]
extern "C" fn exception_main(vector: u64, error: u64, address: u64, fault: u64) -> ! {
    console::line(format_args!(
        "FAIL exception {vector} error={error:#x} rip={address:#x} cr2={fault:#x}"
    ));
    run::finish(run::End::default(), 1)
}
