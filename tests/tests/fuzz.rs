//! Hostile input on any compiler: seeds changed at random, for [`SECONDS`] each, or as many as
//! `FERRY_FUZZ_SECONDS` says. What is found is found again with the seed that it prints, in
//! `FERRY_FUZZ_SEED`. The same functions are targets of libFuzzer in `tests/fuzz`; what these found
//! once is in `regressions` there, and comes first.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use ferry_api::testing::{fuzz_qmp, qmp_seeds};
use ferry_block::testing::{
    Rng, fuzz_names, fuzz_nbd_client, fuzz_nbd_server, fuzz_qcow2, fuzz_qcow2_at_rest, name_seeds,
    nbd_client_seeds, nbd_server_seeds, qcow2_seeds,
};
use ferry_devices::testing::{device_seeds, fuzz_devices};
use ferry_migration::testing::{destination_seeds, fuzz_destination};
use ferry_tests::artifact::workspace;
use ferry_tests::time;
use ferry_vhost_user::testing::{front_end_seeds, fuzz_front_end};

/// How long each target is hunted: two minutes in all.
const SECONDS: u64 = 15;
/// One input may take this long, built without optimisation and with the host busy.
const LONGEST: Duration = Duration::from_secs(20);
/// Numbers that are wrong in most places.
const EXTREMES: [u64; 6] = [0, 1, u64::MAX, 1 << 63, i64::MAX as u64, 0xffff_ffff];

fn number(variable: &str, default: u64) -> u64 {
    let set = std::env::var(variable).ok();
    set.map_or(default, |text| text.parse().expect("a number"))
}

/// Changes a few places; most of them near the start, where the headers are.
fn change(data: &mut Vec<u8>, rng: &mut Rng) {
    let place = |len: usize, rng: &mut Rng| {
        let reach = if rng.one_in(2) { len.min(256) } else { len };
        usize::try_from(rng.below(reach.max(1) as u64)).expect("an index")
    };
    for _ in 0..=rng.below(4) {
        let at = place(data.len(), rng);
        match rng.below(8) {
            0 if rng.one_in(4) => data.truncate(at),
            1 if !data.is_empty() => {
                let end = (at + 1 + place(64, rng)).min(data.len());
                let piece = data[at..end].to_vec();
                let to = place(data.len(), rng);
                data.splice(to..to, piece);
            }
            2 | 3 => {
                let width = 1 << rng.below(4);
                let at = at - at % width;
                let number = EXTREMES[usize::try_from(rng.below(6)).expect("an index")];
                for (byte, new) in data.iter_mut().skip(at).zip(&number.to_be_bytes()[8 - width..])
                {
                    *byte = *new;
                }
            }
            _ => {
                if let Some(byte) = data.get_mut(at) {
                    *byte ^= 1 << rng.below(8);
                }
            }
        }
    }
}

/// Feeds a target what was found before, then seeds and what becomes of them until the time is over;
/// at least once each.
fn hunt<T>(name: &str, target: impl Fn(&[u8]) -> T, seeds: &[Vec<u8>]) {
    let found = workspace().join("tests/fuzz/regressions").join(name);
    for entry in fs::read_dir(found).into_iter().flatten() {
        let path = entry.expect("a folder that can be read").path();
        let data = fs::read(&path).expect("a file that can be read");
        feed(&target, &data, &path.display().to_string());
    }
    let until = time::now() + Duration::from_secs(number("FERRY_FUZZ_SECONDS", SECONDS));
    let mut seed = number("FERRY_FUZZ_SEED", 1);
    let first = seed;
    while seed < first + seeds.len() as u64 || time::now() < until {
        let mut rng = Rng::new(seed);
        let mut data = seeds[usize::try_from(seed).expect("a number") % seeds.len()].clone();
        change(&mut data, &mut rng);
        feed(&target, &data, &format!("FERRY_FUZZ_SEED={seed}"));
        seed += 1;
    }
    eprintln!("{} inputs", seed - first);
}

/// Feeds a target one input; `again` says how to do so again.
fn feed<T>(target: impl Fn(&[u8]) -> T, data: &[u8], again: &str) {
    let start = time::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| target(data)));
    let took = time::now() - start;
    if let Err(panic) = outcome {
        eprintln!("again with {again}");
        resume_unwind(panic);
    }
    assert!(took < LONGEST, "took {took:?}; again with {again}");
}

#[test]
fn images_do_no_harm() {
    hunt("qcow2", fuzz_qcow2, &qcow2_seeds());
}

#[test]
fn images_do_no_harm_to_tools() {
    hunt("qcow2_at_rest", fuzz_qcow2_at_rest, &qcow2_seeds());
}

#[test]
fn names_of_disks_do_no_harm() {
    hunt("names", fuzz_names, &name_seeds());
}

#[test]
fn clients_of_nbd_do_no_harm() {
    hunt("nbd_server", fuzz_nbd_server, &nbd_server_seeds());
}

#[test]
fn servers_of_nbd_do_no_harm() {
    hunt("nbd_client", fuzz_nbd_client, &nbd_client_seeds());
}

#[test]
fn clients_of_qmp_do_no_harm() {
    hunt("qmp", fuzz_qmp, &qmp_seeds());
}

#[test]
fn guests_that_arrive_do_no_harm() {
    hunt("migration", fuzz_destination, &destination_seeds());
}

#[test]
fn state_of_devices_does_no_harm() {
    hunt("devices", fuzz_devices, &device_seeds());
}

#[test]
fn front_ends_of_vhost_user_do_no_harm() {
    hunt("vhost_user", fuzz_front_end, &front_end_seeds());
}
