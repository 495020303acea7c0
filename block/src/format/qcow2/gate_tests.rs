use std::cell::Cell;
use std::rc::Rc;

use super::*;
use crate::clock::Clock;
use crate::executor::Executor;

#[test]
fn a_closed_gate_waits_for_those_inside_and_keeps_others_off() {
    let executor = Executor::new(Clock::simulated()).unwrap();
    let gate = Gate::default();
    let pass = gate.try_enter().unwrap();
    let (closing, order) = (gate.clone(), Rc::new(Cell::new(0)));
    let closed = executor.spawn(async move { closing.close().await });
    executor.run_until_stalled();
    assert!(!closed.is_finished() && gate.try_enter().is_none());
    let (entering, entered) = (gate.clone(), Rc::clone(&order));
    executor.spawn(async move {
        entering.opened().await;
        let _pass = entering.try_enter().unwrap();
        entered.set(1);
    });
    drop(pass);
    let closed = executor.block_on(closed);
    executor.run_until_stalled();
    assert_eq!(order.get(), 0);
    drop(closed);
    executor.run_until_stalled();
    assert_eq!(order.get(), 1);
}

#[test]
fn a_grace_period_waits_for_those_who_were_inside_only() {
    let executor = Executor::new(Clock::simulated()).unwrap();
    let gate = Gate::default();
    let before = gate.try_enter().unwrap();
    let waiting = gate.clone();
    let grace = executor.spawn(async move { waiting.grace().await });
    executor.run_until_stalled();
    let later = gate.try_enter().unwrap();
    assert!(!grace.is_finished());
    drop(before);
    executor.block_on(grace);
    // One after the other, with requests in between that never stop.
    let waiting = gate.clone();
    let grace = executor.spawn(async move { waiting.grace().await });
    executor.run_until_stalled();
    assert!(!grace.is_finished());
    drop(later);
    executor.block_on(grace);
}

#[test]
fn a_part_of_a_request_that_goes_on_is_waited_for() {
    let executor = Executor::new(Clock::simulated()).unwrap();
    let gate = Gate::default();
    let pass = gate.try_enter().unwrap();
    let part = pass.again();
    drop(pass);
    let waiting = gate.clone();
    let grace = executor.spawn(async move { waiting.grace().await });
    executor.run_until_stalled();
    assert!(!grace.is_finished());
    drop(part.again());
    drop(part);
    executor.block_on(grace);
}
