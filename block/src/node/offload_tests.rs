use std::os::unix::fs::FileExt;

use super::*;
use crate::clock::Clock;
use crate::executor::Executor;
use crate::graph::BlockGraph;
use crate::open::{BlockdevOptions, BlockdevRef, DriverOptions};
use crate::protocol::null::NullOptions;

#[test]
fn bytes_go_from_window_to_file_and_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("a"), [[1; 4096], [2; 4096], [3; 4096]].concat()).unwrap();
    std::fs::File::create(path("b")).unwrap().write_all_at(&[9; 8192], 0).unwrap();
    let executor = Executor::new(Clock::real()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    executor.block_on(async {
        let mut window =
            BlockdevOptions::raw(BlockdevRef::nested(BlockdevOptions::file(path("a"))));
        if let DriverOptions::Raw(raw) = &mut window.driver {
            raw.offset = Some(4096);
        }
        let source = graph.open(&window).await.unwrap();
        let target = graph.open(&BlockdevOptions::raw_file(path("b"))).await.unwrap();
        target.copy_range(512, &source, 1024, 6000).await.unwrap();
        let expected = [vec![9; 512], vec![2; 3072], vec![3; 2928], vec![9; 1680]].concat();
        assert!(std::fs::read(path("b")).unwrap() == expected);
        let kind = |result: Result<()>| result.unwrap_err().kind();
        assert_eq!(kind(target.copy_range(0, &source, 8000, 200).await), ErrorKind::OutOfRange);
        assert_eq!(kind(target.copy_range(8000, &source, 0, 200).await), ErrorKind::OutOfRange);
        let null = BlockdevOptions::new(DriverOptions::NullCo(NullOptions::default()));
        let null = graph.open(&null).await.unwrap();
        assert_eq!(kind(null.copy_range(0, &source, 0, 512).await), ErrorKind::Unsupported);
        let only =
            BlockdevOptions { read_only: Some(true), ..BlockdevOptions::raw_file(path("a")) };
        let only = graph.open(&only).await.unwrap();
        assert_eq!(kind(only.copy_range(0, &target, 0, 512).await), ErrorKind::ReadOnly);
    });
}
