//! What a flush promises after one has failed.

use super::*;
use crate::clock::Clock;
use crate::graph::BlockGraph;
use crate::node::NodeOptions;

#[test]
fn what_the_page_cache_has_lost_is_never_promised_again() {
    let directory = tempfile::tempdir_in(".").unwrap();
    let path = directory.path().join("disk.img");
    std::fs::write(&path, [7; 4096]).unwrap();
    for (direct, promised) in [(false, false), (true, true)] {
        let executor = Executor::new(Clock::real()).unwrap();
        executor.block_on(async {
            let mode = FileMode { read_only: false, direct, locking: Locking::Off };
            let file = FileDriver::open(&executor, &path, mode).await.unwrap();
            file.flush().await.unwrap();
            // No disk at hand fails once: this is what is left when one did.
            file.io.file().lose(libc::EIO);
            for next in
                [file.flush().await, file.write(0, IoBuf::alloc(4096), WriteFlags::FUA).await]
            {
                assert_eq!(next.is_ok(), promised);
                let Err(error) = next else { continue };
                assert_eq!(error.errno(), libc::EIO);
                assert!(error.to_string().contains("before an earlier flush failed"), "{error}");
            }
        });
    }
}

#[test]
fn a_file_whose_flush_failed_can_be_closed_and_opened_anew() {
    let directory = tempfile::tempdir_in(".").unwrap();
    let path = directory.path().join("disk.img");
    std::fs::write(&path, [7; 4096]).unwrap();
    let executor = Executor::new(Clock::real()).unwrap();
    executor.block_on(async {
        let graph = BlockGraph::new(executor.clone());
        for _ in 0..2 {
            let mode = FileMode { locking: Locking::On, ..FileMode::default() };
            let file = FileDriver::open(&executor, &path, mode).await.unwrap();
            let node = graph.add(Some("disk"), file, NodeOptions::default()).await.unwrap();
            node.flush().await.unwrap();
            node.driver::<FileDriver>().unwrap().io.file().lose(libc::EIO);
            assert!(node.flush().await.is_err());
            drop(node);
            graph.remove("disk").await.unwrap();
        }
    });
}
