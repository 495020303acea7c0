use std::sync::{Arc, Mutex};

use super::*;

fn rig() -> (I8042, Arc<Mutex<Vec<PowerEvent>>>) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&events);
    (I8042::new(Arc::new(move |event| log.lock().unwrap().push(event))), events)
}

#[test]
fn the_reset_command_resets() {
    let (mut i8042, events) = rig();
    for harmless in [0xff, 0xd1, 0xaa, 0x00, 0xef, 0x7e] {
        i8042.write(COMMAND, &[harmless]);
    }
    i8042.write(DATA, &[0xfe]);
    i8042.write(1, &[0xfe]);
    i8042.write(COMMAND, &[]);
    assert!(events.lock().unwrap().is_empty());
    i8042.write(COMMAND, &[0xfe]);
    assert_eq!(*events.lock().unwrap(), [PowerEvent::Reset]);
}

/// Linux's `i8042_flush` gives up when 16 reads do not empty the buffer; its `kb_wait` before a
/// reset waits for status bit 1 to be clear.
#[test]
fn a_search_for_a_keyboard_ends_at_once() {
    let (mut i8042, _) = rig();
    let mut data = [0];
    for _ in 0..20 {
        i8042.read(COMMAND, &mut data);
        assert_eq!(data[0] & 0b11, 0b01);
        i8042.read(DATA, &mut data);
    }
    let mut all = [0; 5];
    i8042.read(DATA, &mut all);
    assert_eq!(all, [0xff, 0, 0, 0, OUTPUT_FULL]);
}

/// Many a small system empties the buffer before it does anything else, and waits for an answer after each
/// command.
#[test]
fn the_output_buffer_can_be_emptied_and_commands_are_answered() {
    let (mut i8042, _) = rig();
    for command in [0xad, 0x20, 0xaa] {
        let mut reads = 0;
        loop {
            let mut data = [0];
            i8042.read(COMMAND, &mut data);
            if data[0] & OUTPUT_FULL == 0 {
                break;
            }
            i8042.read(DATA, &mut data);
            reads += 1;
            assert!(reads <= 100, "it never ends");
        }
        assert!(reads > 16, "Linux would take it for a keyboard");
        i8042.write(COMMAND, &[command]);
    }
    i8042.read(DATA, &mut [0]);
    i8042.reset();
    assert_eq!(i8042.noise, NOISE);
}
