use std::sync::{Arc, Mutex};

use super::*;

#[test]
fn reports_what_the_guest_writes() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&events);
    let mut pvpanic = Pvpanic::new(Arc::new(move |event| log.lock().unwrap().push(event)));
    let mut data = [0];
    pvpanic.read(0, &mut data);
    assert_eq!(data, [3]);
    for value in [0, 4, 0xfc] {
        pvpanic.write(0, &[value]);
    }
    pvpanic.write(0, &[]);
    assert!(events.lock().unwrap().is_empty());
    for value in [1, 2, 3] {
        pvpanic.write(0, &[value]);
    }
    let expected = [PowerEvent::Panicked, PowerEvent::CrashLoaded, PowerEvent::Panicked];
    assert_eq!(*events.lock().unwrap(), expected);
}
