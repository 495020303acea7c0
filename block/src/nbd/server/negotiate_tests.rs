use super::*;
use crate::nbd::proto::option::{REPLY_HEADER, decode_reply};
use crate::testing::Rng;

struct Shop(Vec<Offer>);

/// The number of export 'a'.
const A: u64 = 5;

impl Catalogue for Shop {
    fn offers(&self) -> Vec<Offer> {
        self.0.clone()
    }

    fn offer(&self, name: &str) -> Option<Offer> {
        self.0.iter().find(|offer| offer.name == name).cloned()
    }
}

fn shop() -> Shop {
    let offer = |number: u64, name: &str, contexts: &[&str]| Offer {
        number,
        name: name.to_owned(),
        description: Some(format!("about {name}")),
        size: 1 << 20,
        flags: export::HAS_FLAGS,
        preferred_block: 4096,
        contexts: contexts.iter().map(|context| (*context).to_owned()).collect(),
    };
    Shop(vec![
        offer(A, "a", &["base:allocation", "qemu:dirty-bitmap:b0", "qemu:allocation-depth"]),
        offer(6, "b", &["base:allocation"]),
    ])
}

/// Sends one option; the replies as type and data, and what is to be done.
fn ask(negotiation: &mut Negotiation, option: u32, data: &[u8]) -> (Vec<(u32, Vec<u8>)>, Step) {
    ask_in(&shop(), negotiation, option, data)
}

fn ask_in(
    shop: &Shop,
    negotiation: &mut Negotiation,
    option: u32,
    data: &[u8],
) -> (Vec<(u32, Vec<u8>)>, Step) {
    let mut out = Vec::new();
    let step = negotiation.option(option, data, shop, &mut out);
    let mut replies = Vec::new();
    let mut rest = &out[..];
    while let Some((header, after)) = rest.split_at_checked(REPLY_HEADER) {
        let header = decode_reply(header.try_into().unwrap()).unwrap();
        assert_eq!(header.option, option);
        let (data, after) = after.split_at(header.len as usize);
        replies.push((header.kind, data.to_vec()));
        rest = after;
    }
    assert!(rest.is_empty());
    (replies, step)
}

fn kinds(replies: &[(u32, Vec<u8>)]) -> Vec<u32> {
    replies.iter().map(|(kind, _)| *kind).collect()
}

fn go(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = Vec::new();
    put_string(name, &mut data);
    data.extend_from_slice(&u16::try_from(wanted.len()).unwrap().to_be_bytes());
    wanted.iter().for_each(|kind| data.extend_from_slice(&kind.to_be_bytes()));
    data
}

fn query(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = Vec::new();
    put_string(name, &mut data);
    data.extend_from_slice(&u32::try_from(queries.len()).unwrap().to_be_bytes());
    queries.iter().for_each(|query| put_string(query, &mut data));
    data
}

fn plain() -> Negotiation {
    Negotiation::new(Encryption::Impossible, true)
}

#[test]
fn go_describes_the_export_and_begins() {
    let mut negotiation = plain();
    assert_eq!(kinds(&ask(&mut negotiation, opt::STRUCTURED_REPLY, &[]).0), [rep::ACK]);
    let (replies, step) =
        ask(&mut negotiation, opt::GO, &go("a", &[info::NAME, info::DESCRIPTION]));
    assert_eq!(kinds(&replies), [rep::INFO, rep::INFO, rep::INFO, rep::INFO, rep::ACK]);
    assert_eq!(replies[0].1, b"\0\x01a");
    assert_eq!(replies[1].1, b"\0\x02about a");
    assert_eq!(replies[2].1, [0, 3, 0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0]);
    assert_eq!(replies[3].1, [0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0x81]);
    let Step::Transmit(agreement) = step else { panic!("{step:?}") };
    assert_eq!((agreement.export, agreement.style), (A, HeaderStyle::Structured));
    assert!(agreement.contexts.is_empty());
}

