//! `kill -9` at any moment, with `qemu-img check` as the judge.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::rig::{Rig, check_but_for_leaks, open, options};
use crate::buf::IoBuf;
use crate::driver::WriteFlags;
use crate::testing::{Rng, tool};

const RECORD: u64 = 4096;
const DISK: u64 = 64 << 20;
/// Names the image for the process that is to be killed.
const IMAGE: &str = "FERRY_TEST_KILLED_IMAGE";

/// Where the records of one life go: odd numbers, so that clusters are shared between lives.
fn place(life: u64, number: u64) -> u64 {
    let slots = DISK / RECORD;
    (life * 7919 + number * 37) % slots * RECORD
}

/// The process that is killed: writes records, flushes, and says up to where they are safe.
#[test]
fn victim() {
    let Ok(image) = std::env::var(IMAGE) else { return };
    let life: u64 = std::env::var("FERRY_TEST_LIFE").unwrap().parse().unwrap();
    let open = open(options(&image));
    let mut rng = Rng::new(life);
    open.on(async |node| {
        for number in 0..10_000 {
            let at = place(life, number);
            let record = (life << 32 | number).to_le_bytes().repeat(512);
            node.write(at, IoBuf::from_vec(&record), WriteFlags::NONE).await.unwrap();
            if rng.one_in(5) {
                node.flush().await.unwrap();
                println!("SAFE {number}");
            }
        }
    });
}

/// One life and its end; what was safe must be there.
fn live_and_die(image: &str, life: u64, rng: &mut Rng) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "format::qcow2::tests::kill::victim", "--nocapture"])
        .env(IMAGE, image)
        .env("FERRY_TEST_LIFE", life.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // It lives once it has made the first record safe.
    let mut safe = None;
    let mut is_killed = false;
    for line in lines.by_ref().map_while(Result::ok) {
        let number = line.split("SAFE ").nth(1).and_then(|text| text.parse::<u64>().ok());
        safe = number.or(safe);
        if safe.is_some() && !is_killed {
            std::thread::sleep(Duration::from_micros(rng.below(20_000)));
            child.kill().unwrap();
            is_killed = true;
        }
    }
    child.wait().unwrap();
    check_but_for_leaks(image);
    // Nobody may rely on what a bitmap says that was not stored.
    assert!(tool("qemu-img", &["info", image]).contains("in-use"));
    let Some(safe) = safe else { panic!("the victim died before it did anything") };
    let open = open(options(image));
    open.on(async |node| {
        // A later record of this life may have gone over an earlier one only if it is the same slot.
        for number in safe.saturating_sub(1000)..=safe {
            let buf = IoBuf::alloc(4096);
            node.read(place(life, number), buf.clone()).await.unwrap();
            let want = (life << 32 | number).to_le_bytes();
            assert!(
                buf.to_vec().chunks(8).all(|word| word == want),
                "life {life}, record {number}"
            );
        }
    });
    open.close();
    check_but_for_leaks(image);
}

#[test]
fn killed_at_any_moment_the_image_has_what_was_flushed() {
    let Some(rig) = Rig::new() else { return };
    let lives = std::env::var("FERRY_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    let mut rng = Rng::new(3);
    for shape in ["", "cluster_size=512", "extended_l2=on,cluster_size=16k"] {
        let image = rig.create("killed.qcow2", shape, &DISK.to_string());
        for life in 0..lives {
            tool("qemu-img", &["bitmap", "--add", &image, "b"]);
            live_and_die(&image, life, &mut rng);
            tool("qemu-img", &["bitmap", "--remove", &image, "b"]);
        }
    }
}
