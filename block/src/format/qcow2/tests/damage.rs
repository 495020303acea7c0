//! Metadata that changes in memory by itself.

use super::super::Qcow2Driver;
use super::super::create::CreateOptions;
use super::super::header::{Header, Incompatible};
use super::super::image::Image;
use super::super::map::Place;
use super::rig::{Rig, check_but_for_leaks, open, options};
use super::simulated::{DISK, Shape, Simulated};
use crate::driver::WriteFlags;
use crate::error::{ErrorKind, Result};
use crate::{BlockNode, IoBuf};

/// Clusters of 512 bytes: an L2 table maps 32 KiB, a refcount block describes 128 KiB.
const LAYOUT: &str = "cluster_size=512";
const HALF: u64 = 128 << 10;

type Damage = fn(&Image);

const PLACES: [(&str, Damage); 4] = [
    ("active L2 table", |image| {
        let Ok(Place::Slice { key, .. }) = image.place(HALF) else { panic!("no L2 table") };
        image.map.slices.damage(key, 300);
    }),
    ("refcount block", |image| {
        let last = image.space.end() - 1;
        image.refcounts.slices.damage(image.refcount_place(last).unwrap().unwrap().key, 300);
    }),
    ("active L1 table", |image| image.map.l1.damage(60)),
    ("refcount table", |image| image.refcounts.table.damage(60)),
];

async fn fill(node: &BlockNode, at: u64, byte: u8) {
    let all = IoBuf::from_vec(&vec![byte; usize::try_from(HALF).unwrap()]);
    node.write(at, all, WriteFlags::NONE).await.unwrap();
}

#[test]
fn what_changed_in_memory_by_itself_is_not_written() {
    let Some(rig) = Rig::new() else { return };
    for (name, damage) in PLACES {
        let path = rig.create("damaged.qcow2", LAYOUT, "2M");
        let image = open(options(&path));
        image.on(async |node| {
            fill(node, 0, 7).await;
            node.flush().await.unwrap();
            // Tables of every kind are changed, and one is damaged, elsewhere.
            fill(node, HALF, 8).await;
            let driver = node.driver::<Qcow2Driver>().unwrap();
            damage(&driver.image);
            let error = node.flush().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.to_string().contains(&format!("the {name} at")), "{error}");
            let error = node.write(0, IoBuf::alloc(512), WriteFlags::NONE).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        });
        image.executor.block_on(image.executor.sleep(std::time::Duration::from_millis(20)));
        drop(image);
        // In the file is what was flushed before, and that it needs a look.
        assert_eq!(std::fs::read(&path).unwrap()[79] & 2, 2, "{name}: not marked");
        check_but_for_leaks(&path);
        let content = rig.content(&path);
        let (kept, lost) = content.split_at(usize::try_from(HALF).unwrap());
        assert!(kept.iter().all(|byte| *byte == 7), "{name}: what was flushed is lost");
        assert!(lost.iter().all(|byte| matches!(byte, 0 | 8)), "{name}: what was not is garbage");
    }
}

#[test]
fn a_read_writes_nothing_out_to_a_damaged_image() {
    let image = Simulated::start(1, &Shape::new(CreateOptions::new(DISK)), None);
    image.executor.block_on(async {
        image.node.write(0, IoBuf::from_vec(&[1; 512]), WriteFlags::NONE).await.unwrap();
        let driver = image.node.driver::<Qcow2Driver>().unwrap();
        drop(driver.image.corrupt("somebody found something"));
        assert!(image.node.flush().await.is_err());
        let before = image.disk.counts().writes;
        // What a read does whose table has no place in the cache.
        assert_eq!(driver.image.flush_metadata().await.unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(image.disk.counts().writes, before);
    });
}

#[test]
fn nobody_works_on_the_file_of_a_damaged_image() {
    let image = Simulated::start(1, &Shape::new(CreateOptions::new(DISK)), None);
    image.executor.block_on(async {
        image.node.write(0, IoBuf::from_vec(&[1; 512]), WriteFlags::NONE).await.unwrap();
        let driver = image.node.driver::<Qcow2Driver>().unwrap();
        drop(driver.image.corrupt("somebody found something"));
        // What its refcounts call free may be in use, and nothing in the file of version 2 says so.
        let refused = driver.offline(async |_| -> Result<()> { panic!() }).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
        // The last flush waits for the mark: whoever owns the file next would have that written over his header.
        assert!(image.node.flush().await.is_err());
        let header = Header::load(&driver.file()).await.unwrap();
        assert!(header.incompatible.contains(Incompatible::CORRUPT), "not marked yet");
    });
}
