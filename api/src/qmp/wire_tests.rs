use proptest::prelude::*;
use serde_json::json;

use super::*;

fn decode_in(chunks: &[&[u8]], limits: Limits) -> Vec<Result<Value, QmpError>> {
    let mut decoder = Decoder::new(limits);
    let mut messages = Vec::new();
    for chunk in chunks {
        let mut input = *chunk;
        while let Some(message) = decoder.next(&mut input) {
            messages.push(message);
        }
        assert!(input.is_empty());
    }
    messages
}

fn decode(bytes: &[u8]) -> Vec<Result<Value, QmpError>> {
    decode_in(&[bytes], Limits::default())
}

fn error(text: &str) -> Result<Value, QmpError> {
    Err(QmpError::generic(text))
}

#[test]
fn messages_end_where_they_end_and_not_at_lines() {
    let messages = decode(b"{'a':\n[1,\r\n2]}{}[] 7\n'x' nul");
    let expected = [json!({"a": [1, 2]}), json!({}), json!([]), json!(7), json!("x")];
    assert_eq!(messages, expected.map(Ok));
}

#[test]
fn a_message_that_is_too_much_costs_one_error_and_its_line() {
    let limits = Limits { message_bytes: 64, message_tokens: 16, nesting: 4, ..Limits::default() };
    let after = b"{\"id\":1}\n";
    let too_long = [b"{\"a\":\"".as_slice(), &[b'x'; 100], b"\"}{}\n", after].concat();
    let too_many = [b"[1".as_slice(), &b",1".repeat(20), b"]\n", after].concat();
    let too_deep = [b"[[[[[[[[]]]]]]]]\n".as_slice(), after].concat();
    for (bytes, text) in [
        (too_long, "JSON token size limit exceeded"),
        (too_many, "JSON token count limit exceeded"),
        (too_deep, "JSON nesting depth limit exceeded"),
    ] {
        assert_eq!(decode_in(&[&bytes], limits), [error(text), Ok(json!({"id": 1}))]);
    }
}

#[test]
fn numbers_that_nothing_can_hold_are_refused() {
    assert_eq!(decode(b"[1e400]"), [error("JSON parse error, number out of range '1e400'")]);
    let long = format!("[{}]", "9".repeat(400));
    let refused = decode(long.as_bytes()).remove(0).unwrap_err();
    assert!(refused.desc.starts_with("JSON parse error, number out of range '999"));
}

#[test]
fn a_stray_token_is_quoted_only_in_part() {
    let mut bytes = vec![b'"'];
    bytes.extend([b'x'; 1000]);
    bytes.push(1);
    let refused = decode(&bytes).remove(0).unwrap_err();
    assert!(refused.desc.len() < 200, "{}", refused.desc);
}

/// The deepest message that is accepted, parsed, cloned, compared, written and dropped, in as little
/// stack as a thread may have.
#[test]
fn the_deepest_message_needs_little_stack() {
    let depth = Limits::default().nesting;
    let bytes = [b"[".repeat(depth), b"]".repeat(depth)].concat();
    let check = move || {
        let value = decode(&bytes).remove(0).unwrap();
        let mut out = Vec::new();
        encode(&value.clone(), &mut out).unwrap();
        assert_eq!(out.len(), bytes.len() + 2);
    };
    let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(check).unwrap();
    thread.join().unwrap();
}

#[test]
fn output_is_ascii_on_one_line() {
    let mut out = Vec::new();
    let value = json!({"a": ["\u{e9}\u{1F600}\u{7f}\u{1}\n\"\\/", 1.5, null], "b": {}});
    encode(&value, &mut out).unwrap();
    let expected =
        concat!(r#"{"a": ["\u00E9\uD83D\uDE00\u007F\u0001\n\"\\/", 1.5, null], "b": {}}"#, "\r\n");
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

/// Values as JSON has them; floats only where text keeps them exactly.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i32>().prop_map(|n| json!(f64::from(n) / 8.0)),
        "\\PC*".prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map("\\PC*", inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Bytes of which a good part looks like JSON.
fn soup() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        8 => prop::sample::select(
            b"{}[]:,\"'\\ \n\t-+.eE0123456789truefalsn%\x00\x01\x7f\x80\xc0\xfe\xff".to_vec()
        ).prop_map(|byte| vec![byte]),
        1 => any::<u8>().prop_map(|byte| vec![byte]),
        1 => Just(b"\"key\":".to_vec()),
        1 => Just(br"\ud83d\ude00".to_vec()),
    ];
    prop::collection::vec(piece, 0..200).prop_map(|pieces| pieces.concat())
}

/// Cuts bytes at these places, in any order, each possibly beyond the end.
fn cut<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut places: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    places.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

proptest! {
    #[test]
    fn chunks_do_not_matter(bytes in soup(), cuts in prop::collection::vec(any::<usize>(), 0..20)) {
        let small = Limits { message_bytes: 40, message_tokens: 12, nesting: 5, ..<_>::default() };
        for limits in [Limits::default(), small] {
            let whole = decode_in(&[&bytes], limits);
            prop_assert_eq!(&whole, &decode_in(&cut(&bytes, &cuts), limits));
            let singles: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(&whole, &decode_in(&singles, limits));
        }
    }

    #[test]
    fn what_is_written_is_read_again(value in any_value()) {
        // QMP refuses the code points that Unicode reserves for no character at all.
        let text = value.to_string();
        let reserved = |c: char| {
            let code = u32::from(c);
            (0xFDD0..=0xFDEF).contains(&code) || code & 0xFFFE == 0xFFFE
        };
        prop_assume!(!text.chars().any(reserved));
        let mut ascii = Vec::new();
        encode(&value, &mut ascii).unwrap();
        prop_assert!(ascii.is_ascii());
        prop_assert_eq!(decode(&ascii), [Ok(value.clone())]);
        // Other writers do not escape: the same value.
        prop_assert_eq!(decode(format!("{text}\n").as_bytes()), [Ok(value)]);
    }

    #[test]
    fn whatever_json_accepts_is_read_the_same(bytes in soup()) {
        if let Ok(value) = serde_json::from_slice::<Value>(&bytes)
            && (value.is_object() || value.is_array())
        {
            let messages = decode(&bytes);
            // Duplicate keys are where QMP is stricter.
            if messages != [error("JSON parse error, duplicate key")] {
                prop_assert_eq!(messages, [Ok(value)]);
            }
        }
    }
}
