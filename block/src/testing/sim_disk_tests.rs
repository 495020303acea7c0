use std::time::Duration;

use super::*;
use crate::clock::Clock;
use crate::testing::Effect;

fn with_disk<T>(len: u64, test: impl AsyncFnOnce(SimDisk) -> T) -> T {
    let executor = Executor::new(Clock::simulated()).unwrap();
    let disk = SimDisk::new(&executor, SimOptions::new(len, 7));
    executor.block_on(test(disk))
}

async fn write(disk: &SimDisk, at: u64, byte: u8, flags: WriteFlags) -> Result<()> {
    BlockDriver::write(disk, at, IoBuf::from_vec(&[byte; 4096]), flags).await
}

#[test]
fn only_what_was_flushed_survives_a_crash_for_certain() {
    with_disk(64 << 10, async |disk| {
        write(&disk, 0, 1, WriteFlags::NONE).await.unwrap();
        BlockDriver::flush(&disk).await.unwrap();
        write(&disk, 4096, 2, WriteFlags::FUA).await.unwrap();
        write(&disk, 8192, 3, WriteFlags::NONE).await.unwrap();
        disk.crash();
        let bytes = disk.contents();
        assert!(bytes[..4096].iter().all(|byte| *byte == 1));
        assert!(bytes[4096..8192].iter().all(|byte| *byte == 2));
        let sectors: Vec<u8> = bytes[8192..12_288].chunks(512).map(|sector| sector[0]).collect();
        assert!(sectors.contains(&0) && sectors.contains(&3), "torn by sectors: {sectors:?}");
        assert!(
            bytes[8192..12_288].chunks(512).all(|sector| sector.iter().all(|b| *b == sector[0]))
        );
    });
}

#[test]
fn what_is_under_way_at_a_crash_fails() {
    with_disk(64 << 10, async |disk| {
        let executor = disk.0.executor.clone();
        let other = disk.clone();
        disk.inject(Fault::once(SimOp::Write, Effect::Hang));
        let writing = executor.spawn(async move { write(&other, 0, 1, WriteFlags::NONE).await });
        executor.sleep(Duration::from_secs(1)).await;
        assert_eq!(disk.under_way(), 1);
        disk.crash();
        assert_eq!(writing.await.unwrap_err().kind(), ErrorKind::Disconnected);
        assert_eq!(disk.under_way(), 0);
    });
}

#[test]
fn faults_strike_by_operation_range_and_count() {
    with_disk(64 << 10, async |disk| {
        let fail = Effect::Fail(ErrorKind::NoSpace);
        disk.inject(Fault::every(SimOp::Write, fail).within(4096..8192).after(1).times(2));
        let mut outcomes = Vec::new();
        for at in [0, 4096, 4096, 0, 4096, 4096] {
            outcomes.push(write(&disk, at, 1, WriteFlags::NONE).await.is_ok());
        }
        assert_eq!(outcomes, [true, true, false, true, false, true]);
        BlockDriver::flush(&disk).await.unwrap();
        disk.inject(Fault::every(SimOp::Flush, fail));
        assert_eq!(BlockDriver::flush(&disk).await.unwrap_err().kind(), ErrorKind::NoSpace);
        disk.heal();
        BlockDriver::flush(&disk).await.unwrap();
    });
}

#[test]
fn the_same_seed_does_the_same() {
    let run = || {
        with_disk(64 << 10, async |disk| {
            for at in 0..8 {
                write(&disk, at * 4096, 9, WriteFlags::NONE).await.unwrap();
            }
            disk.crash();
            (disk.contents(), disk.0.executor.clock().now())
        })
    };
    assert!(run() == run());
}
