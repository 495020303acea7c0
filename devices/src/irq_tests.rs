use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

#[derive(Default)]
struct Wire(AtomicBool);

impl IrqLine for Wire {
    fn set_level(&self, level: bool) {
        self.0.store(level, Ordering::SeqCst);
    }
}

#[test]
fn a_shared_line_is_high_while_any_input_is() {
    let wire = Arc::new(Wire::default());
    let shared = SharedLine::new(Arc::clone(&wire) as Arc<dyn IrqLine>);
    let (a, b) = (shared.input(), shared.input());
    let level = || wire.0.load(Ordering::SeqCst);
    a.set_level(true);
    a.set_level(true);
    a.set_level(false);
    assert!(!level(), "asserting twice is asserting once");
    a.set_level(true);
    b.set_level(true);
    assert!(level());
    a.set_level(false);
    assert!(level(), "b still asserts");
    a.set_level(false);
    assert!(level(), "a second release of a must not count for b");
    b.set_level(false);
    assert!(!level());
}

#[test]
fn a_device_that_goes_away_releases_the_line() {
    let wire = Arc::new(Wire::default());
    let shared = SharedLine::new(Arc::clone(&wire) as Arc<dyn IrqLine>);
    let input = shared.input();
    input.set_level(true);
    drop(input);
    assert!(!wire.0.load(Ordering::SeqCst));
}
