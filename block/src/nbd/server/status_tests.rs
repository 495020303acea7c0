//! What block status says of chains.

use super::status::describe;
use super::*;
use crate::clock::Clock;
use crate::executor::Executor;
use crate::node::NodeOptions;
use crate::testing::{Overlay, SimDisk, SimOptions};

/// An image that is shorter than the one on it hides what lies below it, also past its own end: whoever goes by
/// depths to see what overrides an image below must be told so.
#[test]
fn what_lies_past_the_end_of_a_shorter_image_is_in_that_layer() {
    let executor = Executor::new(Clock::simulated()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    executor.block_on(async {
        let disk = async |name: &str, len| {
            let disk = SimDisk::new(&executor, SimOptions::new(len, 1).instant());
            graph.add(Some(name), disk, NodeOptions::default()).await.unwrap()
        };
        let mut below = disk("low", 65_536).await;
        for (name, len) in [("middle", 16_384), ("top", 65_536)] {
            let file = disk(&format!("file-{name}"), len).await;
            let overlay = Overlay::new(&graph, &file, &below).unwrap();
            below = graph.add(Some(name), overlay, NodeOptions::default()).await.unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let address = SocketAddress::unix(folder.path().join("socket").to_str().unwrap());
        let server = Server::bind(&graph, ServerOptions::new(address)).await.unwrap();
        let options = ExportOptions { allocation_depth: true, ..ExportOptions::new("e", "top") };
        let export = server.add(options).await.unwrap();
        let pass = export.backend.enter().await.unwrap();
        let depth = export.contexts.last().unwrap();
        let found = describe(&export, &pass, depth, 0..65_536, false, u64::MAX).await.unwrap();
        let found: Vec<_> = found.iter().map(|found| (found.len, found.flags)).collect();
        assert_eq!(found, [(16_384, 3), (49_152, 2)]);
        drop(pass);
        drop(export);
        server.stop().await;
    });
}
