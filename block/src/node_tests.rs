#![expect(
    clippy::cast_possible_truncation,
    reason = "patterns of bytes, and offsets of small disks"
)]

use std::cell::Cell;

use super::*;
use crate::bitmap::DirtyBitmap;
use crate::clock::Clock;
use crate::driver::{BlockDriver, ExtentKind};
use crate::graph::BlockGraph;

/// A disk in memory with limits of any kind, which checks that the node keeps to them and takes a
/// while, so that requests overlap.
struct Strict {
    bytes: RefCell<Vec<u8>>,
    limits: Limits,
    executor: Executor,
    zeroes: bool,
    calls: Cell<u32>,
    fail_writes: Cell<bool>,
    /// Pauses that the next write makes before it lands.
    slow: Cell<u32>,
}

impl Strict {
    fn check(&self, range: &Range<u64>, longest: u64) {
        let alignment = u64::from(self.limits.request_alignment);
        assert!(!range.is_empty(), "an empty request");
        assert!(range.start.is_multiple_of(alignment) && range.end.is_multiple_of(alignment));
        assert!(range.end - range.start <= longest, "a request that is too long");
        assert!(range.end <= (self.bytes.borrow().len() as u64).next_multiple_of(alignment));
        self.calls.set(self.calls.get() + 1);
    }

    async fn pause(&self) {
        self.executor.sleep(std::time::Duration::from_micros(10)).await;
    }

    async fn land(&self, at: u64, from: IoBuf) -> Result<()> {
        for _ in 0..self.slow.replace(1) {
            self.pause().await;
        }
        if self.fail_writes.get() {
            return Err(Error::from_errno(libc::ENOSPC, "full"));
        }
        self.fill(at..at + from.len() as u64, &from.to_vec());
        self.pause().await;
        Ok(())
    }

    fn fill(&self, range: Range<u64>, from: &[u8]) {
        let mut bytes = self.bytes.borrow_mut();
        let (start, len) = (range.start as usize, bytes.len());
        let end = (range.end as usize).min(len);
        bytes[start..end].copy_from_slice(&from[..end - start]);
    }
}

