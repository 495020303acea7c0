#![expect(
    clippy::cast_possible_truncation,
    reason = "patterns of bytes, and offsets of small disks"
)]

use std::os::fd::AsFd;
use std::time::Duration;

use super::*;
use crate::clock::Clock;
use crate::executor::Executor;
use crate::sys;

/// Every test runs over the ring (where there is one) and over threads, on a file of a real disk
/// and on one in memory: they must not differ.
fn everywhere(test: impl Fn(&Executor, &FileIo)) {
    for choice in [RingChoice::Auto, RingChoice::ThreadPool] {
        for directory in [std::env::current_dir().unwrap(), "/dev/shm".into()] {
            let executor = Executor::new(Clock::real()).unwrap();
            executor.set_ring_choice(choice);
            let io = FileIo::new(executor.clone(), tempfile::tempfile_in(directory).unwrap());
            test(&executor, &io);
        }
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

/// A buffer in several pieces, each its own allocation.
fn scattered(lens: &[usize]) -> IoBuf {
    struct Parts(#[expect(dead_code, reason = "only kept alive")] Vec<IoBuf>);
    impl crate::buf::BufOwner for Parts {
        fn written(&self, _start: std::ptr::NonNull<u8>, _len: usize) {}
    }
    let parts: Vec<IoBuf> = lens.iter().map(|len| IoBuf::alloc(*len)).collect();
    let segments: Vec<_> = parts.iter().map(|part| part.single().unwrap()).collect();
    let segments =
        segments.into_iter().map(|(start, len)| (std::ptr::NonNull::new(start).unwrap(), len));
    #[expect(unsafe_code, reason = "builds a scatter list for tests")]
    // SAFETY: the parts are kept alive by the owner.
    unsafe {
        IoBuf::from_segments(segments, Rc::new(Parts(parts)))
    }
}

#[test]
fn what_is_made_durable_waits_for_every_answer_about_the_file() {
    everywhere(|executor, io| {
        executor.block_on(async {
            // An answer that is late: the kernel may have told that one of what all have lost.
            let other = Verb::Sync { range: None };
            let late = io.file().begin(&other);
            let ends = Rc::new(Cell::new(0));
            let file = Rc::clone(io.file());
            let counted = Rc::clone(&ends);
            let teller = executor.spawn({
                let executor = executor.clone();
                async move {
                    executor.sleep(Duration::from_millis(50)).await;
                    counted.set(counted.get() + 1);
                    file.end(&other, late, -libc::EIO);
                }
            });
            let (flush, durable) = (io.sync(None), io.write(0, IoBuf::alloc(512), true));
            let told = if io.is_in_memory() { 0 } else { 1 };
            durable.await.unwrap();
            assert_eq!(ends.get(), told);
            flush.await.unwrap();
            teller.await;
        });
    });
}

#[test]
fn what_is_written_is_read_back_in_any_shape() {
    everywhere(|executor, io| {
        executor.block_on(async {
            let bytes = pattern(3 << 20, 1);
            io.write(5, IoBuf::from_vec(&bytes), false).await.unwrap();
            io.sync(None).await.unwrap();
            let buf = scattered(&[1, 4095, 100_000, 7, 2 << 20]);
            io.read(5, buf.clone()).await.unwrap();
            assert!(buf.to_vec() == bytes[..buf.len()]);
            let part = buf.slice(4000..110_000);
            part.copy_from(&pattern(part.len(), 9));
            io.write(12, part.clone(), true).await.unwrap();
            let back = IoBuf::alloc(part.len());
            io.read(12, back.clone()).await.unwrap();
            assert!(back.to_vec() == part.to_vec());
        });
    });
}

#[test]
fn behind_the_end_of_the_file_there_are_zeroes() {
    everywhere(|executor, io| {
        executor.block_on(async {
            io.write(0, IoBuf::from_vec(&pattern(1000, 1)), false).await.unwrap();
            let buf = IoBuf::from_vec(&[0xff; 4096]);
            io.read(512, buf.clone()).await.unwrap();
            let bytes = buf.to_vec();
            assert_eq!(bytes[..488], pattern(1000, 1)[512..]);
            assert!(bytes[488..].iter().all(|byte| *byte == 0));
        });
    });
}

#[test]
fn more_pieces_than_the_kernel_takes_at_once() {
    everywhere(|executor, io| {
        executor.block_on(async {
            let buf = scattered(&[3; 2500]);
            buf.copy_from(&pattern(7500, 3));
            io.write(0, buf.clone(), false).await.unwrap();
            let back = scattered(&[5; 1500]);
            io.read(0, back.clone()).await.unwrap();
            assert_eq!(back.to_vec(), buf.to_vec());
        });
    });
}

#[test]
fn many_requests_at_once_all_come_back() {
    everywhere(|executor, io| {
        let requests: Vec<_> = (0..2000_u64)
            .map(|number| {
                let bytes = pattern(512, u8::try_from(number % 251).unwrap());
                io_write(executor, io, number * 512, bytes)
            })
            .collect();
        for request in requests {
            assert_eq!(executor.block_on(request), 512);
        }
        assert!(!executor.engine().turn(), "nothing is left, so the thread may sleep");
        executor.block_on(async {
            for number in (0..2000_u64).rev() {
                let buf = IoBuf::alloc(512);
                io.read(number * 512, buf.clone()).await.unwrap();
                assert_eq!(buf.to_vec(), pattern(512, u8::try_from(number % 251).unwrap()));
            }
        });
    });
}

#[test]
fn long_transfers_at_once_arrive_whole() {
    const LEN: usize = 300_000;
    everywhere(|executor, io| {
        let _streaming = executor.streaming();
        let io = Rc::new(FileIo::new(executor.clone(), io.file().file.try_clone().unwrap()));
        let write = |number: u8| {
            let io = Rc::clone(&io);
            let bytes = IoBuf::from_vec(&pattern(LEN, number));
            executor
                .spawn(async move { io.write(u64::from(number) * LEN as u64, bytes, false).await })
        };
        for write in (0..16).map(write).collect::<Vec<_>>() {
            executor.block_on(write).unwrap();
        }
        for number in (0..16).rev() {
            let buf = IoBuf::alloc(LEN);
            executor.block_on(io.read(u64::from(number) * LEN as u64, buf.clone())).unwrap();
            assert!(buf.to_vec() == pattern(LEN, number));
        }
    });
}

#[test]
fn another_thread_copies_while_this_one_has_streams_and_no_pause() {
    const SHORT: usize = 64 << 10;
    const LONG: usize = 300_000;
    const LONGEST: usize = 1 << 20;
    everywhere(|executor, io| {
        let threads = executor.ring_choice() == RingChoice::ThreadPool;
        let pause = || executor.block_on(executor.sleep(Duration::from_millis(1)));
        for len in [LONG, LONG, LONGEST] {
            assert_eq!(io.is_for_others(len), threads, "nothing else to do");
        }
        let streaming = executor.streaming();
        pause();
        assert_eq!(io.is_for_others(LONG), threads, "the first after a pause");
        assert!(io.is_for_others(LONG), "the next at once");
        assert!(!io.is_for_others(SHORT));
        pause();
        assert!(io.is_for_others(LONGEST));
        drop(streaming);
        assert_eq!(io.is_for_others(LONG), threads, "the stream is gone");
    });
}

/// Straight to the engine, also on tmpfs.
fn io_write(executor: &Executor, io: &FileIo, at: u64, bytes: Vec<u8>) -> Op {
    let buf = IoBuf::from_vec(&bytes);
    let verb = Verb::Transfer { way: Way::Write, at, buf, durable: false, elsewhere: false };
    executor.engine().start(io.file(), verb)
}

/// The kernel may use a buffer long after everybody who asked has gone.
#[test]
fn a_dropped_request_keeps_its_buffer_and_file_until_it_is_over() {
    everywhere(|executor, io| {
        let file = io.file().file.try_clone().unwrap();
        for number in 0..64 {
            drop(io_write(executor, io, number * 4096, pattern(4096, 7)));
        }
        assert!(executor.engine().is_busy());
        executor.block_on(io.file().quiet());
        assert!(!executor.engine().is_busy());
        let buf = IoBuf::alloc(64 * 4096);
        sys::transfer(Way::Read, file.as_fd(), &buf, 0).unwrap();
        assert!(buf.to_vec().chunks(4096).all(|chunk| chunk == pattern(4096, 7)));
    });
}

#[test]
fn an_engine_that_is_dropped_waits_for_what_the_kernel_has() {
    for choice in [RingChoice::Auto, RingChoice::ThreadPool] {
        let file = tempfile::tempfile_in(".").unwrap();
        let seen = file.try_clone().unwrap();
        let executor = Executor::new(Clock::real()).unwrap();
        executor.set_ring_choice(choice);
        let io = FileIo::new(executor.clone(), file);
        drop(io_write(&executor, &io, 0, pattern(1 << 20, 5)));
        drop((io, executor));
        let buf = IoBuf::alloc(1 << 20);
        sys::transfer(Way::Read, seen.as_fd(), &buf, 0).unwrap();
        assert!(buf.to_vec() == pattern(1 << 20, 5));
    }
}

#[test]
fn holes_are_punched_and_space_is_kept_as_asked() {
    everywhere(|executor, io| {
        executor.block_on(async {
            io.write(0, IoBuf::from_vec(&[1; 1 << 16]), false).await.unwrap();
            let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            io.allocate(punch, 4096, 8192).await.unwrap();
            let buf = IoBuf::alloc(1 << 16);
            io.read(0, buf.clone()).await.unwrap();
            assert!(buf.slice(4096..12288).is_zero() && !buf.slice(0..4096).is_zero());
            let hole = io.blocking(|fd| sys::seek(fd, 0, libc::SEEK_HOLE)).await.unwrap();
            assert_eq!(hole, Some(4096));
        });
    });
}

#[test]
fn errors_of_the_kernel_arrive() {
    for choice in [RingChoice::Auto, RingChoice::ThreadPool] {
        let executor = Executor::new(Clock::real()).unwrap();
        executor.set_ring_choice(choice);
        let path = tempfile::NamedTempFile::new_in(".").unwrap();
        let io = FileIo::new(executor.clone(), File::open(path.path()).unwrap());
        executor.block_on(async {
            let error = io.write(0, IoBuf::alloc(512), false).await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBADF));
            let error = io.allocate(0x4000, 0, 512).await.unwrap_err();
            assert!(error.raw_os_error().is_some());
        });
    }
}

#[test]
fn functions_that_block_do_not_stop_the_thread() {
    let executor = Executor::new(Clock::real()).unwrap();
    let io = FileIo::new(executor.clone(), tempfile::tempfile().unwrap());
    let (release, wait) = std::sync::mpsc::channel::<()>();
    executor.block_on(async {
        let mut blocked = std::pin::pin!(io.blocking(move |_| Ok(wait.recv().is_ok())));
        let first = std::future::poll_fn(|cx| {
            std::task::Poll::Ready(blocked.as_mut().poll(cx).is_pending())
        });
        assert!(first.await);
        executor.sleep(Duration::from_millis(2)).await;
        release.send(()).unwrap();
        assert!(blocked.await.unwrap());
    });
}
