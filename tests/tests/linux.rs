//! A stock Linux guest, directly where this host can run one and else in an emulated host.

use std::time::Duration;

use ferry_tests::console::Line;
use ferry_tests::need::{self, Need, QEMU};
use ferry_tests::scenario;

const NEEDS: [Need; 3] =
    [QEMU, Need::Program("busybox", "busybox-static"), Need::Program("mke2fs", "e2fsprogs")];
const LIMIT: Duration = Duration::from_secs(300);

fn scenario(words: &'static [&'static str]) {
    // Each line as it comes, for whoever watches; how far a step is says nothing afterwards.
    let tell = |line: &Line| {
        if !line.text.starts_with("PROGRESS ") {
            eprintln!("{}", line.text);
        }
    };
    need::test(&NEEDS, || scenario::run(words, LIMIT, &mut { tell }));
}

#[test]
fn boots_in_every_way() {
    scenario(&["boots"]);
}

#[test]
fn ends_in_every_way() {
    scenario(&["endings"]);
}

#[test]
fn is_mirrored_and_moves_while_it_writes() {
    scenario(&["journey", "30"]);
}

#[test]
fn moves_again_and_again() {
    scenario(&["moves", "4"]);
}