impl BlockDriver for Rc<Strict> {
    const FORMAT: &'static str = "strict";
    fn limits(&self) -> Limits {
        self.limits
    }
    fn len(&self) -> u64 {
        self.bytes.borrow().len() as u64
    }
    fn filename(&self) -> Option<String> {
        None
    }
    fn children(&self) -> Vec<Edge> {
        Vec::new()
    }
    fn set_permissions(&self, _held: EdgePerms) -> Result<()> {
        Ok(())
    }
    async fn read(&self, at: u64, into: IoBuf) -> Result<()> {
        self.check(&(at..at + into.len() as u64), self.limits.max_transfer);
        assert!(into.is_aligned(self.limits.memory_alignment as usize), "memory");
        self.pause().await;
        let mut bytes = self.bytes.borrow()[at as usize..].to_vec();
        bytes.resize(into.len(), 0);
        into.copy_from(&bytes);
        Ok(())
    }
    async fn write(&self, at: u64, from: IoBuf, _flags: WriteFlags) -> Result<()> {
        self.check(&(at..at + from.len() as u64), self.limits.max_transfer);
        assert!(from.is_aligned(self.limits.memory_alignment as usize), "memory");
        // It lands whether somebody waits for it or not, as in the kernel.
        let disk = Rc::clone(self);
        self.executor.spawn(async move { disk.land(at, from).await }).await
    }
    async fn write_zeroes(&self, range: Range<u64>, _flags: WriteFlags) -> Result<()> {
        if !self.zeroes {
            return Err(Error::new(ErrorKind::Unsupported, "no zeroes here"));
        }
        self.check(&range, self.limits.max_zeroes);
        self.pause().await;
        let len = (range.end - range.start) as usize;
        self.fill(range, &vec![0; len]);
        Ok(())
    }
    async fn discard(&self, range: Range<u64>) -> Result<()> {
        self.check(&range, self.limits.max_zeroes);
        let len = (range.end - range.start) as usize;
        self.fill(range, &vec![0xdd; len]);
        Ok(())
    }
    async fn flush(&self) -> Result<()> {
        Ok(())
    }
    async fn map(&self, _range: Range<u64>) -> Result<Extent> {
        Ok(Extent { kind: ExtentKind::Data, len: 0 })
    }
    async fn resize(&self, len: u64) -> Result<()> {
        self.bytes.borrow_mut().resize(len as usize, 0);
        self.pause().await;
        if self.fail_writes.get() {
            return Err(Error::from_errno(libc::ENOSPC, "full"));
        }
        Ok(())
    }
    async fn grow(&self, len: u64) -> Result<ExtentKind> {
        BlockDriver::resize(self, len).await.map(|()| ExtentKind::Zero)
    }
    async fn refresh(&self) -> Result<()> {
        Ok(())
    }
    async fn activate(&self, _only_if: Option<u64>) -> Result<()> {
        Ok(())
    }
    async fn inactivate(&self) -> Result<()> {
        Ok(())
    }
    async fn generation(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}

fn limits(alignment: u32, memory: u32, longest: u64) -> Limits {
    Limits {
        request_alignment: alignment,
        memory_alignment: memory,
        max_transfer: longest,
        max_zeroes: longest,
        discard_granularity: alignment,
    }
}

fn node(len: usize, limits: Limits, options: NodeOptions) -> (Executor, BlockNode, Rc<Strict>) {
    let executor = Executor::new(Clock::simulated()).unwrap();
    let driver = Rc::new(Strict {
        bytes: RefCell::new((0..len).map(|at| at as u8).collect()),
        limits,
        executor: executor.clone(),
        zeroes: true,
        calls: Cell::new(0),
        fail_writes: Cell::new(false),
        slow: Cell::new(1),
    });
    let graph = BlockGraph::new(executor.clone());
    let node = executor.block_on(graph.add(Some("n0"), Rc::clone(&driver), options)).unwrap();
    (executor, node, driver)
}

/// Random requests one after the other against a plain vector, under many limits.
#[test]
fn any_request_gives_the_right_bytes_under_any_limits() {
    for (alignment, memory, longest) in [
        (1, 1, 7),
        (1, 1, u64::MAX),
        (512, 1, 512),
        (512, 512, 4096),
        (4096, 4096, 8192),
        (8, 4, 24),
    ] {
        // The length is no multiple of the alignment.
        let (executor, node, driver) =
            node(20_003, limits(alignment, memory, longest), NodeOptions::default());
        let mut model = driver.bytes.borrow().clone();
        let mut random = 12345_u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        executor.block_on(async {
            for round in 0..300_u64 {
                let at = next(20_003);
                let len = next((20_003 - at).min(9000) + 1);
                let span = at as usize..(at + len) as usize;
                // An odd start in memory every other time.
                let skip = (round % 2) as usize;
                let buf = IoBuf::alloc(span.len() + skip).slice(skip..span.len() + skip);
                match next(4) {
                    0 => {
                        let bytes: Vec<u8> =
                            span.clone().map(|at| (at as u64 + round) as u8).collect();
                        buf.copy_from(&bytes);
                        model[span].copy_from_slice(&bytes);
                        node.write(at, buf, WriteFlags::NONE).await.unwrap();
                    }
                    1 => {
                        model[span].fill(0);
                        node.write_zeroes(at..at + len, WriteFlags::NONE).await.unwrap();
                    }
                    _ => {
                        node.read(at, buf.clone()).await.unwrap();
                        assert!(buf.to_vec() == model[span], "{at}+{len}");
                    }
                }
            }
        });
        assert!(*driver.bytes.borrow() == model);
    }
}

#[test]
fn writers_in_one_block_at_once_lose_nothing() {
    let (executor, node, driver) = node(8192, limits(512, 1, 4096), NodeOptions::default());
    // Pieces of odd length, so that neighbours share blocks; every third one aligned and long.
    let mut model = driver.bytes.borrow().clone();
    let mut writers = Vec::new();
    for number in 0..40_usize {
        let (at, len) = if number % 3 == 0 {
            (number * 100 / 512 * 512 + 4096, 512)
        } else {
            (number * 100, 100)
        };
        let bytes = vec![number as u8 + 100; len];
        if number % 3 != 0 && number * 100 + 100 <= 4096 {
            model[at..at + len].copy_from_slice(&bytes);
        }
        if number % 3 == 0 || number * 100 + 100 <= 4096 {
            let node = node.clone();
            writers.push(executor.spawn(async move {
                node.write(at as u64, IoBuf::from_vec(&bytes), WriteFlags::NONE).await
            }));
        }
    }
    for writer in writers {
        executor.block_on(writer).unwrap();
    }
    assert!(driver.bytes.borrow()[..4096] == model[..4096]);
}

#[test]
fn a_write_that_was_given_up_takes_nothing_of_its_block_back() {
    let (executor, node, driver) = node(4096, limits(512, 1, 4096), NodeOptions::default());
    let write = |at: u64, byte: u8| {
        let node = node.clone();
        executor.spawn(async move {
            node.write(at, IoBuf::from_vec(&[byte; 10]), WriteFlags::NONE).await
        })
    };
    executor.block_on(async {
        driver.slow.set(100);
        let given_up = write(0, 201);
        executor.sleep(std::time::Duration::from_micros(100)).await;
        assert!(given_up.cancel().await.is_none(), "it was not under way");
        write(20, 202).await.unwrap();
        executor.sleep(std::time::Duration::from_millis(10)).await;
    });
    assert_eq!(driver.bytes.borrow()[20..30], [202; 10]);
}

#[test]
fn what_leaves_the_node_is_refused_before_anything_happens() {
    let (executor, node, driver) = node(1000, Limits::NONE, NodeOptions::default());
    executor.block_on(async {
        let cases = [(1000, 1), (999, 2), (u64::MAX, 1), (u64::MAX - 1, 4096)];
        for (at, len) in cases {
            let error = node.read(at, IoBuf::alloc(len)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OutOfRange);
            assert!(error.to_string().contains("leaves node 'n0' of 1000 bytes"), "{error}");
            let write = node.write(at, IoBuf::alloc(len), WriteFlags::NONE).await;
            assert_eq!(write.unwrap_err().kind(), ErrorKind::OutOfRange);
            let end = at.saturating_add(len as u64).max(1001);
            assert!(node.write_zeroes(at..end, WriteFlags::NONE).await.is_err());
            assert!(node.discard(at..end).await.is_err());
            assert!(node.map(at..end).await.is_err());
        }
        #[expect(clippy::reversed_empty_ranges, reason = "what a caller must not get away with")]
        let backwards = 10..5;
        assert!(node.write_zeroes(backwards, WriteFlags::NONE).await.is_err());
        assert!(node.map(5..5).await.is_err());
        assert_eq!(node.map(0..10).await.unwrap().len, 1, "a driver that knows nothing");
    });
    assert_eq!(driver.calls.get(), 0);
}

#[test]
fn requests_for_nothing_do_nothing() {
    let (executor, node, driver) = node(1000, Limits::NONE, NodeOptions::default());
    executor.block_on(async {
        node.read(1000, IoBuf::alloc(0)).await.unwrap();
        node.write(1000, IoBuf::alloc(0), WriteFlags::NONE).await.unwrap();
        node.write_zeroes(5..5, WriteFlags::NONE).await.unwrap();
        node.discard(5..5).await.unwrap();
    });
    assert_eq!(driver.calls.get(), 0);
}

#[test]
fn bitmaps_hear_of_every_write_that_completes_or_fails() {
    let (executor, node, driver) = node(1 << 20, Limits::NONE, NodeOptions::default());
    let bitmap = AttachedBitmap::new(None, DirtyBitmap::new(1 << 20, 4096).unwrap());
    node.attach_bitmap(bitmap.clone());
    let dirty = || {
        let dirty = bitmap.bits.borrow().dirty_bytes();
        bitmap.bits.borrow_mut().clear_all();
        dirty
    };
    executor.block_on(async {
        let write = node.write(4000, IoBuf::alloc(200), WriteFlags::NONE);
        let mut write = std::pin::pin!(write);
        let pending =
            std::future::poll_fn(|cx| std::task::Poll::Ready(write.as_mut().poll(cx).is_pending()));
        assert!(pending.await);
        assert_eq!(dirty(), 0, "not before it completes");
        write.await.unwrap();
        assert_eq!(dirty(), 8192);
        driver.fail_writes.set(true);
        let failed = node.write(0, IoBuf::alloc(4096), WriteFlags::NONE).await;
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!(dirty(), 4096, "part of it may have landed");
        node.write_zeroes(0..8192, WriteFlags::NONE).await.unwrap();
        assert_eq!(dirty(), 8192);
        node.discard(0..4096).await.unwrap();
        assert_eq!(dirty(), 4096);
        node.read(0, IoBuf::alloc(4096)).await.unwrap();
        assert_eq!(dirty(), 0);
        driver.fail_writes.set(false);
        node.resize(2 << 20).await.unwrap();
        assert_eq!(dirty(), 1 << 20);
    });
    node.detach_bitmap(&bitmap);
    let stats = node.stats();
    assert_eq!((stats.write.ops, stats.write.failed, stats.write.bytes), (3, 1, 8392));
}

#[test]
fn options_of_the_node_decide_about_discards_and_zeroes() {
    let ignore = NodeOptions { discard: DiscardMode::Ignore, ..NodeOptions::default() };
    let (executor, disk, driver) = node(8192, Limits::NONE, ignore);
    executor.block_on(disk.discard(0..4096)).unwrap();
    assert_eq!(driver.calls.get(), 0);
    let detect = NodeOptions { detect_zeroes: DetectZeroes::On, ..NodeOptions::default() };
    let (executor, disk, driver) = node(8192, Limits::NONE, detect);
    // Only a write of zeroes can succeed now.
    driver.fail_writes.set(true);
    executor.block_on(disk.write(5, IoBuf::alloc(100), WriteFlags::NONE)).unwrap();
    assert!(driver.bytes.borrow()[5..105].iter().all(|byte| *byte == 0));
    let data = IoBuf::from_vec(&[0, 0, 1]);
    assert!(executor.block_on(disk.write(0, data, WriteFlags::NONE)).is_err());
}

#[test]
fn a_length_that_changed_is_followed_even_if_the_driver_fails_afterwards() {
    let (executor, node, driver) = node(8192, limits(512, 512, u64::MAX), NodeOptions::default());
    let bitmap = AttachedBitmap::new(None, DirtyBitmap::new(8192, 4096).unwrap());
    node.attach_bitmap(bitmap.clone());
    driver.fail_writes.set(true);
    let error = executor.block_on(node.resize(16384)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_eq!(node.len(), 16384);
    assert_eq!(bitmap.bits.borrow().len(), 16384);
    assert_eq!(bitmap.bits.borrow().dirty_bytes(), 8192);
}

#[test]
fn a_length_that_changed_is_followed_even_if_nobody_waits_for_the_rest() {
    let (executor, node, _driver) = node(8192, limits(512, 512, u64::MAX), NodeOptions::default());
    let bitmap = AttachedBitmap::new(None, DirtyBitmap::new(8192, 4096).unwrap());
    node.attach_bitmap(bitmap.clone());
    executor.block_on(async {
        let mut resize = Box::pin(node.resize(16384));
        let pending = std::future::poll_fn(|cx| {
            std::task::Poll::Ready(resize.as_mut().poll(cx).is_pending())
        });
        assert!(pending.await);
        assert_eq!(bitmap.bits.borrow().len(), 8192);
        drop(resize);
    });
    assert_eq!(node.len(), 16384);
    assert_eq!(bitmap.bits.borrow().len(), 16384);
    assert_eq!(bitmap.bits.borrow().dirty_bytes(), 8192);
}

#[test]
fn zeroes_that_must_be_cheap_are_refused_where_they_are_not() {
    let (executor, disk, driver) = node(8192, limits(512, 1, 4096), NodeOptions::default());
    let driver = Rc::try_unwrap(driver).err().unwrap();
    let strict = Strict {
        bytes: RefCell::new(driver.bytes.borrow().clone()),
        limits: driver.limits,
        executor: executor.clone(),
        zeroes: false,
        calls: Cell::new(0),
        fail_writes: Cell::new(false),
        slow: Cell::new(1),
    };
    drop(disk);
    let (strict, graph) = (Rc::new(strict), BlockGraph::new(executor.clone()));
    let add = graph.add(Some("n1"), Rc::clone(&strict), NodeOptions::default());
    let disk = executor.block_on(add).unwrap();
    let cheap = WriteFlags { no_fallback: true, ..WriteFlags::NONE };
    let error = executor.block_on(disk.write_zeroes(0..4096, cheap)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(strict.calls.get(), 0);
    executor.block_on(disk.write_zeroes(100..5000, WriteFlags::NONE)).unwrap();
    assert!(strict.bytes.borrow()[100..5000].iter().all(|byte| *byte == 0));
    assert_eq!((strict.bytes.borrow()[99], strict.bytes.borrow()[5000]), (99, 136));
}

#[test]
fn zeroes_found_in_a_write_keep_its_promises_and_their_space_unless_they_may_not() {
    use crate::testing::{SimDisk, SimOptions};
    for detect_zeroes in [DetectZeroes::Off, DetectZeroes::On, DetectZeroes::Unmap] {
        let executor = Executor::new(Clock::simulated()).unwrap();
        let graph = crate::graph::BlockGraph::new(executor.clone());
        let disk = SimDisk::new(&executor, SimOptions::new(65_536, 1));
        let options = NodeOptions { detect_zeroes, ..NodeOptions::default() };
        executor.block_on(async {
            let node = graph.add(None, disk.clone(), options).await.unwrap();
            node.write(0, IoBuf::from_vec(&[7; 65_536]), WriteFlags::FUA).await.unwrap();
            node.write(4096, IoBuf::alloc(61_440), WriteFlags::FUA).await.unwrap();
            // One byte that is not zero makes a write one like any other.
            let mut almost = [0; 4096];
            almost[4095] = 1;
            node.write(0, IoBuf::from_vec(&almost), WriteFlags::NONE).await.unwrap();
        });
        let gives_back = detect_zeroes == DetectZeroes::Unmap;
        assert_eq!(disk.data_bytes() < 65_536, gives_back, "{detect_zeroes:?}");
        assert!(disk.durable()[4096..].iter().all(|byte| *byte == 0), "FUA was lost");
        assert_eq!(disk.contents()[4095], 1);
        let zeroes = u64::from(detect_zeroes != DetectZeroes::Off);
        assert_eq!(disk.counts().zeroes.0, zeroes, "{detect_zeroes:?}");
    }
}
