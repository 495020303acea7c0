use super::*;

fn filled() -> Outbox {
    let mut queue = Outbox::default();
    queue.head(|out| out.extend_from_slice(b"ab"));
    queue.head(|out| out.extend_from_slice(b"c"));
    queue.body(IoBuf::from_vec(b"defg"));
    queue.head(|_nothing| ());
    queue.body(IoBuf::alloc(0));
    queue.head(|out| out.extend_from_slice(b"hi"));
    queue
}

#[test]
fn bytes_leave_in_order_whatever_is_sent_at_once() {
    for step in 1..=9 {
        let mut queue = filled();
        let mut seen = Vec::new();
        while !queue.is_empty() {
            let mut out = vec![0; step];
            let count = queue.copy_to(&mut out);
            seen.extend_from_slice(&out[..count]);
            queue.advance(count);
        }
        assert_eq!(seen, b"abcdefghi", "{step} at once");
        assert_eq!(queue.held(), 0);
    }
}

#[test]
fn heads_one_after_the_other_are_one_part() {
    assert_eq!(filled().parts.len(), 3);
    assert_eq!(filled().held(), 9);
}

#[test]
fn a_queue_that_is_never_empty_forgets_what_it_sent() {
    let mut queue = Outbox::default();
    for round in 0..100_000_u32 {
        queue.head(|out| out.extend_from_slice(&round.to_be_bytes()));
        if round != 0 {
            let mut out = [0; 4];
            assert_eq!(queue.copy_to(&mut out), 4);
            assert_eq!(u32::from_be_bytes(out), round - 1);
            queue.advance(4);
        }
        assert_eq!(queue.head_len(), 4);
    }
    assert!(queue.heads.len() <= FORGET + 8, "{} bytes", queue.heads.len());
}
