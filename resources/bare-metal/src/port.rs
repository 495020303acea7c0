//! Port I/O, open to ring 3 by the task's I/O bitmap.

use core::arch::asm;

/// Writes one byte to a port.
pub fn out8(port: u16, value: u8) {
    // SAFETY: a port write touches no memory of ours; devices here do no DMA that we did not ask for.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

/// Reads one byte from a port.
pub fn in8(port: u16) -> u8 {
    let value: u8;
    // SAFETY: a port read touches no memory of ours.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) }
    value
}

/// Writes two bytes to a port.
pub fn out16(port: u16, value: u16) {
    // SAFETY: as for `out8`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) }
}

/// Writes four bytes to a port.
pub fn out32(port: u16, value: u32) {
    // SAFETY: as for `out8`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) }
}

/// Reads four bytes from a port.
pub fn in32(port: u16) -> u32 {
    let value: u32;
    // SAFETY: as for `in8`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) }
    value
}
