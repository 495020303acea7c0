//! Every operation of the disks fails once, in images of every kind. What has failed may have been done or
//! not; everything else is as it should be, and once the disk works again the image can be closed
//! without an error in it.

use super::super::create::CreateOptions;
use super::super::snapshot::Moment;
use super::history::History;
use super::simulated::{DISK, SECTOR, Shape, Simulated};
use crate::buf::IoBuf;
use crate::driver::WriteFlags;
use crate::error::ErrorKind;
use crate::testing::{Effect, Fault, Rng, SimOp};

/// Requests in one life.
const REQUESTS: u64 = 40;

/// A write, compressed or not, zeroes or a discard.
async fn request(image: &Simulated, history: &History, rng: &mut Rng, number: u64) {
    let start = rng.below(DISK / SECTOR / 8);
    let longest = if rng.one_in(3) { 160 } else { 12 };
    let count = 1 + rng.below(longest);
    let sectors = start..(start + count).min(DISK / SECTOR);
    let bytes = sectors.start * SECTOR..sectors.end * SECTOR;
    let node = &image.node;
    let kind = rng.below(8);
    let value = if kind < 5 { number << 8 | 0xaa } else { 0 };
    history.begin(sectors.clone(), value);
    let result = match kind {
        0..=4 => {
            let len = usize::try_from(bytes.end - bytes.start).unwrap();
            let from = IoBuf::from_vec(&value.to_le_bytes().repeat(len / 8));
            node.write(bytes.start, from, WriteFlags { compressed: kind == 4, ..WriteFlags::NONE })
                .await
        }
        5 => node.write_zeroes(bytes, WriteFlags::NONE).await,
        6 => node.write_zeroes(bytes, WriteFlags::UNMAP).await,
        _ => {
            drop(node.discard(bytes).await);
            history.discarded(sectors);
            return;
        }
    };
    match result {
        Ok(()) => history.done(sectors),
        Err(_) => history.failed(sectors),
    }
}

/// One life in which one operation of the disk fails; whether it came to that.
fn live(shape: &Shape, seed: u64, op: SimOp, skip: u64) -> bool {
    let kind = if skip.is_multiple_of(2) { ErrorKind::Io } else { ErrorKind::NoSpace };
    let image = Simulated::start(seed, shape, None);
    let history = History::new(shape);
    let mut rng = Rng::new(seed);
    let mut struck = false;
    image.executor.block_on(async {
        image.disk.inject(Fault::once(op, Effect::Fail(kind)).after(skip));
        for number in 1..=REQUESTS {
            request(&image, &history, &mut rng, number).await;
            match number {
                10 | 30 => {
                    let (node, name) = (&image.node, number.to_string());
                    let taken =
                        image.graph.take_internal_snapshot("disk", node, &name, Moment::default());
                    drop(taken.await);
                }
                20 => drop(image.node.resize(2 * DISK).await),
                25 => drop(image.node.resize(DISK).await),
                35 => drop(delete_snapshot(&image).await),
                _ if number % 7 == 0 => drop(image.node.flush().await),
                _ => {}
            }
        }
        struck = image.disk.faults_left() == 0;
        image.disk.heal();
        image.node.flush().await.unwrap();
        let buf = IoBuf::alloc(usize::try_from(DISK).unwrap());
        image.node.read(0, buf.clone()).await.unwrap();
        history.check(&buf.to_vec(), &format!("{op:?} {skip} failed"));
        image.graph.inactivate_all().await.unwrap();
    });
    let again = Simulated::start(seed, shape, Some(&image.media()));
    again.executor.block_on(async {
        let buf = IoBuf::alloc(usize::try_from(DISK).unwrap());
        again.node.read(0, buf.clone()).await.unwrap();
        history.check(&buf.to_vec(), &format!("{op:?} {skip} failed, again"));
    });
    struck
}

async fn delete_snapshot(image: &Simulated) -> crate::error::Result<()> {
    image.graph.delete_internal_snapshot("disk", &image.node, None, Some("10")).await.map(drop)
}

#[test]
fn an_error_of_any_operation_costs_no_more_than_the_request_that_it_strikes() {
    let base = CreateOptions { cluster_size: 4096, ..CreateOptions::new(DISK) };
    let shapes = [
        CreateOptions { cluster_size: 512, refcount_bits: 64, ..base.clone() },
        CreateOptions { cluster_size: 16384, extended_l2: true, ..base.clone() },
        CreateOptions { refcount_bits: 1, ..base.clone() },
        CreateOptions { cluster_size: 2048, data_file: Some("data".into()), ..base.clone() },
        CreateOptions { lazy_refcounts: true, ..base },
    ];
    // `FERRY_SWEEP=1` lets each of them fail.
    let step: u64 =
        std::env::var("FERRY_SWEEP").ok().and_then(|text| text.parse().ok()).unwrap_or(9);
    for (number, create) in shapes.into_iter().enumerate() {
        let cache = (number % 2 == 0).then_some(0);
        let shape = Shape { cache, ..Shape::new(create) };
        for op in [SimOp::Read, SimOp::Write, SimOp::Zeroes, SimOp::Flush] {
            let mut skip = number as u64 % step;
            while live(&shape, skip / 16, op, skip) {
                skip += step;
            }
        }
    }
}
