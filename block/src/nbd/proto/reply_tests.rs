use super::*;

fn encoded(header: Header) -> Vec<u8> {
    let mut out = Vec::new();
    header.encode(&mut out);
    out
}

#[test]
fn headers_come_back_and_tell_their_length() {
    let simple = Header::Simple { error: 5, cookie: 1 << 63 };
    let chunk = Header::Chunk { flags: chunk::DONE, kind: 1, cookie: 3, offset: None, len: 4104 };
    let wide = Header::Chunk { flags: 0, kind: 6, cookie: 3, offset: Some(1 << 40), len: 24 };
    let cases = [
        (HeaderStyle::Simple, simple, 16),
        (HeaderStyle::Structured, simple, 16),
        (HeaderStyle::Structured, chunk, 20),
        (HeaderStyle::Extended, wide, 32),
    ];
    for (style, header, len) in cases {
        let bytes = encoded(header);
        assert_eq!(bytes.len(), len);
        assert_eq!(Header::len(style, bytes[..4].try_into().unwrap()).unwrap(), len);
        assert_eq!(Header::decode(&bytes), Some(header));
    }
}

#[test]
fn a_style_accepts_only_its_own_replies() {
    let simple = encoded(Header::Simple { error: 0, cookie: 0 });
    let magic = simple[..4].try_into().unwrap();
    assert!(Header::len(HeaderStyle::Extended, magic).is_err());
    let chunk = Header::Chunk { flags: 0, kind: 0, cookie: 0, offset: None, len: 0 };
    let magic = encoded(chunk)[..4].try_into().unwrap();
    assert!(Header::len(HeaderStyle::Simple, magic).is_err());
}

#[test]
fn status_lists_come_back_in_both_widths() {
    let list = [Descriptor { len: 4096, flags: 3 }, Descriptor { len: 512, flags: 0 }];
    for (style, kind, len) in [
        (HeaderStyle::Structured, chunk::BLOCK_STATUS, 4 + 16),
        (HeaderStyle::Extended, chunk::BLOCK_STATUS_EXT, 8 + 32),
    ] {
        let payload = encode_status(style, 9, &list);
        assert_eq!(payload.len(), len);
        assert_eq!(decode_status(kind, &payload), Some((9, list.to_vec())));
        for cut in 0..len {
            if let Some((_, shorter)) = decode_status(kind, &payload[..cut]) {
                assert!(!shorter.is_empty() && shorter.len() < list.len());
            }
        }
    }
}

#[test]
fn status_lists_that_lie_are_refused() {
    let empty = encode_status(HeaderStyle::Structured, 1, &[]);
    assert_eq!(decode_status(chunk::BLOCK_STATUS, &empty), None);
    let zero = [Descriptor { len: 0, flags: 1 }];
    let zero = encode_status(HeaderStyle::Structured, 1, &zero);
    assert_eq!(decode_status(chunk::BLOCK_STATUS, &zero), None);
    let mut wrong = encode_status(HeaderStyle::Extended, 1, &[Descriptor { len: 1, flags: 0 }]);
    wrong[7] = 2;
    assert_eq!(decode_status(chunk::BLOCK_STATUS_EXT, &wrong), None);
}

#[test]
fn errors_come_back_and_long_messages_are_cut() {
    assert_eq!(decode_error(&encode_error(28, "full")), Some((28, "full".to_owned())));
    let long = encode_error(5, &"ä".repeat(5000));
    assert!(decode_error(&long).unwrap().1.len() <= MAX_STRING);
    assert_eq!(decode_error(&encode_error(0, "fine")), None);
    assert_eq!(decode_error(&[0, 0, 0, 5, 0, 9, b'x']), None);
}
