use super::*;
use crate::testing::Rng;

fn wishes(tls: bool) -> Wishes {
    Wishes { export: "e".to_owned(), tls, context: "base:allocation".to_owned() }
}

fn hello(flags: u16) -> [u8; HELLO] {
    let mut hello = [0; HELLO];
    hello[..16].copy_from_slice(b"NBDMAGICIHAVEOPT");
    hello[16..].copy_from_slice(&flags.to_be_bytes());
    hello
}

/// The options that a server which answers like this is asked, and how it ends.
fn haggle(tls: bool, answers: impl Fn(u32) -> Vec<(u32, Vec<u8>)>) -> (Vec<u32>, Result<Facts>) {
    let mut out = Vec::new();
    let (mut negotiation, mut step) = Negotiation::begin(hello(3), wishes(tls), &mut out).unwrap();
    let mut asked = Vec::new();
    loop {
        match step {
            Step::StartTls => step = negotiation.encrypted(&mut out),
            Step::Description(_) => {
                return (asked, negotiation.described(&[0; 10]).map(|_| facts()));
            }
            Step::Done(facts) => return (asked, Ok(facts)),
            Step::Reply => {
                let option = negotiation.asked;
                asked.push(option);
                for (kind, data) in answers(option) {
                    let len = u32::try_from(data.len()).unwrap();
                    let header = ReplyHeader { option, kind, len };
                    match negotiation.reply(header, &data, &mut out) {
                        Ok(next) => step = next,
                        Err(error) => return (asked, Err(error)),
                    }
                }
            }
        }
    }
}

fn facts() -> Facts {
    Facts {
        size: 1 << 20,
        flags: export::HAS_FLAGS,
        style: HeaderStyle::Extended,
        min_block: 512,
        preferred_block: 4096,
        max_payload: 1 << 20,
        context: Some(7),
    }
}

fn good(option: u32) -> Vec<(u32, Vec<u8>)> {
    let ack = (rep::ACK, Vec::new());
    match option {
        opt::SET_META_CONTEXT => {
            vec![(rep::META_CONTEXT, b"\0\0\0\x07base:allocation".to_vec()), ack]
        }
        opt::GO => vec![
            (rep::INFO, [&[0, 3][..], &[0, 0, 2, 0], &[0, 0, 16, 0], &[0, 16, 0, 0]].concat()),
            (rep::INFO, [&[0, 0][..], &(1_u64 << 20).to_be_bytes(), &[0, 1]].concat()),
            ack,
        ],
        _ => vec![ack],
    }
}

#[test]
fn the_best_that_both_can_do_is_agreed_on() {
    let (asked, found) = haggle(false, good);
    assert_eq!(asked, [opt::EXTENDED_HEADERS, opt::SET_META_CONTEXT, opt::GO]);
    assert_eq!(found.unwrap(), facts());
    let refuse = |refused: &[u32], option: u32| {
        if refused.contains(&option) { vec![(rep::ERR_UNSUP, Vec::new())] } else { good(option) }
    };
    let (asked, found) = haggle(false, |option| refuse(&[opt::EXTENDED_HEADERS], option));
    assert_eq!(asked[1], opt::STRUCTURED_REPLY);
    assert_eq!(found.unwrap().style, HeaderStyle::Structured);
    let old = [opt::EXTENDED_HEADERS, opt::STRUCTURED_REPLY];
    let (asked, found) = haggle(false, |option| refuse(&old, option));
    assert_eq!(asked, [opt::EXTENDED_HEADERS, opt::STRUCTURED_REPLY, opt::GO]);
    let found = found.unwrap();
    assert_eq!((found.style, found.context), (HeaderStyle::Simple, None));
}

#[test]
fn tls_comes_first_and_is_not_given_up() {
    let (asked, found) = haggle(true, good);
    assert_eq!(asked[0], opt::STARTTLS);
    found.unwrap();
    let (_, found) = haggle(true, |_| vec![(rep::ERR_POLICY, b"not here".to_vec())]);
    assert_eq!(found.unwrap_err().to_string(), "the server does not speak TLS: not here");
    let (_, found) = haggle(false, |_| vec![(rep::ERR_TLS_REQD, Vec::new())]);
    assert!(found.unwrap_err().to_string().contains("tls-creds"));
}