#[test]
fn unknown_exports_and_options_are_refused_with_a_reason() {
    let mut negotiation = plain();
    let (replies, step) = ask(&mut negotiation, opt::GO, &go("c", &[]));
    assert_eq!((replies[0].0, step), (rep::ERR_UNKNOWN, Step::Next));
    assert_eq!(replies[0].1, b"export 'c' not present");
    assert_eq!(ask(&mut negotiation, 99, b"xyz").0[0].0, rep::ERR_UNSUP);
    assert_eq!(ask(&mut negotiation, opt::LIST, b"x").0[0].0, rep::ERR_INVALID);
    assert_eq!(ask(&mut negotiation, opt::GO, b"\0\0\0\x09a").0[0].0, rep::ERR_INVALID);
    assert!(matches!(ask(&mut negotiation, opt::EXPORT_NAME, b"c").1, Step::Close(Some(_))));
}

#[test]
fn contexts_need_structure_and_are_those_of_the_export_that_is_chosen() {
    let mut negotiation = plain();
    let set = opt::SET_META_CONTEXT;
    let both = query("a", &["base:allocation", "qemu:dirty-bitmap:b0", "qemu:nonsense", "x:y"]);
    assert_eq!(ask(&mut negotiation, set, &both).0[0].0, rep::ERR_INVALID);
    ask(&mut negotiation, opt::EXTENDED_HEADERS, &[]);
    let (replies, _) = ask(&mut negotiation, set, &both);
    assert_eq!(kinds(&replies), [rep::META_CONTEXT, rep::META_CONTEXT, rep::ACK]);
    assert_eq!(replies[1].1, b"\0\0\0\x01qemu:dirty-bitmap:b0");
    let chosen =
        |negotiation: &mut Negotiation, name: &str| match ask(negotiation, opt::GO, &go(name, &[]))
            .1
        {
            Step::Transmit(agreement) => agreement.contexts,
            step => panic!("{step:?}"),
        };
    assert_eq!(chosen(&mut negotiation, "a"), [0, 1]);
    assert!(chosen(&mut negotiation, "b").is_empty());
    // Wildcards select nothing, and a failed selection forgets the one before.
    let (replies, _) = ask(&mut negotiation, set, &query("a", &["base:", "qemu:"]));
    assert_eq!(kinds(&replies), [rep::ACK]);
    ask(&mut negotiation, set, &both);
    ask(&mut negotiation, set, b"\0");
    assert!(chosen(&mut negotiation, "a").is_empty());
}

#[test]
fn contexts_are_listed_by_wildcards() {
    let mut negotiation = plain();
    ask(&mut negotiation, opt::STRUCTURED_REPLY, &[]);
    let mut count = |queries: &[&str]| {
        ask(&mut negotiation, opt::LIST_META_CONTEXT, &query("a", queries)).0.len() - 1
    };
    assert_eq!(count(&[]), 3);
    assert_eq!(count(&["qemu:"]), 2);
    assert_eq!(count(&["qemu:dirty-bitmap:"]), 1);
    assert_eq!(count(&["base:"]), 1);
    assert_eq!(count(&["qemu:allocation-depth"]), 1);
    assert_eq!(count(&["qemu:dirty-bitmap:b"]), 0);
}

#[test]
fn nothing_is_told_before_tls_and_nothing_is_kept_across_it() {
    let mut negotiation = Negotiation::new(Encryption::Required, true);
    for option in [opt::LIST, opt::GO, opt::STRUCTURED_REPLY, opt::SET_META_CONTEXT, 99] {
        assert_eq!(ask(&mut negotiation, option, &go("a", &[])).0[0].0, rep::ERR_TLS_REQD);
    }
    assert!(matches!(ask(&mut negotiation, opt::EXPORT_NAME, b"a").1, Step::Close(Some(_))));
    assert_eq!(ask(&mut negotiation, opt::STARTTLS, &[]).1, Step::StartTls);
    negotiation.encrypted();
    assert_eq!(ask(&mut negotiation, opt::STARTTLS, &[]).0[0].0, rep::ERR_INVALID);
    assert_eq!(
        kinds(&ask(&mut negotiation, opt::LIST, &[]).0),
        [rep::SERVER, rep::SERVER, rep::ACK]
    );
    assert_eq!(ask(&mut plain(), opt::STARTTLS, &[]).0[0].0, rep::ERR_POLICY);
}

