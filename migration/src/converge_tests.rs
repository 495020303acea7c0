use super::*;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_millis(300);

/// A guest that dirties `dirty_rate` bytes per second within `working_set`, over a network of
/// `bandwidth`: runs rounds until the model stops it. Returns the decision, the rounds and the rest.
fn simulate(total: u64, working_set: u64, dirty_rate: u64, bandwidth: u64) -> (Decision, u32, u64) {
    let mut model = Model::new(Duration::from_micros(50));
    let mut pending = total;
    for round in 1..1000 {
        let latency_us = 100;
        let time = Duration::from_micros(pending * 1_000_000 / bandwidth + latency_us);
        let sync = Duration::from_micros(300);
        let micros = u64::try_from((time + sync).as_micros()).unwrap();
        let dirtied = dirty_rate * micros / 1_000_000;
        let report = Round { bytes: pending, time, sync, pending: dirtied.min(working_set) };
        pending = report.pending;
        let decision = model.decide(&report, LIMIT);
        if decision.is_switch_over() {
            return (decision, round, pending);
        }
    }
    (Decision::TooLong, 1000, pending)
}

#[test]
fn an_idle_guest_switches_after_one_round() {
    let (decision, rounds, rest) = simulate(100 * MIB, 0, 0, 2000 * MIB);
    assert_eq!((decision, rounds, rest), (Decision::Negligible, 1, 0));
}

#[test]
fn a_dirtying_guest_is_followed_far_below_the_limit() {
    let (_, rounds, rest) = simulate(1024 * MIB, 256 * MIB, 200 * MIB, 2000 * MIB);
    let downtime_us = rest * 1_000_000 / (2000 * MIB);
    assert!(downtime_us < 1000, "{downtime_us} us left after {rounds} rounds");
    assert!(rounds <= 6, "{rounds} rounds");
}

#[test]
fn a_guest_as_fast_as_the_network_is_stopped_once_it_fits() {
    // A working set of 100 ms that is rewritten as fast as it is copied: every round leaves all of it.
    let (decision, rounds, _) = simulate(1024 * MIB, 100 * MIB, 2000 * MIB, 1000 * MIB);
    assert_eq!((decision, rounds), (Decision::Settled, 2));
}

#[test]
fn a_guest_that_cannot_fit_goes_on_for_ever() {
    let (decision, _, _) = simulate(4096 * MIB, 2048 * MIB, 2000 * MIB, 1000 * MIB);
    assert_eq!(decision, Decision::TooLong);
}

#[test]
fn a_raised_limit_takes_effect_in_the_next_round() {
    let mut model = Model::new(Duration::ZERO);
    let round = Round {
        bytes: 100 * MIB,
        time: Duration::from_secs(1),
        sync: Duration::ZERO,
        pending: 100 * MIB,
    };
    assert_eq!(model.decide(&round, LIMIT), Decision::TooLong);
    assert_eq!(model.predicted(), Duration::from_secs(1));
    assert_eq!(model.decide(&round, Duration::from_secs(2)), Decision::StillFalling);
    assert_eq!(model.decide(&round, Duration::from_secs(2)), Decision::Settled);
}

#[test]
fn a_spike_is_waited_out_but_not_for_ever() {
    let mut model = Model::new(Duration::ZERO);
    let mut after = |pending| {
        let time = Duration::from_millis(100);
        model.decide(&Round { bytes: 100 * MIB, time, sync: Duration::ZERO, pending }, LIMIT)
    };
    assert_eq!(after(10 * MIB), Decision::StillFalling);
    assert_eq!(after(100 * MIB), Decision::BadMoment);
    for _ in 2..MAX_EXTRA_ROUNDS {
        assert_eq!(after(100 * MIB), Decision::BadMoment);
    }
    assert_eq!(after(100 * MIB), Decision::Enough);
}

#[test]
fn small_rounds_do_not_change_the_bandwidth() {
    let mut model = Model::new(Duration::ZERO);
    let time = Duration::from_secs(1);
    let sync = Duration::ZERO;
    model.decide(&Round { bytes: 500 * MIB, time, sync, pending: MIB }, LIMIT);
    model.decide(&Round { bytes: 4096, time, sync, pending: MIB }, LIMIT);
    assert_eq!(model.bandwidth(), 500 * MIB);
}

#[test]
fn extreme_figures_neither_panic_nor_divide_by_zero() {
    let mut model = Model::new(Duration::MAX);
    let round =
        Round { bytes: u64::MAX, time: Duration::MAX, sync: Duration::MAX, pending: u64::MAX };
    assert_eq!(model.decide(&round, LIMIT), Decision::TooLong);
    let instant = Round { bytes: u64::MAX, ..Round::default() };
    assert_eq!(Model::new(Duration::ZERO).decide(&instant, LIMIT), Decision::Negligible);
}
