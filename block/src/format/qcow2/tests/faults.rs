//! Errors of the disk at the worst moments.

use super::super::create::CreateOptions;
use super::simulated::{DISK, Shape, Simulated};
use crate::buf::IoBuf;
use crate::driver::WriteFlags;
use crate::error::ErrorKind;
use crate::testing::{Effect, Fault, SimOp};

/// The first of 32 KiB that share an L2 table.
const FAR: u64 = 40 << 10;

/// A longer disk needs a longer L1 table elsewhere, to which the header changes over. When that fails at
/// any of its flushes nobody knows what header the file has.
#[test]
fn a_header_that_may_have_been_written_is_made_certain_before_the_next_flush_ends() {
    let create = CreateOptions { cluster_size: 512, ..CreateOptions::new(DISK) };
    let shape = Shape::new(create);
    let mut failed = 0;
    for skip in 0..10 {
        let image = Simulated::start(skip, &shape, None);
        image.executor.block_on(async {
            let ones = IoBuf::from_vec(&[1; 512]);
            image.node.write(0, ones.clone(), WriteFlags::NONE).await.unwrap();
            image.disk.inject(Fault::once(SimOp::Flush, Effect::Fail(ErrorKind::Io)).after(skip));
            failed += u32::from(image.node.resize(4 * DISK).await.is_err());
            image.disk.heal();
            image.node.write(FAR, ones, WriteFlags::NONE).await.unwrap();
            image.node.flush().await.unwrap();
        });
        image.crash();
        let again = Simulated::start(skip, &shape, Some(&image.media()));
        again.executor.block_on(async {
            for at in [0, FAR] {
                let buf = IoBuf::alloc(512);
                again.node.read(at, buf.clone()).await.unwrap();
                assert!(buf.to_vec() == [1; 512], "flush {skip} failed: {at:#x} is lost");
            }
        });
    }
    assert!(failed >= 4, "only {failed} flushes have failed");
}