#[test]
fn styles_only_grow() {
    let mut negotiation = plain();
    ask(&mut negotiation, opt::EXTENDED_HEADERS, &[]);
    let (replies, _) = ask(&mut negotiation, opt::STRUCTURED_REPLY, &[]);
    assert_eq!(replies[0].0, rep::ERR_EXT_HEADER_REQD);
    assert_eq!(ask(&mut negotiation, opt::EXTENDED_HEADERS, &[]).0[0].0, rep::ERR_INVALID);
    assert!(matches!(ask(&mut negotiation, opt::EXPORT_NAME, b"a").1, Step::Close(Some(_))));
}

#[test]
fn the_old_way_pads_unless_told_not_to() {
    for (no_zeroes, len) in [(true, 10), (false, 134)] {
        let mut out = Vec::new();
        let mut negotiation = Negotiation::new(Encryption::Impossible, no_zeroes);
        let step = negotiation.option(opt::EXPORT_NAME, b"b", &shop(), &mut out);
        assert!(matches!(step, Step::Transmit(_)));
        assert_eq!(out.len(), len);
    }
}

fn below(random: &mut Rng, bound: usize) -> usize {
    usize::try_from(random.below(bound as u64)).unwrap()
}

#[test]
fn no_option_makes_it_panic_or_answer_without_bound() {
    let mut random = Rng::new(0x6e62_6400);
    for _ in 0..20_000 {
        let encryption = [Encryption::Impossible, Encryption::Required, Encryption::Done];
        let mut negotiation = Negotiation::new(encryption[below(&mut random, 3)], true);
        for _ in 0..8 {
            let option = u32::try_from(random.below(13)).unwrap();
            let mut data = match random.below(3) {
                0 => go("a", &[info::NAME, 77]),
                1 => query("a", &["base:allocation", "qemu:"]),
                _ => Vec::new(),
            };
            for _ in 0..random.below(4) {
                let byte = u8::try_from(random.below(256)).unwrap();
                match random.below(3) {
                    0 => data.push(byte),
                    1 if !data.is_empty() => {
                        let place = below(&mut random, data.len());
                        data[place] = byte;
                    }
                    _ => data.truncate(below(&mut random, data.len() + 1)),
                }
            }
            let mut out = Vec::new();
            let step = negotiation.option(option, &data, &shop(), &mut out);
            assert!(out.len() < 4096);
            match step {
                Step::StartTls => negotiation.encrypted(),
                Step::Next => {}
                Step::Transmit(_) | Step::Close(_) => break,
            }
        }
    }
}

/// The numbers of contexts are places in the list of an export: another one of its name has other bitmaps there.
#[test]
fn contexts_of_an_export_that_is_replaced_meanwhile_are_forgotten() {
    let mut negotiation = plain();
    ask(&mut negotiation, opt::STRUCTURED_REPLY, &[]);
    let data = query("a", &["qemu:dirty-bitmap:b0"]);
    assert_eq!(ask(&mut negotiation, opt::SET_META_CONTEXT, &data).0.len(), 2);
    let mut later = shop();
    later.0[0].number = 7;
    later.0[0].contexts[1] = "qemu:dirty-bitmap:b1".to_owned();
    let (_, step) = ask_in(&later, &mut negotiation, opt::GO, &go("a", &[]));
    let Step::Transmit(agreement) = step else { panic!("{step:?}") };
    assert_eq!((agreement.export, agreement.contexts), (7, Vec::new()));
}
