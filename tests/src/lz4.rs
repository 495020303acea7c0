//! Unpacks the kernel inside a bzImage when it is packed with LZ4 (the "legacy" frame).

use anyhow::{Context, Result, bail};

const LEGACY: u32 = 0x184c_2102;
const HEADER: &[u8] = b"HdrS";

/// The ELF kernel inside a bzImage; none when it is packed in another way.
///
/// # Errors
///
/// When the file is no bzImage, or damaged.
pub fn kernel_inside(image: &[u8]) -> Result<Option<Vec<u8>>> {
    let field = |at: usize| -> Result<u32> {
        let bytes = image.get(at..at + 4).context("too short for a bzImage")?;
        Ok(u32::from_le_bytes(bytes.try_into()?))
    };
    if image.get(0x202..0x206) != Some(HEADER) {
        bail!("not a bzImage");
    }
    let setup_sectors = u32::from(*image.get(0x1f1).context("too short")?).max(4);
    let start = (setup_sectors as usize + 1) * 512 + field(0x248)? as usize;
    let end = start + field(0x24c)? as usize;
    let payload = image.get(start..end).context("the payload lies outside of the file")?;
    let Some((magic, mut rest)) = payload.split_first_chunk() else { return Ok(None) };
    if u32::from_le_bytes(*magic) != LEGACY {
        return Ok(None);
    }
    let mut out = Vec::new();
    // Behind the last block stand the four bytes of the unpacked size.
    while let Some((size, after)) = rest.split_first_chunk() {
        let Some((block, after)) = after.split_at_checked(u32::from_le_bytes(*size) as usize)
        else {
            break;
        };
        block_into(block, &mut out)?;
        rest = after;
    }
    Ok(Some(out))
}

fn block_into(mut block: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let start = out.len();
    while let Some((&token, rest)) = block.split_first() {
        block = rest;
        let literals = length(usize::from(token >> 4), &mut block)?;
        let (text, rest) = block.split_at_checked(literals).context("cut off")?;
        out.extend_from_slice(text);
        block = rest;
        let Some((distance, rest)) = block.split_first_chunk() else { return Ok(()) };
        block = rest;
        let distance = usize::from(u16::from_le_bytes(*distance));
        let len = length(usize::from(token & 15), &mut block)? + 4;
        let from = out.len().checked_sub(distance).filter(|from| *from >= start && distance > 0);
        let from = from.context("a match reaches outside of the block")?;
        for index in from..from + len {
            out.push(out[index]);
        }
    }
    Ok(())
}

fn length(nibble: usize, block: &mut &[u8]) -> Result<usize> {
    let mut sum = nibble;
    let mut last = if nibble == 15 { 255 } else { 0 };
    while last == 255 {
        let (&byte, rest) = block.split_first().context("cut off")?;
        *block = rest;
        last = byte;
        sum += usize::from(byte);
    }
    Ok(sum)
}
