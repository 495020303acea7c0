//! What the first bytes of an image look like.
//!
//! Only of an image that nobody writes may its content decide what it is taken for. Whoever writes
//! to an image that was taken for raw must not make it look like something else: the `raw` driver
//! sees to that.

/// Bytes that are looked at.
pub const PROBED_BYTES: usize = 512;

/// The format, by QEMU's name for it, whose magic number stands at the start of an image. `None` is
/// what raw images show.
pub fn recognise(head: &[u8]) -> Option<&'static str> {
    const MAGICS: [(&[u8], &str); 10] = [
        (b"QFI\xfb\x00\x00\x00\x01", "qcow"),
        (b"QFI\xfb", "qcow2"),
        (b"QED\0", "qed"),
        (b"KDMV", "vmdk"),
        (b"COWD", "vmdk"),
        (b"# Disk DescriptorFile", "vmdk"),
        (b"vhdxfile", "vhdx"),
        (b"conectix", "vpc"),
        (b"LUKS\xba\xbe", "luks"),
        (b"WithoutFreeSpace", "parallels"),
    ];
    MAGICS.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, format)| *format)
}
