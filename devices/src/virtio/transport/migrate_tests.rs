use ferry_migration::state::{Migrate, Sections};

use super::super::state;
use super::super::testing::{Rig, now};
use super::*;
use crate::virtio::features;

fn saved(rig: &Rig) -> Sections {
    now(VirtioPci::quiesce(&rig.device));
    let mut sections = Sections::new();
    rig.device.lock().unwrap().save(&mut sections).unwrap();
    sections
}

#[test]
fn a_running_device_goes_on_elsewhere() {
    let rig = Rig::new();
    rig.start();
    rig.enable_msix();
    rig.write16(0x10, 2);
    rig.write16(0x1a, 1);
    assert!(rig.device.lock().unwrap().save(&mut Sections::new()).is_err(), "not quiesced");
    let mut sections = saved(&rig);
    let there = Rig::new();
    there.said();
    there.device.lock().unwrap().restore(&mut sections).unwrap();
    sections.finish().unwrap();
    let agreed = features::VERSION_1 | 1 << 9;
    let said: Vec<_> = there.said().into_iter().filter(|line| !line.starts_with("route")).collect();
    assert_eq!(
        said,
        [
            format!("restore {agreed:#x} 1"),
            format!("negotiated {agreed:#x}"),
            "quiesce".to_owned(),
            format!("start {agreed:#x} [(1, 4, 5, 5)]"),
        ]
    );
    for offset in (0..0x38).step_by(4) {
        assert_eq!(there.read32(offset), rig.read32(offset), "{offset:#x}");
    }
    there.device.lock().unwrap().resume();
    there.device.lock().unwrap().interrupt.queue(1);
    assert_eq!(there.said(), ["resume", "msi 1"]);
    assert_eq!(saved(&there).encode().unwrap(), saved(&rig).encode().unwrap());
}

#[test]
fn a_device_nobody_uses_is_saved_and_restored() {
    let rig = Rig::new();
    let mut sections = saved(&rig);
    let there = Rig::new();
    there.device.lock().unwrap().restore(&mut sections).unwrap();
    assert_eq!(there.said().iter().filter(|line| line.starts_with("start")).count(), 0);
    there.device.lock().unwrap().resume();
    there.start();
    assert_eq!(there.status(), 15);
}

#[test]
fn impossible_states_are_refused() {
    let rig = Rig::new();
    rig.start();
    let state: state::VirtioPciState = saved(&rig).load("disk0").unwrap();
    type Edit = fn(&mut state::VirtioPciState);
    let edits: [(&str, Edit); 11] = [
        ("queues", |s| s.queues.truncate(1)),
        ("size", |s| s.queues[1].size = 3),
        ("size 0", |s| s.queues[0].size = 0),
        ("too large", |s| s.queues[1].size = 32),
        ("features", |s| s.features |= 1 << 40),
        ("no version", |s| s.features = 0),
        ("not agreed", |s| s.status &= !8),
        ("vector", |s| s.queues[1].vector = 3),
        ("config vector", |s| s.config_vector = 0x800),
        ("outside", |s| s.queues[1].desc = 1 << 40),
        ("unaligned", |s| s.queues[1].device += 1),
    ];
    for (what, edit) in edits {
        let mut hostile = state.clone();
        edit(&mut hostile);
        let mut sections = Sections::new();
        sections.save("disk0", &hostile).unwrap();
        let there = Rig::new();
        assert!(there.device.lock().unwrap().restore(&mut sections).is_err(), "{what}");
        assert!(there.said().is_empty(), "{what}");
    }
}

#[test]
fn the_saved_state_is_what_it_was() {
    let rig = Rig::new();
    rig.start();
    let mut state: state::VirtioPciState = saved(&rig).load("disk0").unwrap();
    state.msix.vectors.truncate(1);
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources/state");
    ferry_migration::state::golden::check(&dir, &state).unwrap();
}
