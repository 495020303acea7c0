use super::*;

#[test]
fn headers_have_the_documented_layout_and_come_back() {
    let request =
        Request { flags: flag::FUA, command: cmd::WRITE, cookie: 7, offset: 0x1_0000_0000, len: 9 };
    let mut bytes = Vec::new();
    request.encode(HeaderStyle::Structured, &mut bytes);
    let expected = [
        0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0,
        0, 9,
    ];
    assert_eq!(bytes, expected);
    assert_eq!(Request::decode(HeaderStyle::Simple, &bytes).unwrap(), request);
    let wide =
        Request { len: 1 << 40, flags: flag::NO_HOLE, command: cmd::WRITE_ZEROES, ..request };
    let mut bytes = Vec::new();
    wide.encode(HeaderStyle::Extended, &mut bytes);
    assert_eq!((bytes.len(), &bytes[..4]), (32, &[0x21, 0xe4, 0x1c, 0x71][..]));
    assert_eq!(Request::decode(HeaderStyle::Extended, &bytes).unwrap(), wide);
}

#[test]
fn a_foreign_magic_is_refused() {
    for style in [HeaderStyle::Simple, HeaderStyle::Extended] {
        let header = vec![0x55; Request::header_len(style)];
        let error = Request::decode(style, &header).unwrap_err();
        assert!(error.to_string().contains("0x55555555"), "{error}");
    }
}

#[test]
fn only_what_carries_data_has_a_payload() {
    let request = Request { flags: 0, command: cmd::READ, cookie: 0, offset: 0, len: 512 };
    let write = Request { command: cmd::WRITE, ..request };
    assert_eq!(request.payload_len(HeaderStyle::Structured), 0);
    assert_eq!(write.payload_len(HeaderStyle::Structured), 512);
    assert_eq!(write.payload_len(HeaderStyle::Extended), 0);
    let flagged = Request { flags: flag::PAYLOAD_LEN, ..request };
    assert_eq!(flagged.payload_len(HeaderStyle::Extended), 512);
}