#[test]
fn old_servers_are_refused_with_the_reason() {
    let mut oldstyle = hello(0);
    oldstyle[8..16].copy_from_slice(&OLDSTYLE_MAGIC.to_be_bytes());
    let error = Negotiation::begin(oldstyle, wishes(false), &mut Vec::new()).err().unwrap();
    assert!(error.to_string().contains("oldstyle"));
    let error = Negotiation::begin([7; HELLO], wishes(false), &mut Vec::new()).err().unwrap();
    assert!(error.to_string().contains("magic"));
}

#[test]
fn block_sizes_that_make_no_sense_are_refused() {
    for sizes in
        [[0_u32, 4096, 1 << 20], [3, 4096, 1 << 20], [1 << 20, 1 << 20, 1 << 25], [512, 512, 0]]
    {
        let (_, found) = haggle(false, |option| match option {
            opt::GO => {
                let sizes: Vec<u8> = sizes.iter().flat_map(|size| size.to_be_bytes()).collect();
                vec![(rep::INFO, [vec![0, 3], sizes].concat())]
            }
            option => good(option),
        });
        assert_eq!(found.unwrap_err().kind(), ErrorKind::Unsupported, "{sizes:?}");
    }
}

#[test]
fn a_preferred_block_that_makes_no_sense_is_not_taken() {
    for (preferred, taken) in
        [(0, 512), (256, 512), (512, 512), (12_288, 512), (2 << 20, 2 << 20), (64 << 20, 512)]
    {
        let (_, found) = haggle(false, |option| match option {
            opt::GO => {
                let sizes: Vec<u8> = [512_u32, preferred, 1 << 25]
                    .iter()
                    .flat_map(|size| size.to_be_bytes())
                    .collect();
                let mut replies = good(option);
                replies[0] = (rep::INFO, [vec![0, 3], sizes].concat());
                replies
            }
            option => good(option),
        });
        assert_eq!(found.unwrap().preferred_block, taken, "{preferred}");
    }
}

#[test]
fn flags_and_contexts_count_only_if_they_are_what_was_asked_for() {
    let (_, found) = haggle(false, |option| match option {
        opt::GO => {
            let info = [&[0, 0][..], &(1_u64 << 20).to_be_bytes(), &[0, 0xfe]].concat();
            vec![(rep::INFO, info), (rep::ACK, Vec::new())]
        }
        option => good(option),
    });
    assert_eq!(found.unwrap().flags, 0, "the lowest flag says whether the others mean anything");
    let (_, found) = haggle(false, |option| match option {
        opt::SET_META_CONTEXT => vec![(rep::META_CONTEXT, b"\0\0\0\x07base:other".to_vec())],
        option => good(option),
    });
    assert!(found.unwrap_err().to_string().contains("a metadata context"));
}

#[test]
fn no_reply_makes_it_panic() {
    let mut random = Rng::new(0x6e62_6403);
    for _ in 0..20_000 {
        let mut out = Vec::new();
        let (mut negotiation, _) =
            Negotiation::begin(hello(3), wishes(random.one_in(2)), &mut out).unwrap();
        for _ in 0..8 {
            let kind = [rep::ACK, rep::INFO, rep::META_CONTEXT, rep::ERR_UNSUP, 77];
            let kind = kind[usize::try_from(random.below(5)).unwrap()];
            let data: Vec<u8> =
                (0..random.below(20)).map(|_| u8::try_from(random.below(4)).unwrap()).collect();
            let len = u32::try_from(data.len()).unwrap();
            let header = ReplyHeader { option: negotiation.asked, kind, len };
            match negotiation.reply(header, &data, &mut out) {
                Ok(Step::StartTls) => drop(negotiation.encrypted(&mut out)),
                Ok(Step::Reply) => {}
                _ => break,
            }
        }
    }
}
